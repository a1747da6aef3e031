"""In which state a network is attacked: batch norm and dropout are a named choice, never a side effect.

    eval     running statistics, no dropout; what is deployed, and what most later work attacks
    batch    batch statistics and dropout, buffers untouched: the released trainer's gradients, so the same weights
    authors  train mode as in the released trainer: every attack pass also moves running means, variances and counters
"""

from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib import WorkbookError

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
