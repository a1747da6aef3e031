"""Sanity checks of an attack and of the network it is run on: a robustness number is worth what these say.

Each returns a `Check`. The ids S1 ... name the rules of evaluating robustness (Carlini et al. 2019; Tramer et al. 2020;
Pintor et al. 2022) that they automate: run them on at least 256 images, on 64 in a quick test.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib import randomness
from lib.attacks import eot, forms
from lib.attacks.modes import attack_mode
from lib.attacks.steps import Threat
from lib.models.exits import decide, effective_thresholds, entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint


class Check(NamedTuple):
    """What was measured, the bound it was held against, and whether it held."""

    value: float
    threshold: float
    passed: bool


@dataclass(frozen=True)
class Subject:
    """A network at an operating point, one attack form on it, and the images to try it on.

    The decision scored is the routed one where the point has thresholds, else the last exit's.
    """

    network: Network
    images: Tensor
    labels: Tensor
    form: str = "main"
    point: OperatingPoint = OperatingPoint()
    mode: str = "eval"
    seed: int = 0

    def stream(self, *labels: str | int) -> torch.Generator:
        return randomness.generator(self.seed, "check", *labels, device=self.images.device)

    def attack(self, threat: Threat, restart: int = 0) -> Tensor:
        return forms.craft(self.form, self.network, self.images, self.labels, threat, point=self.point, mode=self.mode,
                           generator=self.stream("attack", self.form, restart))

    @torch.no_grad()
    def correct(self, images: Tensor) -> Tensor:
        """Which images (N,) the deployed network classifies rightly, in eval mode."""
        with attack_mode(self.network, "eval"):
            logits = self.network(images, self.point, self.stream("decision"))
        last = len(logits) - 1
        exit = torch.full_like(self.labels, last)
        if last and self.point.thresholds is not None:
            exit = decide(entropy(logits), effective_thresholds(self.point, len(logits)))
        return logits[exit, torch.arange(len(self.labels), device=images.device)].argmax(-1) == self.labels

    def broken(self, threat: Threat, restarts: int = 1) -> Tensor:
        """Which images (N,) fall in at least one restart."""
        return torch.stack([~self.correct(self.attack(threat, r)) for r in range(restarts)]).any(0)


def budget(images: Tensor, adversarial: Tensor, threat: Threat) -> Check:
    """S1: the largest l_inf distance stays within the threat's reach, in [0, 1], and nothing is NaN."""
    distance = (adversarial - images).abs().max().item()
    legal = bool(((adversarial >= 0) & (adversarial <= 1)).all())
    return Check(distance, threat.reach + 1e-6, legal and distance <= threat.reach + 1e-6)


def zero_budget(subject: Subject, threat: Threat) -> Check:
    """S2: with epsilon 0 not one image's verdict changes (value: how many do)."""
    nothing = replace(threat, epsilon=0.0)
    changed = (subject.broken(nothing) == subject.correct(subject.images)).sum().item()
    return Check(changed, 0, changed == 0)


def unbounded(subject: Subject, steps: int = 200, restarts: int = 3) -> Check:
    """S3: with the whole cube to move in (epsilon 1) PGD breaks every image; else its gradients or its loss fail."""
    accuracy = 1 - _share(subject.broken(Threat(1.0, 2.5 / steps, steps), restarts))
    return Check(accuracy, 0.0, accuracy == 0)


def fgsm_within_pgd(subject: Subject, threat: Threat, restarts: int = 3) -> Check:
    """S7: at most 2 % of the images fall to one step but not to PGD's restarts, and one step is not the stronger."""
    one, many = subject.broken(replace(threat, algorithm="fgsm")), subject.broken(threat, restarts)
    only_one = _share(one & ~many)
    return Check(only_one, 0.02, only_one <= 0.02 and bool(one.sum() <= many.sum()))


def beats_noise(subject: Subject, threat: Threat, draws: int = 100) -> Check:
    """S8: of the images PGD breaks, random points of its ball, corners too, break at most half in `draws` tries."""
    generator = subject.stream("noise")
    right = subject.correct(subject.images)
    fell = torch.zeros_like(right)
    for i in range(draws):
        noise = torch.empty_like(subject.images).uniform_(-threat.epsilon, threat.epsilon, generator=generator)
        noise = noise if i % 2 else noise.sign() * threat.epsilon
        fell |= ~subject.correct((subject.images + noise).clamp(0, 1))
    ratio = (fell & right).sum().item() / max(1, (subject.broken(threat) & right).sum().item())
    return Check(ratio, 0.5, ratio <= 0.5)


def gradient_health(subject: Subject, draws: int = 1) -> Check:
    """S11: on fewer than 1 % of the images is the input gradient exactly zero or not finite, for either loss.

    Looks through the form's own loss, so "gate_aware" looks through the gate; for max_average at the mean of the exits.
    """
    form = forms.find("average" if subject.form == "max_average" else subject.form, subject.network.num_exits)
    worst = 0.0
    for loss in ("ce", "margin"):
        threat = Threat(1.0, 1.0, 1, loss=loss)
        target = forms.Target.of(subject.network, subject.images, subject.labels, threat, subject.point, "eval", None)
        with attack_mode(subject.network, "eval"):
            gradient = eot.gradient(target.loss(form, subject.stream(loss)), subject.images, draws).flatten(1)
        worst = max(worst, _share((gradient == 0).all(1) | ~gradient.isfinite().all(1)))
    return Check(worst, 0.01, worst < 0.01)


def saturation(subject: Subject) -> Check:
    """S11: on fewer than 1 % of the images is the last exit so sure (p_y > 1 - 1e-6) that cross-entropy goes flat."""
    with torch.no_grad(), attack_mode(subject.network, "eval"):
        logits = subject.network(subject.images, subject.point, subject.stream("saturation"))[-1]
    sure = _share(logits.double().softmax(-1).gather(1, subject.labels[:, None]) > 1 - 1e-6)
    return Check(sure, 0.01, sure < 0.01)


def breaks_undefended(subject: Subject, threat: Threat) -> Check:
    """S15: on a network trained without any defence the attack leaves at most 1 % right, or it is at fault."""
    accuracy = 1 - _share(subject.broken(threat))
    return Check(accuracy, 0.01, accuracy <= 0.01)


def notices_masking(subject: Subject, factor: float = 1e4) -> Check:
    """S15: the same network with every logit times `factor`, a classic masked gradient, must fail `gradient_health`."""
    masked = copy.deepcopy(subject.network)
    masked.heads = nn.ModuleList(_Scaled(head, factor) for head in masked.heads)
    value, threshold, healthy = gradient_health(replace(subject, network=masked))
    return Check(value, threshold, not healthy)


def same_alone(subject: Subject, images: int = 64) -> Check:
    """S16: logits do not depend on the pass or the batch: the first `images` together, again, and one by one.

    The network is taken in the mode it is in, so that batch statistics left on are caught (its buffers stay as they
    are). Value: largest difference, relative to the largest logit where that is above 1.
    """
    x = subject.images[:images]

    @torch.no_grad()
    def logits(batch: Tensor) -> Tensor:
        return subject.network(batch, subject.point, subject.stream("logits"))

    with attack_mode(subject.network, "batch" if subject.network.training else "eval"):
        together, again = logits(x), logits(x)
        alone = torch.cat([logits(image[None]) for image in x], dim=1)
    repeat, batch = (together - again).abs().max().item(), (together - alone).abs().max().item()
    difference = max(repeat, batch) / max(1.0, together.abs().max().item())
    return Check(difference, 1e-4, repeat == 0 and math.isfinite(difference) and difference <= 1e-4)


class _Scaled(nn.Module):
    def __init__(self, head: nn.Module, factor: float):
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, x, at):
        return self.factor * self.head(x, at)


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
