"""Networks that are broken in the ways that make a robust number look good, made of a sound one."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Changed(nn.Module):
    """A head or stage whose output goes through `change`."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x, at):
        return self.change(self.inner(x, at))


class First(nn.Module):
    def __init__(self, change, stage):
        super().__init__()
        self.change, self.stage = change, stage

    def forward(self, x, at):
        return self.stage(self.change(x), at)


def heads(network, change):
    network.heads = nn.ModuleList(Changed(head, change) for head in network.heads)


def quantised(network):
    network.stages[0] = First(lambda x: (x * 8).round() / 8, network.stages[0])


def batch_statistics(network):
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


BROKEN = {
    "saturated logits": lambda network: heads(network, lambda z: 1000 * z),
    "quantised input": quantised,
    "random answers": lambda network: heads(network, lambda z: z + 0.3 * torch.randn_like(z)),
    "dropout at test": lambda network: heads(network, lambda z: F.dropout(z, 0.2, training=True)),
    "batch statistics at test": batch_statistics,
}


def broken(network, how):
    """A copy of a sound network, broken; `how` is the name it has to be flagged by."""
    made = copy.deepcopy(network)
    BROKEN[how](made)
    return made.eval()
