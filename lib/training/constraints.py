"""What a training does with the weights besides following the loss: its optimiser, a penalty, a step after each step.

`Unconstrained` is ordinary training, `Averaged` ordinary training whose result is a mean of the weights. A method that
holds the weights to a structure (`sparsity`, `admm`) subclasses it and is asked for by the recipe's `constraint`, so
that it runs inside the one training loop.
"""

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from lib import checkpoints
from lib.models.network import Network
from lib.training.recipe import Recipe

BEGINS = 2 / 3  # of the iterations: averaged from the start, early weights weigh on a short training's result for long


class Unconstrained:
    """SGD with momentum and weight decay, of trained noise scales one of their own, and nothing else."""

    def __init__(self, network: Network, recipe: Recipe, rate: Tensor):
        self.network, named = network, list(network.named_parameters())
        groups = [{"params": [p for name, p in named if not name.endswith("alpha")]},
                  {"params": [p for name, p in named if name.endswith("alpha")], "weight_decay": recipe.alpha_decay}]
        self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]], lr=rate, momentum=recipe.momentum,
            nesterov=recipe.nesterov, weight_decay=recipe.weight_decay, fused=True)

    def penalty(self) -> Tensor | float:
        """Added to the loss of every step, 0-d."""
        return 0.0

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Follows the optimiser's step number `step` (from 1). Returns what is worth reporting, 0-d tensors."""
        return {}

    def deployed(self) -> Network:
        """The network that is validated, written and handed back: here the trained one itself."""
        return self.network

    def tensors(self) -> dict[str, Tensor]:
        """Own state that a resumed training needs, by names that no other part of a training has."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, found among all of a training."""


class Averaged(Unconstrained):
    """Hands back the exponential mean of the weights over the last part of a training of `total` iterations, once there
    is one: from two thirds on, with decay min(the recipe's, (1 + t) / (10 + t)) at its t-th step (so that the first
    steps of the average are not its whole).

    settle(network): forward passes in train mode that move batch norm's statistics, which came from the raw weights, to
    the averaged ones.
    """

    def __init__(self, network: Network, recipe: Recipe, rate: Tensor, *, total: int,
                 settle: Callable[[Network], None]):
        super().__init__(network, recipe, rate)
        self.decay, self.first, self.settle = recipe.average_decay, max(1, round(BEGINS * total)), settle
        self.mean: Network | None = None
        self.settled = False

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Tensor]:
        if step >= self.first:
            self.settled = False
            if self.mean is None:
                self.mean = copy.deepcopy(self.network)
            else:
                seen = step - self.first
                weight = 1 - min(self.decay, (1 + seen) / (10 + seen))
                torch._foreach_lerp_(list(self.mean.parameters()), list(self.network.parameters()), weight)
        return {}

    def deployed(self) -> Network:
        if self.mean is None:
            return self.network
        if not self.settled:
            for own, live in zip(self.mean.buffers(), self.network.buffers(), strict=True):
                own.copy_(live)
            self.settle(self.mean.train())
            self.settled = True
        return self.mean

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.mean is None else {f"average.{name}": t for name, t in self.mean.state_dict().items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        if kept := {n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")}:
            self.mean = copy.deepcopy(self.network)
            self.mean.load_state_dict(kept)


def continued(recipe: Recipe, network: Network, *, inherit: bool = True, **changes) -> Recipe:
    """`recipe` with the architecture of `network` and, unless `inherit` is off, starting from its weights.

    Hand the same network to `loop.fit(..., start=network)`: the recipe holds the digest of its weights.
    changes: further fields.
    """
    start = checkpoints.digest(network.state_dict()) if inherit else None
    return dataclasses.replace(recipe, network=dict(network.config), start=start, **changes)
