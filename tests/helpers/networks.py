"""Small networks of every kind for the tests, with batch-norm statistics that matter."""

import torch
from torch import nn

from lib import randomness
from lib.models import zoo


def small(name, seed=0, **options):
    """A narrow network in eval mode: random weights, and statistics and affines far from their starting values."""
    defaults = dict(width_multiplier=0.25, depth_multiplier=0.34)
    if name == "smallcnn":
        defaults = dict(width_multiplier=0.25, input_shape=(1, 28, 28))
    network = zoo.build(name, seed=seed, **{**defaults, **options})
    generator = randomness.generator(seed, "test statistics")
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.weight.uniform_(0.6, 1.2, generator=generator)
                norm.bias.normal_(0, 0.2, generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.1, 0.4, generator=generator)
    return network.eval()


def images(network, n=6, seed=0):
    """(n, C, H, W), uniform in [0, 1]."""
    return torch.rand(n, *network.input_shape, generator=randomness.generator(seed, "test images"))


def source(seed=0):
    return randomness.generator(seed, "test draws")
