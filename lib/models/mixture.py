"""Two networks as one that answers with the weighted mean of their probabilities: a knob that needs no training.

The plain form of adaptive smoothing (Bai et al., arXiv 2301.12554): accurate where the standard network rules, robust
where the robust one does, at the cost of both.
"""

import math

import torch
from torch import Tensor, nn

from lib import WorkbookError
from lib.models.network import Network
from lib.models.parts import Backbone, Parts, Tap


class Both(nn.Module):
    """Images (N, C, H, W) -> last logits of both networks (2, N, classes)."""

    def __init__(self, standard: Network, robust: Network):
        super().__init__()
        self.networks = nn.ModuleList([standard, robust])

    def forward(self, x: Tensor, at) -> Tensor:
        return torch.stack([self.answer(network, x, at) for network in self.networks])

    def answer(self, network: Network, x: Tensor, at) -> Tensor:
        for exit in range(network.num_exits):
            x = network.advance(x, exit, at)
        return network.heads[-1](x, at)


class MeanOfProbabilities(nn.Module):
    """Logits (2, N, classes) -> the log of (1 - weight) p_0 + weight p_1."""

    def __init__(self, weight: float):
        super().__init__()
        self.logs = (math.log(1 - weight), math.log(weight))

    def forward(self, logits: Tensor, at) -> Tensor:
        standard, robust = logits.float().log_softmax(-1)
        return torch.logaddexp(standard + self.logs[0], robust + self.logs[1])


def mixture(standard: Network, robust: Network, weight: float) -> Network:
    """One network of both, in eval mode; attacks, costs and records see all of it. weight: the robust one's share.

    Raises WorkbookError when they take other images or classes, have knobs of their own, or weight is not in (0, 1).
    """
    if not 0 < weight < 1:
        raise WorkbookError(f"weight {weight} is not between 0 and 1; at the ends one of the networks alone is meant")
    if (standard.input_shape, standard.classes) != (robust.input_shape, robust.classes):
        raise WorkbookError(f"{standard.config['name']} and {robust.config['name']} take different images or classes")
    names = {network.class_names for network in (standard, robust) if network.class_names}
    if len(names) > 1:
        raise WorkbookError("the two networks number their classes differently; mix networks of the same dataset")
    for network in (standard, robust):
        if network.knobs - {"exits", "thresholds"}:
            raise WorkbookError(f"{network.config['name']} ({network.conditioning}) has knobs of its own; mix networks "
                                "without any")
    config = {"name": "mixture", "weight": weight, "standard": standard.config, "robust": robust.config,
              "classes": standard.classes, "input_shape": standard.input_shape}
    stages = Backbone([Both(standard, robust)], [Tap(0, MeanOfProbabilities(weight))])
    mixed = Network(stages, Parts(), config).eval()
    mixed.class_names = next(iter(names), None)
    return mixed
