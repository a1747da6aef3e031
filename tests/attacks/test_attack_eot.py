"""Gradients averaged over the draws of a noisy network."""

import torch

from lib import randomness
from lib.attacks import forms, steps
from lib.attacks.steps import Threat
from lib.models import zoo
from tests.helpers.linear_oracle import linear_network, random_batch

torch.set_num_threads(1)


def stream(seed=0):
    return randomness.generator(seed, "test")


def test_the_eot_gradient_is_the_mean_of_single_draws():
    network = zoo.build("smallcnn", exits="rdi", conditioning="pni", input_shape=(1, 28, 28), width_multiplier=0.25)
    network.eval()
    images, labels = random_batch(4, (1, 28, 28), 10)
    generator = stream()
    loss = lambda x: steps.per_sample(network(x, None, generator)[0], labels).sum()  # noqa: E731
    mean = steps.expected_gradient(loss, images, draws=5)
    generator = stream()
    singles = [steps.expected_gradient(loss, images) for _ in range(5)]
    assert torch.allclose(mean, torch.stack(singles).mean(0), atol=1e-7) and not torch.equal(singles[0], singles[1])
    assert all(p.grad is None for p in network.parameters())


def test_eot_finds_the_direction_that_one_draw_misses():
    """Weight noise three times the weights: one step along one draw's gradient hardly hurts the mean decision."""
    weight = torch.randn(1, 2, 64, generator=randomness.generator(2, "weights"))
    network = linear_network(weight, input_shape=(1, 8, 8), conditioning="pni")
    with torch.no_grad():
        network.heads[0][1].alpha.fill_(3.0)
    images, labels = random_batch(32, (1, 8, 8))
    margin = {}
    for draws in (1, 200):
        threat = Threat(0.1, 0.1, 1, random_start=False, loss="margin", draws=draws)
        moved = forms.craft("main", network, images, labels, threat, generator=stream()) - images
        direction = (weight[0][labels] - weight[0][1 - labels]).view_as(images)
        margin[draws] = (moved * direction).sum((1, 2, 3)).mean().item()
    assert margin[200] < 2 * margin[1] < 0  # both fall, the average much further
