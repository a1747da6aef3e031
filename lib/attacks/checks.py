"""Sanity checks of an attack and of the network it is run on: a robustness number is worth what these say.

Each returns a `Check`; `audit` runs those that every evaluation and recording carries. The ids S1 ... name the rules of
evaluating robustness (Carlini et al. 2019; Tramer et al. 2020; Pintor et al. 2022) that they automate.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib import randomness
from lib.attacks import eot, forms
from lib.attacks.decision import Decision
from lib.attacks.modes import attack_mode
from lib.attacks.steps import Threat
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
        decision = Decision(self.network, self.point, generator=self.stream("decision"))
        with attack_mode(self.network, "eval"):
            return decision(images).argmax(-1) == self.labels

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


def fgsm_within_pgd(subject: Subject, threat: Threat) -> Check:
    """S7: at most 2 % of the images fall to one step but not to PGD's restarts, and one step is not the stronger."""
    one, many = subject.broken(replace(threat, algorithm="fgsm")), subject.broken(threat, restarts=3)
    only_one = _share(one & ~many)
    return Check(only_one, 0.02, only_one <= 0.02 and bool(one.sum() <= many.sum()))


def gradient_health(subject: Subject, losses: tuple[str, ...] = ("ce", "margin")) -> Check:
    """S11: on fewer than 1 % of the images is the input gradient exactly zero or not finite, for any of the losses.

    Looks through the form's own loss, so "gate_aware" looks through the gate; for max_average at the mean of the exits.
    """
    form = forms.find("average" if subject.form == "max_average" else subject.form, subject.network.num_exits)
    worst = 0.0
    for loss in losses:
        threat = Threat(1.0, 1.0, 1, loss=loss)
        target = forms.Target.of(subject.network, subject.images, subject.labels, threat, subject.point, "eval", None)
        with attack_mode(subject.network, "eval"):
            gradient = eot.gradient(target.loss(form, subject.stream(loss)), subject.images).flatten(1)
        worst = max(worst, _share((gradient == 0).all(1) | ~gradient.isfinite().all(1)))
    return Check(worst, 0.01, worst < 0.01)


def saturation(subject: Subject) -> Check:
    """S11: on fewer than 1 % of the images is the last exit so sure (p_y > 1 - 1e-6) that cross-entropy goes flat."""
    with torch.no_grad(), attack_mode(subject.network, "eval"):
        logits = subject.network(subject.images, subject.point, subject.stream("saturation"))[-1]
    sure = _share(logits.double().softmax(-1).gather(1, subject.labels[:, None]) > 1 - 1e-6)
    return Check(sure, 0.01, sure < 0.01)


@torch.no_grad()
def differences(subject: Subject, images: int = 64) -> tuple[float, float]:
    """S16: how far logits of the first `images` move from pass to pass, and from one batch to one by one.

    Relative to the largest logit where that is above 1; infinite where they are not finite. The network is taken in the
    mode it is in, so that batch statistics left on are caught (its buffers stay as they are).
    """
    x = subject.images[:images]

    def logits(batch: Tensor) -> Tensor:
        return subject.network(batch, subject.point, subject.stream("logits"))

    with attack_mode(subject.network, "batch" if subject.network.training else "eval"):
        together, again = logits(x), logits(x)
        alone = torch.cat([logits(image[None]) for image in x], dim=1)
    gaps = torch.stack([(together - other).abs().max() for other in (again, alone)]) / together.abs().max().clamp(min=1)
    return tuple(gaps.nan_to_num(math.inf).tolist())


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
