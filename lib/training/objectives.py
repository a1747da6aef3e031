"""Training objectives: (network in train mode, images, labels, context) -> (loss to descend, what to report).

A method joins by adding its function to OBJECTIVES. Everything that an objective draws comes from `context.generator`.
`float_`, `oat` and `pni` make networks that serve many operating points after one training; `at_every_width` makes
FLOAT-slim, OATS and plain slimmable networks of functions that train one width.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib.attacks import forms, steps
from lib.attacks.steps import Threat
from lib.models.layers import deviations_held
from lib.models.network import Network
from lib.models.view import VIEWS, AttackView
from lib.operating_point import OperatingPoint

if TYPE_CHECKING:
    from lib.training.recipe import Recipe  # which checks its objective against those of this module

Metrics = dict[str, Tensor]  # 0-d tensors on the device, all means over the batch


@dataclass(frozen=True)
class Context:
    """What one training step knows besides its batch.

    threat: this step's attack (weaker while epsilon still rises).  epoch: how many are behind this step.
    generator(purpose): this step's stream of that name.  width: the one to run where the network has several.
    view: what is attacked in place of the network, after a refresh; None = the network itself.
    """

    recipe: "Recipe"
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


def weighted(logits: Tensor, labels: Tensor, recipe: "Recipe") -> Tensor:
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


def view_of(network: Network, recipe: "Recipe") -> AttackView | None:
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
           recipe: "Recipe") -> tuple[Tensor, Metrics]:
    """Clean and adversarial loss mixed by the recipe's `adversarial_weight`."""
    share = recipe.adversarial_weight
    loss = (1 - share) * weighted(clean_logits, clean_labels, recipe) + share * weighted(logits, labels, recipe)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(clean_logits, clean_labels),
                  "adversarial_accuracy": accuracy(logits, labels)}


def at_every_width(objective: Callable[..., tuple[Tensor, Metrics]], network: Network, images: Tensor, labels: Tensor,
                   context: Context) -> tuple[Tensor, Metrics]:
    """`objective` on the same batch at every trained width, widest first; losses, so gradients, are summed.

    Reported is the sum of the losses and what else the widest one reports (FLOAT's Algorithm 2, OATS, slimmable).
    """
    with deviations_held(network):  # the weights change only after the step
        if len(network.widths) == 1:
            return objective(network, images, labels, context)
        results = [objective(network, images, labels, dataclasses.replace(context, width=width))
                   for width in network.widths]
    loss = torch.stack([loss for loss, _ in results]).sum()
    return loss, results[0][1] | {"loss": loss.detach()}


def float_(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """FLOAT's Algorithm 1: half of the batch clean at (no noise, BN_C), the other, disjoint half attacked and trained
    at (full noise, BN_A); loss 0.5 L_C + 0.5 L_A.

    A network with dual batch norm and no noise is the control that the paper lacks: the same steps without eta.
    """
    accurate, robust = (point.replace(width=context.width) for point in network.ends())
    (clean, images), (clean_labels, labels) = halves(images), halves(labels)
    clean_logits = network(clean, accurate, context.stream("clean"))
    adversarial = attacked(network, images, labels, context, robust)
    logits = network(adversarial, robust, context.stream("adversarial"))
    return hybrid(clean_logits, clean_labels, logits, labels, context.recipe)


def sample_lambdas(network: Network, batch: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """(OAT's lambda per image, how many are 0): ceil(batch / |S|) zeros come first, then uniform draws of the rest."""
    known, zeros = network.code_lambdas, math.ceil(batch / len(network.code_values))
    behind_zero = torch.randint(1, len(known), (batch - zeros,), generator=generator, device=generator.device)
    drawn = known[(network.code_values.index(0.0) + behind_zero) % len(known)]
    return torch.cat([known.new_zeros(zeros), drawn]), zeros


def oat(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """Once-for-all adversarial training (Wang et al. 2020): every image carries its own lambda as a FiLM code.

    Clean pass on the whole batch, attack and adversarial pass on the images with lambda > 0 alone; loss is the mean of
    (1 - lambda) l_C + lambda l_A. Batch norm is routed by lambda (0: BN_C), in both passes, as in the authors' code.
    All widths of OATS see the same lambdas.
    """
    lambdas, zeros = sample_lambdas(network, len(images), context.generator("lambdas"))
    point = context.point(code=lambdas[zeros:])
    clean_logits = network(images, context.point(code=lambdas), context.stream("clean"))
    adversarial = attacked(network, images[zeros:], labels[zeros:], context, point)
    logits = network(adversarial, point, context.stream("adversarial"))
    smoothing = context.recipe.label_smoothing
    clean_losses = steps.per_sample(clean_logits[-1], labels, smoothing=smoothing)
    adversarial_losses = steps.per_sample(logits[-1], labels[zeros:], smoothing=smoothing)
    loss = (((1 - lambdas) * clean_losses).sum() + (lambdas[zeros:] * adversarial_losses).sum()) / len(images)
    return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(clean_logits[:, :zeros], labels[:zeros]),
                  "adversarial_accuracy": accuracy(logits, labels[zeros:])}


def pni(network: Network, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Metrics]:
    """Parametric noise injection (He et al. 2019): 0.5 CE(clean) + 0.5 CE(adversarial) on the full batch, always noisy.

    The attack aims away from the network's own prediction on the clean pass, so that no label leaks; the loss uses the
    true labels. The recipe's first `clean_epochs` epochs train on clean images alone.
    """
    if context.epoch < context.recipe.clean_epochs:
        return standard(network, images, labels, context)
    clean_logits = network(images, context.point(), context.stream("clean"))
    adversarial = attacked(network, images, clean_logits[-1].detach().argmax(-1), context)
    logits = network(adversarial, context.point(), context.stream("adversarial"))
    return hybrid(clean_logits, labels, logits, labels, context.recipe)


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Metrics]]] = {
    "standard": standard, "rdi": rdi, "pgd_at": pgd_at, "float": float_, "oat": oat, "pni": pni}
