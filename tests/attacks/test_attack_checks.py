"""The sanity checks on networks whose answer is known: each passes on a sound case and fails on its own disease."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import randomness
from lib.attacks import checks
from lib.attacks.checks import Subject
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch

torch.set_num_threads(1)
PGD = Threat(0.1, 0.03, 8)
WEIGHT = torch.randn(2, 2, 16, generator=randomness.generator(3, "weights"))


def subject(**changes):
    """A two-exit linear network that is right on every image, and its biases balanced so that both classes occur."""
    shape = (1, 4, 4)
    images, _ = random_batch(64, shape)
    biases = -(WEIGHT @ images.flatten(1).mean(0))
    network = linear_network(WEIGHT, biases, shape)
    with torch.no_grad():
        labels = network(images)[-1].argmax(-1)
    return Subject(**{**dict(network=network, images=images, labels=labels), **changes})


class Scaled(nn.Module):
    """A head with every logit times `factor`, a classic masked gradient."""

    def __init__(self, head, factor):
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, x, at):
        return self.factor * self.head(x, at)


def scaled(network, factor):
    masked = copy.deepcopy(network)
    masked.heads = nn.ModuleList(Scaled(head, factor) for head in masked.heads)
    return masked


def test_budget_is_measured_and_every_violation_found():
    images, _ = random_batch(4)
    far, outside, nan = images.clone(), images.clone(), images.clone()
    far[0, 0, 0, 0] = (images[0, 0, 0, 0] - 0.2).abs()
    outside[1, 0, 0, 0] = images[1, 0, 0, 0] = 1.0
    outside[1, 0, 0, 0] = 1.05
    nan[0] = math.nan
    value, threshold, passed = checks.budget(images, (images + 0.1).clamp(0, 1), PGD)
    assert passed and value == pytest.approx(0.1) and threshold == PGD.reach + 1e-6
    assert not any(checks.budget(images, bad, PGD).passed for bad in (far, outside, nan))


def test_zero_budget_changes_no_verdict_and_a_cheating_attack_is_seen():
    class Cheat(Subject):
        def attack(self, threat, restart=0):
            return 1 - self.images

    assert checks.zero_budget(subject(), PGD) == (0, 0, True)
    value, _, passed = checks.zero_budget(Cheat(**vars(subject())), PGD)
    assert not passed and value > 0


def test_unbounded_attacks_break_everything_unless_the_gradient_is_masked():
    class Quantise(nn.Module):
        def forward(self, x, at):
            return (x * 4).round() / 4

    assert checks.unbounded(subject(), steps=10, restarts=1) == (0, 0, True)
    masked = subject()
    masked.network.stages[0] = Quantise()
    value, _, passed = checks.unbounded(masked, steps=10, restarts=1)
    assert not passed and value > 0.2
    assert not checks.gradient_health(masked).passed and checks.gradient_health(masked).value == 1


def test_one_step_is_within_pgd_unless_pgd_is_crippled():
    assert checks.fgsm_within_pgd(subject(), PGD).passed
    assert not checks.fgsm_within_pgd(subject(), Threat(0.1, 1e-6, 1)).passed


@pytest.mark.parametrize("form, point", [("main", OperatingPoint()), ("max_average", OperatingPoint()),
                                         ("gate_aware", OperatingPoint(thresholds=(0.3,)))])
def test_gradients_are_healthy_and_masking_is_noticed(form, point):
    plain = subject(form=form, point=point)
    assert checks.gradient_health(plain).passed and checks.saturation(plain).passed
    assert not checks.gradient_health(replace(plain, network=scaled(plain.network, 1e6))).passed


def test_saturated_probabilities_are_counted():
    sure = subject()
    with torch.no_grad():
        sure.network.heads[-1][1].weight *= 1e6
        sure.network.heads[-1][1].bias *= 1e6
    assert checks.saturation(sure).value > 0.9 and not checks.saturation(sure).passed


def test_an_undefended_network_falls_and_a_tiny_budget_does_not_pass():
    assert subject().broken(Threat(0.5, 0.1, 20)).all()
    assert not subject().broken(Threat(0.001, 0.001, 1)).all()


def test_the_decision_is_the_routed_one_where_there_are_thresholds():
    routed = subject(point=OperatingPoint(thresholds=(math.inf,)))
    first = routed.network(routed.images)[0].argmax(-1) == routed.labels
    assert torch.equal(routed.correct(routed.images), first) and not first.all()
    assert subject().correct(routed.images).all()


def test_batch_statistics_left_on_are_caught():
    network = zoo.build("resnet20", width_multiplier=0.25)
    images, labels = random_batch(8, (3, 32, 32), 10)
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert max(checks.differences(Subject(network, images, labels))) > 1e-2 and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network.eval()
    repeat, batch = checks.differences(Subject(network, images, labels))
    assert repeat == 0 and batch <= 1e-4
