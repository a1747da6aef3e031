"""What a network costs, in both conventions: as the paper counts, and as a deployed network pays.

Counted by `torch.utils.flop_counter` (2 FLOPs = 1 multiply-accumulate) on one image, part by part.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.models.factors import composed
from lib.models.network import Network
from lib.operating_point import OperatingPoint

MEBI = 2**20


@dataclass(frozen=True)
class ExitCost:
    """One image leaving at one exit.

    paper_macs: convolutions to the tap and of this exit's own head (Hu et al. charge no earlier head, no linear layer).
    paper_mflops: the same / 2^20, the paper's "MFlops" (which it cuts to two decimals).
    cumulative_conv_macs: convolutions of the backbone and of every head on the way.
    cumulative_macs: convolutions and linear layers of the backbone and of every head on the way: the true cost.
    """

    paper_macs: int
    paper_mflops: float
    cumulative_conv_macs: int
    cumulative_macs: int


@dataclass(frozen=True)
class Cost:
    """parameters of the whole network; macs of one image through everything (convolutions and linear layers)."""

    parameters: int
    macs: int
    exits: tuple[ExitCost, ...]


def cost(network: Network, point: OperatingPoint | None = None) -> Cost:
    """Count one image at an operating point (its width and disabled exits count; thresholds do not).

    Factors are composed once before deployment; the network is counted with its composed weights.
    """
    network = composed(network)
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    at = network.conditions(point, torch.Generator(device=device).manual_seed(0))
    enabled = set(point.exits) | {network.num_exits} if point and point.exits is not None else None
    x = torch.zeros(1, *network.input_shape, device=device)
    backbone, heads, exits = np.zeros(2, int), np.zeros(2, int), []  # MACs of convolutions, and with linear layers
    with torch.no_grad():
        for k, head in enumerate(network.heads):
            run, x = _count(lambda x=x, k=k: network.advance(x, k, at))
            own, _ = _count(lambda x=x, head=head: head(x, at))
            backbone += run
            heads += own if enabled is None or k + 1 in enabled else 0
            paper = int(backbone[0]) + own[0]
            exits.append(ExitCost(paper, paper / MEBI, *(backbone + heads).tolist()))
    network.train(was_training)
    return Cost(network.weight_count(), exits[-1].cumulative_macs, tuple(exits))


def trunk_and_heads(network: Network, point: OperatingPoint | None = None) -> tuple[list[int], list[int]]:
    """True MACs (exits,) each: to each tap, the last exit's head with it; of each earlier head by itself (last: 0)."""
    last = (network.num_exits,) if network.num_exits > 1 else None
    every, bare = ([e.cumulative_macs for e in cost(network, (point or OperatingPoint()).replace(exits=opened)).exits]
                   for opened in (None, last))
    return bare, np.diff(np.subtract(every, bare), prepend=0).tolist()


def second_bank(network: Network) -> int:
    """Parameters of the second set of batch norms, 0 where there is one."""
    return sum(p.numel() for m in network.modules() if getattr(m, "banks", 1) == 2
               for norm in m.norms[1::2] for p in norm.parameters())


def _count(run) -> tuple[tuple[int, int], torch.Tensor]:
    """((convolution MACs, convolution + linear MACs), what `run` returned)."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    per_operator = counter.get_flop_counts().get("Global", {})  # empty where nothing was multiplied
    conv = sum(flops for operator, flops in per_operator.items() if "conv" in str(operator))
    return (conv // 2, sum(per_operator.values()) // 2), result
