"""What is attacked and judged: a network in a named state, and its decision, as logits that an attack can climb.

Batch norm and dropout are a choice, never a side effect:

    eval     running statistics, no dropout; what is deployed, and what most later work attacks
    batch    batch statistics and dropout, buffers untouched: the released trainer's gradients, so the same weights
    authors  train mode as in the released trainer: every attack pass also moves running means, variances and counters
"""

import math
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib import WorkbookError
from lib.models.exits import effective_thresholds, routed
from lib.models.network import Network
from lib.operating_point import OperatingPoint

MODES = ("eval", "batch", "authors")


@contextmanager
def attack_mode(network: nn.Module, mode: str):
    """Put `network` into `mode` for the length of a `with` block; every module's own state returns afterwards.

    Raises WorkbookError for an unknown mode.
    """
    if mode not in MODES:
        raise WorkbookError(f"unknown attack mode '{mode}'; choose from {', '.join(MODES)}")
    training = [(module, module.training) for module in network.modules()]
    tracked = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        network.train(mode != "eval")
        if mode == "batch":
            for norm in tracked:
                norm.track_running_stats = False  # in train mode: same outputs, and no buffer is written
        yield network
    finally:
        for norm in tracked:
            norm.track_running_stats = True
        for module, state in training:
            module.training = state


class Decision(nn.Module):
    """Images (N, C, H, W) -> (N, classes), whose largest entry is what is decided at `point`.

    what: "routed", the logits of the exit that fires (default where the point has thresholds); an exit's number from 1
    (default else: the last); "mean", the log of the exits' mean probabilities.  draws: above 1, the log of the mean
    probabilities over the frozen noise draws 0 ... draws - 1.  generator: for fresh noise.
    Raises WorkbookError for a decision that the network does not have, for thresholds or exits that it would not read,
    and for draws of what has no fresh noise.
    """

    def __init__(self, network: Network, point: OperatingPoint | None = None, what: str | int | None = None, *,
                 draws: int = 1, generator: torch.Generator | None = None):
        super().__init__()
        point, last = point or OperatingPoint(), network.num_exits
        network.check_point(point)
        gates = point.used() & {"exits", "thresholds"}
        what = what or ("routed" if gates else last)
        if what not in ("routed", "mean", *range(1, last + 1)):
            raise WorkbookError(f"unknown decision '{what}'; choose routed, mean, or an exit from 1 to {last}")
        if gates and what != "routed":
            raise WorkbookError(f"decision '{what}' reads no {' and '.join(sorted(gates))}; leave them out, or decide "
                                "'routed'")
        if draws > 1 and not fresh(network, point):
            raise WorkbookError(f"{draws} draws of a point without fresh noise are all the same; leave draws at 1")
        self.network, self.point, self.what, self.draws, self.generator = network, point, what, draws, generator
        self.thresholds = effective_thresholds(point, last) if what == "routed" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.draws == 1:
            return self.of(self.network(x, self.point, self.generator))
        return _mean(torch.stack([self.of(self.network(x, self.point.replace(draw=d))) for d in range(self.draws)]))

    def of(self, logits: Tensor) -> Tensor:
        """The decision from what all exits say: (exits, N, classes) -> (N, classes)."""
        if self.what == "mean":
            return _mean(logits)
        if self.what != "routed":
            return logits[self.what - 1]
        return routed(logits, self.thresholds)[0]


def fresh(network: Network, point: OperatingPoint) -> bool:
    """Whether the network draws new noise at every pass there."""
    return network.conditions(point).fresh


def _mean(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
