"""Attacks on the saving: which images can be held back is known where exits are linear."""

import math

import numpy as np
import pytest
import torch

from lib import CHECKPOINTS, WorkbookError, checkpoints, data, randomness
from lib.attacks import forms, slowdown
from lib.attacks.decision import Decision
from lib.attacks.steps import Threat
from lib.evaluation.reading import read
from lib.evaluation.recording import record, suite
from lib.evaluation.routing import ExitCosts
from lib.models.exits import entropy, route
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network

torch.set_num_threads(1)
EPSILON, GATE = 0.1, 0.3


def known(n=200):
    """Exit 1 looks at the first half of the pixels alone, exit 2 at the second, so that both are attacked apart.

    Returns the network, images away from 0 and 1, labels by exit 2, and of each image the smallest |lead| of exit 1 and
    the smallest lead of the label at exit 2 that the ball holds.
    """
    source = torch.Generator().manual_seed(5)
    halves = torch.zeros(2, 2, 16)
    halves[0, 1, :8], halves[1, 1, 8:] = (7 * torch.randn(2, 8, generator=source)).unbind()
    biases = -(halves @ torch.full((16,), 0.5))
    network = linear_network(halves, biases, (1, 4, 4))
    x = torch.rand(n, 1, 4, 4, generator=source) * 0.7 + 0.15
    logits = network(x)
    y = logits[1].argmax(-1)
    reach = EPSILON * halves[:, 1].abs().sum(-1)
    leads = (logits[..., 1] - logits[..., 0]).abs()
    return network, x, y, (leads[0] - reach[0]).relu(), leads[1] - reach[1]


def test_exactly_the_images_are_held_back_that_can_be():
    network, x, y, sure, lead = known()
    wide = entropy(torch.stack([torch.zeros(9000), torch.linspace(0, 8, 9000)], -1))
    edge = torch.linspace(0, 8, 9000)[(wide < GATE).nonzero()[0, 0]]  # the |lead| from which an image leaves
    pushed, at = sure < edge, OperatingPoint(thresholds=(GATE,))
    clear = (sure - edge).abs() > 1e-3
    assert 0.2 < pushed.float().mean() < 0.95 and 0.2 < (lead < 0).float().mean() < 0.8
    for form, wanted in (("slow_keep", pushed), ("slow_break", pushed & (lead < 0)), ("slow_free", pushed)):
        made = forms.craft(form, network, x, y, Threat(EPSILON, EPSILON / 8, 40), point=at,
                           generator=randomness.generator(0, form))
        assert (made - x).abs().max() <= EPSILON + 1e-6
        prediction, exit = route(network, made, at)
        right = prediction == y
        asked = {"slow_keep": right, "slow_break": ~right, "slow_free": torch.ones_like(right)}[form]
        assert torch.equal(((exit == 1) & asked)[clear], wanted[clear]), form
        assert (exit >= route(network, x, at)[1])[asked & (form != "slow_break")].all()


def test_a_closed_gate_holds_nobody_and_one_that_all_pass_holds_all():
    network, x, y, _, _ = known(20)
    for gate, exit in ((-math.inf, 1), (math.inf, 0)):
        at = OperatingPoint(thresholds=(gate,))
        made = forms.craft("slow_free", network, x, y, Threat(EPSILON, EPSILON / 8, 5), point=at,
                           generator=randomness.generator(0, "a"))
        assert made.isfinite().all() and (route(network, made, at)[1] == exit).all()


def test_what_it_asks_for():
    network, x, y, _, _ = known(4)
    at = dict(point=OperatingPoint(thresholds=(GATE,)), generator=randomness.generator(0, "a"))
    with pytest.raises(WorkbookError, match="routing needs thresholds"):
        forms.craft("slow_keep", network, x, y, Threat(0.1, 0.05, 2), generator=randomness.generator(0, "a"))
    with pytest.raises(WorkbookError, match="leave the algorithm at pgd"):
        forms.craft("slow_keep", network, x, y, Threat(0.1, steps=2, algorithm="wrm"), **at)
    with pytest.raises(WorkbookError, match="unknown attack form 'slow_keep'"):
        forms.find("slow_keep", 1)
    assert not set(slowdown.FORMS) & set(forms.names(7))


def test_efficacy_by_hand():
    """Exits at 1/4, 1/2 and all of the cost; DeepSloth's trapezoids."""
    costs = ExitCosts(np.array([10.0, 20.0, 40.0]), np.zeros(3))
    assert costs.efficacy((1, 1), np.array([0.5, 0.25, 0.25])) == pytest.approx(
        0.25 * 0.25 + 0.25 * 0.625 + 0.5 * 0.875)
    assert costs.efficacy((1, 1), np.array([0.0, 0.0, 1.0])) == pytest.approx(0.25)
    assert costs.efficacy((-np.inf, 1), np.array([0.0, 0.75, 0.25])) == pytest.approx(0.5 * 0.375 + 0.5 * 0.875)


def test_a_record_holds_what_is_left_of_the_saving():
    network = checkpoints.load(CHECKPOINTS / "rdi_smallcnn-digits-max_average-laptop.safetensors").network
    images, gates = data.load("digits", shape=network.input_shape).test[:40], (0.07, 0.26)
    views = suite(network, Threat(0.15, 0.03, 10), ("clean", *slowdown.FORMS), thresholds=gates)
    found = read(record(network, images, views), thresholds=gates)
    clean, slow = (found.record.exit_costs().efficacy(gates, found.share(v)) for v in ("clean", "slow_free"))
    assert slow < 0.6 * clean and found.share("slow_free")[-1] > 0.8 > found.share("clean")[-1]
    kept, broken = found.right("slow_keep"), found.right("slow_break")
    assert kept.mean() >= found.right("clean").mean() - 1e-9 and broken.mean() < 0.8
    with torch.no_grad():
        assert Decision(network, OperatingPoint(thresholds=gates))(images.floats()[0]).shape == (40, 10)
