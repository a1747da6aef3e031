"""Training objectives: (network in train mode, images, labels, context) -> (loss to descend, what to report).

A method joins by adding its function to OBJECTIVES. Everything that an objective draws comes from `context.generator`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attacks import forms, steps
from lib.attacks.steps import Threat
from lib.models.network import Network
from lib.training.recipes import Recipe

Metrics = dict[str, Tensor]  # 0-d tensors on the device, all means over the batch


@dataclass(frozen=True)
class Context:
    """What one training step knows besides its batch.

    threat: this step's attack (weaker while epsilon still rises).  epoch: how many are behind this step.
    generator(purpose): this step's stream of that name.
    """

    recipe: Recipe
    threat: Threat | None
    epoch: int
    generator: Callable[[str], torch.Generator]


def weighted(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """sum_i w_i CE_i of logits (exits, N, classes): each exit's mean cross-entropy by its weight (Eq. 1), 0-d."""
    each = steps.per_sample(logits, labels).mean(1)
    if recipe.exit_weights is None:
        return each.sum()
    return sum(weight * loss for weight, loss in zip(recipe.exit_weights, each, strict=True))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the batch that the last exit gets right, 0-d."""
    return (logits[-1].detach().argmax(-1) == labels).float().mean()


def attacked(network: Network, images: Tensor, labels: Tensor, context: Context) -> Tensor:
    """The recipe's adversarial images of this batch, against the current weights."""
    return forms.craft(context.recipe.defence, network, images, labels, context.threat,
                       generator=context.generator("attack"), mode=context.recipe.attack_mode)


def standard(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """No attack: sum_i w_i CE_i(clean)."""
    logits = network(images, generator=context.generator("clean"))
    loss = weighted(logits, labels, context.recipe)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(logits, labels)}


def rdi(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """RDI-Nets (Eq. 1 as in the released code): sum_i w_i (0.5 CE_i(clean) + 0.5 CE_i(adversarial)).

    The attack comes first, then two separate forward passes, clean before adversarial: batch norm takes the statistics
    of each batch by itself, and the adversarial ones last.
    """
    adversarial = attacked(network, images, labels, context)
    clean_logits = network(images, generator=context.generator("clean"))
    logits = network(adversarial, generator=context.generator("adversarial"))
    return hybrid(clean_logits, logits, labels, context.recipe)


def pgd_at(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """PGD-AT as in OAT's code: (1 - lambda) CE(clean) + lambda CE(adversarial), the adversarial pass before the clean.

    lambda is the recipe's `adversarial_weight`; at 0 nothing is attacked, at 1 the clean pass still moves batch norm.
    """
    if context.recipe.adversarial_weight == 0:
        return standard(network, images, labels, context)
    logits = network(attacked(network, images, labels, context), generator=context.generator("adversarial"))
    clean_logits = network(images, generator=context.generator("clean"))
    return hybrid(clean_logits, logits, labels, context.recipe)


def hybrid(clean_logits: Tensor, logits: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Metrics]:
    """Clean and adversarial loss mixed by the recipe's `adversarial_weight`."""
    share = recipe.adversarial_weight
    loss = (1 - share) * weighted(clean_logits, labels, recipe) + share * weighted(logits, labels, recipe)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(clean_logits, labels),
                  "adversarial_accuracy": accuracy(logits, labels)}


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Metrics]]] = {"standard": standard, "rdi": rdi, "pgd_at": pgd_at}
