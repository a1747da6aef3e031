"""What a training does with the weights besides following the loss: its optimiser, a penalty, a step after each step.

`Unconstrained` is ordinary training. A method that holds the weights to a structure (`sparsity`, `admm`) subclasses it
and is asked for by the recipe's `constraint`, so that it runs inside the one training loop.
"""

import dataclasses

import torch
from torch import Tensor

from lib import checkpoints
from lib.models.network import Network
from lib.training.recipe import Recipe


class Unconstrained:
    """SGD with momentum and weight decay on all parameters, and nothing else."""

    def __init__(self, network: Network, recipe: Recipe, rate: Tensor):
        self.network = network
        self.optimiser = self.make_optimiser(recipe, rate)

    def make_optimiser(self, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameter_groups(self.network, recipe), lr=rate, momentum=recipe.momentum,
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
        """Own state that a resumed training needs."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""


def parameter_groups(network: Network, recipe: Recipe) -> list[dict]:
    """All parameters for the optimiser; trained noise scales apart, with a weight decay of their own (PNI)."""
    named = list(network.named_parameters())
    groups = [{"params": [p for name, p in named if not name.endswith("alpha")]},
              {"params": [p for name, p in named if name.endswith("alpha")], "weight_decay": recipe.alpha_decay}]
    return [group for group in groups if group["params"]]


def continued(recipe: Recipe, network: Network, *, inherit: bool = True, **changes) -> Recipe:
    """`recipe` with the architecture of `network` and, unless `inherit` is off, starting from its weights.

    Hand the same network to `loop.fit(..., start=network)`: the recipe holds the digest of its weights.
    changes: further fields.
    """
    start = checkpoints.digest(network.state_dict()) if inherit else None
    return dataclasses.replace(recipe, network=dict(network.config), start=start, **changes)
