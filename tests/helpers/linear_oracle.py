"""A linear multi-exit network: its worst case in an l_inf ball is known in closed form."""

import torch

from lib import randomness
from lib.models.layers import Chain, Flatten
from lib.models.network import Network
from lib.models.parts import Backbone, Parts, Tap


def linear_network(weights, biases=None, input_shape=(1, 2, 2), conditioning="none") -> Network:
    """Exit k computes weights[k] @ pixels + biases[k]; weights: (exits, classes, pixels). Stages are identities."""
    weights = torch.as_tensor(weights)
    exits, classes, pixels = weights.shape
    parts = Parts(conditioning)
    heads = [Chain(Flatten(), parts.linear(pixels, classes, classifier=True)) for _ in range(exits)]
    backbone = Backbone([Chain() for _ in range(exits)], [Tap(k, head) for k, head in enumerate(heads)])
    network = Network(backbone, parts, {"name": "linear", "classes": classes, "input_shape": list(input_shape)})
    with torch.no_grad():
        for k, head in enumerate(heads):
            head[1].weight.copy_(weights[k])
            head[1].bias.copy_(torch.zeros(classes) if biases is None else torch.as_tensor(biases)[k])
    return network.eval()


def random_batch(n=8, input_shape=(1, 2, 2), classes=2, seed=0):
    """(float images in [0, 1] with some pixels at the ends, labels)."""
    generator = randomness.generator(seed, "test images")
    images = (torch.rand(n, *input_shape, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    return images, torch.randint(classes, (n,), generator=generator)


def worst_case(images, labels, weight, epsilon):
    """The point of the ball, cut to [0, 1], with the smallest margin of a two-class linear exit (2, pixels)."""
    direction = (weight[labels] - weight[1 - labels]).view_as(images).sign()
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    return torch.where(direction > 0, low, high)
