"""Weight averaging: the exponential mean of the weights over the last part of a training, which then is the result."""

import copy

import torch
from torch import Tensor

from lib.models.network import Network

BEGINS = 2 / 3  # of the iterations: averaged from the start, early weights weigh on a short training's result for long
BATCHES = 30  # by which batch norm's statistics, which came from the raw weights, are moved to the averaged ones


class Average:
    """Follows `network` from two thirds of `total` iterations on, with decay min(`decay`, (1 + t) / (10 + t)) at its
    t-th step (so that the first steps of the average are not its whole); None: never."""

    def __init__(self, network: Network, decay: float | None, total: int):
        self.live, self.decay = network, decay
        self.first = total + 1 if decay is None else max(1, round(BEGINS * total))
        self.network: Network | None = None
        self.estimated = False

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Follows the optimiser's step number `step` (from 1)."""
        if step < self.first:
            return
        self.estimated = False
        if self.network is None:
            self.network = copy.deepcopy(self.live)
            return
        seen = step - self.first
        weight = 1 - min(self.decay, (1 + seen) / (10 + seen))
        torch._foreach_lerp_(list(self.network.parameters()), list(self.live.parameters()), weight)

    def estimate(self, passes) -> Network:
        """The averaged network with batch norm statistics of its own: `passes(network, k)` makes a training step's
        forward passes, without an update, on the k-th batch."""
        if not self.estimated:
            for own, live in zip(self.network.buffers(), self.live.buffers(), strict=True):
                own.copy_(live)
            self.network.train()
            for k in range(BATCHES):
                passes(self.network, k)
            self.estimated = True
        return self.network

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed training needs."""
        return {} if self.network is None else self.network.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        if tensors:
            self.network = copy.deepcopy(self.live)
            self.network.load_state_dict(tensors)
