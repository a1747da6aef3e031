"""Two networks as one: its probabilities are the weighted mean, its attacks see both, its cost is both."""

import copy

import pytest
import torch

from lib import WorkbookError
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models.cost import cost
from lib.models.mixture import mixture
from lib.models.view import AttackView
from tests.helpers.networks import images, small, source


@pytest.fixture(scope="module")
def pair():
    return tuple(small("resnet20", seed=seed, input_shape=(3, 16, 16)) for seed in (0, 1))


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_probabilities_are_the_weighted_mean(pair, weight):
    x, mixed = images(pair[0]), mixture(*pair, weight)
    expected = (1 - weight) * pair[0](x)[-1].softmax(-1) + weight * pair[1](x)[-1].softmax(-1)
    torch.testing.assert_close(mixed(x)[-1].exp(), expected)
    torch.testing.assert_close(AttackView(mixed)(x)[-1].exp(), expected, rtol=1e-4, atol=1e-5)


def test_it_costs_both(pair):
    found, each = cost(mixture(*pair, 0.5)), [cost(network) for network in pair]
    assert found.macs == sum(c.macs for c in each) and found.parameters == sum(c.parameters for c in each)


def test_the_attack_looks_through_the_mean(pair):
    x, labels = images(pair[0]), torch.zeros(6, dtype=torch.int64)
    threat = Threat(0.1, 0.1, 1, random_start=False)
    made = forms.craft("main", mixture(*pair, 0.3), x, labels, threat, generator=source())
    x = x.requires_grad_()
    mean = 0.7 * pair[0](x)[-1].softmax(-1) + 0.3 * pair[1](x)[-1].softmax(-1)
    gradient, = torch.autograd.grad(-mean[:, 0].log().sum(), x)
    clear = gradient.abs() > 1e-6
    assert torch.equal(made[clear], (x + 0.1 * gradient.sign()).clamp(0, 1)[clear])


def test_what_cannot_be_mixed(pair):
    for weight in (0, 1, 1.5):
        with pytest.raises(WorkbookError, match="between 0 and 1"):
            mixture(*pair, weight)
    with pytest.raises(WorkbookError, match="knobs of its own"):
        mixture(pair[0], small("resnet20", conditioning="dual_bn", input_shape=(3, 16, 16)), 0.5)
    with pytest.raises(WorkbookError, match="different images"):
        mixture(pair[0], copy.deepcopy(small("resnet20", input_shape=(3, 8, 8))), 0.5)
