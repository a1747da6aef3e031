"""Objectives whose network serves many operating points after one training: FLOAT, its control, OAT, PNI; slim or not.

FLOAT and its control differ only in the network (noise or none behind the same dual batch norm), so share `float_`.
Each function trains one width; `at_every_width` makes FLOAT-slim, OATS and plain slimmable networks of them.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.attacks import steps
from lib.models.layers import deviations_held
from lib.models.network import Network
from lib.training import losses
from lib.training.losses import Context, Metrics, accuracy, attacked, halves, hybrid, weighted


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
    clean_logits = network(images, context.point(), context.stream("clean"))
    if context.epoch < context.recipe.clean_epochs:
        loss = weighted(clean_logits, labels, context.recipe)
        return loss, {"loss": loss.detach(), "clean_accuracy": accuracy(clean_logits, labels)}
    adversarial = attacked(network, images, clean_logits[-1].detach().argmax(-1), context)
    logits = network(adversarial, context.point(), context.stream("adversarial"))
    return hybrid(clean_logits, labels, logits, labels, context.recipe)


OBJECTIVES = losses.OBJECTIVES | {"float": float_, "oat": oat, "pni": pni}
