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
from lib.models.view import VIEWS, AttackView
from lib.operating_point import OperatingPoint
from lib.training.recipes import Recipe

Metrics = dict[str, Tensor]  # 0-d tensors on the device, all means over the batch


@dataclass(frozen=True)
class Context:
    """What one training step knows besides its batch.

    threat: this step's attack (weaker while epsilon still rises).  epoch: how many are behind this step.
    generator(purpose): this step's stream of that name.  width: the one to run where the network has several.
    view: what is attacked in place of the network, after a refresh; None = the network itself.
    """

    recipe: Recipe
    threat: Threat | None
    epoch: int
    generator: Callable[[str], torch.Generator]
    width: float | None = None
    view: AttackView | None = None

    def point(self, **knobs) -> OperatingPoint:
        """An operating point at this width."""
        return OperatingPoint(width=self.width, **knobs)

    def stream(self, purpose: str) -> torch.Generator:
        """This step's stream of that name; every width has streams of its own."""
        return self.generator(purpose if self.width is None else f"{purpose} {self.width:g}")


def weighted(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """sum_i w_i CE_i of logits (exits, N, classes): each exit's mean cross-entropy by its weight (Eq. 1), 0-d."""
    each = steps.per_sample(logits, labels, smoothing=recipe.label_smoothing).mean(1)
    if recipe.exit_weights is None:
        return each.sum()
    return sum(weight * loss for weight, loss in zip(recipe.exit_weights, each, strict=True))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the batch that the last exit gets right, 0-d."""
    return (logits[-1].detach().argmax(-1) == labels).float().mean()


def attacked(network: Network, images: Tensor, labels: Tensor, context: Context,
             point: OperatingPoint | None = None) -> Tensor:
    """The recipe's adversarial images of these, against the current weights at `point`."""
    target = network if context.view is None else context.view.refresh()
    return forms.craft(context.recipe.attack_form, target, images, labels, context.threat,
                       point=point or context.point(), generator=context.stream("attack"),
                       mode=context.recipe.attack_mode)


def view_of(network: Network, recipe: Recipe) -> AttackView | None:
    """The copy of the network that the recipe attacks, where it asks for one."""
    return None if recipe.attack_view is None else AttackView(network, VIEWS[recipe.attack_view])


def halves(batch: Tensor) -> tuple[Tensor, Tensor]:
    """(first half, second half), disjoint."""
    return batch[:len(batch) // 2], batch[len(batch) // 2:]


def standard(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """No attack: sum_i w_i CE_i(clean)."""
    logits = network(images, context.point(), context.stream("clean"))
    loss = weighted(logits, labels, context.recipe)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(logits, labels)}


def rdi(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """RDI-Nets (Eq. 1 as in the released code): sum_i w_i (0.5 CE_i(clean) + 0.5 CE_i(adversarial)).

    The attack comes first, then two separate forward passes, clean before adversarial: batch norm takes the statistics
    of each batch by itself, and the adversarial ones last.
    """
    adversarial = attacked(network, images, labels, context)
    clean_logits = network(images, context.point(), context.stream("clean"))
    logits = network(adversarial, context.point(), context.stream("adversarial"))
    return hybrid(clean_logits, labels, logits, labels, context.recipe)


def pgd_at(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """PGD-AT as in OAT's code: (1 - lambda) CE(clean) + lambda CE(adversarial), the adversarial pass before the clean.

    lambda is the recipe's `adversarial_weight`; at 0 nothing is attacked, at 1 the clean pass still moves batch norm.
    Where the recipe splits in half, the first half of the batch is the clean one and only the other is attacked.
    """
    if context.recipe.adversarial_weight == 0:
        return standard(network, images, labels, context)
    clean, clean_labels = images, labels
    if context.recipe.split == "half":
        (clean, images), (clean_labels, labels) = halves(images), halves(labels)
    adversarial = attacked(network, images, labels, context)
    logits = network(adversarial, context.point(), context.stream("adversarial"))
    clean_logits = network(clean, context.point(), context.stream("clean"))
    return hybrid(clean_logits, clean_labels, logits, labels, context.recipe)


def hybrid(clean_logits: Tensor, clean_labels: Tensor, logits: Tensor, labels: Tensor,
           recipe: Recipe) -> tuple[Tensor, Metrics]:
    """Clean and adversarial loss mixed by the recipe's `adversarial_weight`."""
    share = recipe.adversarial_weight
    loss = (1 - share) * weighted(clean_logits, clean_labels, recipe) + share * weighted(logits, labels, recipe)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(clean_logits, clean_labels),
                  "adversarial_accuracy": accuracy(logits, labels)}


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Metrics]]] = {"standard": standard, "rdi": rdi, "pgd_at": pgd_at}
