"""What the audit measures, on networks whose answer is known: each passes on a sound case and fails on its disease."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import randomness
from lib.attacks import forms
from lib.attacks.audit import Trial, audit, differences, flat_gradients
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch

torch.set_num_threads(1)
PGD = Threat(0.1, 0.03, 8)
WEIGHT = torch.randn(2, 2, 16, generator=randomness.generator(3, "weights"))


def trial(**changes):
    """A two-exit linear network that is right on every image, and its biases balanced so that both classes occur."""
    shape = (1, 4, 4)
    images, _ = random_batch(64, shape)
    biases = -(WEIGHT @ images.flatten(1).mean(0))
    network = linear_network(WEIGHT, biases, shape)
    with torch.no_grad():
        labels = network(images)[-1].argmax(-1)
    return Trial(**{**dict(network=network, images=images, labels=labels), **changes})


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


@pytest.mark.parametrize("form", forms.names(2))
def test_an_empty_budget_changes_nothing(form):
    one = replace(trial(), form=form, point=OperatingPoint(thresholds=(0.3,)))
    assert torch.equal(one.attack(Threat(0.0, 0.03, 4)), one.images)


def test_unbounded_attacks_break_everything_unless_the_gradient_is_masked():
    class Quantise(nn.Module):
        def forward(self, x, at):
            return (x * 4).round() / 4

    def found(one):
        return audit(one.network, one.images, one.labels, PGD)["checks"]

    name, sound, masked = "an unlimited budget does not break all", trial(), trial()
    assert found(sound)[name] == {"value": 0, "threshold": 0.02, "passed": True}
    masked.network.stages[0] = Quantise()
    assert not found(masked)[name]["passed"] and found(masked)[name]["value"] > 0.2
    assert flat_gradients(masked, "ce") == flat_gradients(masked, "margin") == 1


def test_one_step_is_within_pgd_unless_pgd_is_crippled():
    def found(threat):
        one = trial()
        return audit(one.network, one.images, one.labels, threat)["checks"]["one step breaks more"]["passed"]

    assert found(PGD) and not found(Threat(0.1, 1e-6, 1))


@pytest.mark.parametrize("form, point", [("main", OperatingPoint()), ("max_average", OperatingPoint()),
                                         ("gate_aware", OperatingPoint(thresholds=(0.3,)))])
def test_gradients_are_healthy_and_masking_is_noticed(form, point):
    plain = trial(form=form, point=point)
    assert flat_gradients(plain, "ce") == flat_gradients(plain, "margin") == 0
    assert flat_gradients(replace(plain, network=scaled(plain.network, 1e6)), "ce") >= 0.01


def test_saturated_probabilities_are_counted():
    sure = trial()
    with torch.no_grad():
        sure.network.heads[-1][1].weight *= 1e6
        sure.network.heads[-1][1].bias *= 1e6
    found = audit(sure.network, sure.images, sure.labels)
    assert "saturated logits" in found["flags"] and found["checks"]["saturated logits"]["value"] > 0.9


def test_an_undefended_network_falls_and_a_tiny_budget_does_not_pass():
    one = trial()
    assert not one.correct(one.attack(Threat(0.5, 0.1, 20))).any()
    assert one.correct(one.attack(Threat(0.001, 0.001, 1))).any()


def test_the_decision_is_the_routed_one_where_there_are_thresholds():
    routed = trial(point=OperatingPoint(thresholds=(math.inf,)))
    first = routed.network(routed.images)[0].argmax(-1) == routed.labels
    assert torch.equal(routed.correct(routed.images), first) and not first.all()
    assert trial().correct(routed.images).all()


def test_batch_statistics_left_on_are_caught():
    network = zoo.build("resnet20", width_multiplier=0.25)
    images, labels = random_batch(8, (3, 32, 32), 10)
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert max(differences(Trial(network, images, labels))) > 1e-2 and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network.eval()
    repeat, batch = differences(Trial(network, images, labels))
    assert repeat == 0 and batch <= 1e-4
