"""The audit that every evaluation and recording carries: what speaks against its robust numbers, each doubt by name.

    found = audit(network, images, labels, threat, point)
    found["flags"]   # [] where nothing does, else e.g. ["quantised input", "zero gradients"]

About the network: its answers have to be a function of the image alone, with gradients that lead somewhere. About the
attack: its steps have to fit its budget, its loss to grow, and nothing cheap may break much more than it does: more and
smaller steps, another start, the margin loss, transfer from the mean of the exits or from the point without noise,
Square. The decision judged is the one deployed at the point, routed where it has thresholds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lib import randomness
from lib.attacks import autoattack, forms, steps
from lib.attacks.decision import Decision, attack_mode, fresh
from lib.attacks.steps import Threat
from lib.models.network import Network, check_batch
from lib.operating_point import OperatingPoint

MORE = 0.1  # share of the images that other attacks may break on top; sound networks and PGD-20 stay below


class Check(NamedTuple):
    """What was measured, the bound it was held against, and whether it held."""

    value: float
    threshold: float
    passed: bool


@dataclass(frozen=True)
class Trial:
    """A network at an operating point, one attack form on it, and the images to try it on.

    The decision scored is the routed one where the point has thresholds, else the last exit's.
    """

    network: Network
    images: Tensor
    labels: Tensor
    form: str = "main"
    point: OperatingPoint = OperatingPoint()
    seed: int = 0

    def stream(self, *labels: str | int) -> torch.Generator:
        return randomness.generator(self.seed, "check", *labels, device=self.images.device)

    def attack(self, threat: Threat, restart: int = 0) -> Tensor:
        return forms.craft(self.form, self.network, self.images, self.labels, threat, point=self.point,
                           generator=self.stream("attack", self.form, restart))

    @torch.no_grad()
    def decided(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of what the deployed network decides, in eval mode."""
        decision = Decision(self.network, self.point, generator=self.stream("decision"))
        with attack_mode(self.network, "eval"):
            return decision(images)

    def correct(self, images: Tensor) -> Tensor:
        """Which images (N,) it decides rightly."""
        return self.decided(images).argmax(-1) == self.labels


Craft = Callable[[Trial], Tensor]


def audit(network: Network, images: Tensor, labels: Tensor, threat: Threat | None = None,
          point: OperatingPoint | None = None, *, right: Tensor | None = None, seed: int = 0, limit: int = 64,
          others: bool = True) -> dict:
    """{"images", "flags": [name of what failed], "checks": {name: {"value", "threshold", "passed"}}}, ready for JSON.

    images: floats in [0, 1], the first `limit` of them are looked at.  labels: int64 (N,).  threat: the attack whose
    numbers are to be trusted; without it only the network is audited.  right: (N,) bool, the images that are right in
    the evaluation's worst case (default: under the forms average and gate_aware).  others: whether other attacks are
    tried as well, which takes longest.  Raises WorkbookError as attacks do.
    """
    check_batch(network, images, labels)
    point = point or OperatingPoint()
    form = "main" if point.thresholds is None else "gate_aware"
    trial = Trial(network, images[:limit], labels[:limit], form, point, seed=seed)
    found = _of_network(trial)
    if threat is not None:
        found |= step_checks(threat) | _of_attack(trial, threat, None if right is None else right[:limit], others)
    return {"images": len(trial.images), "flags": failed(found),
            "checks": {name: {**check._asdict(), "passed": bool(check.passed)} for name, check in found.items()}}


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if not check.passed]


def step_checks(threat: Threat) -> dict[str, Check]:
    """Whether PGD's steps reach the budget (all of them, in epsilon) and do not jump over it (one of them)."""
    if threat.algorithm != "pgd" or threat.epsilon == 0:
        return {}
    one, every = (threat.step_size * n / threat.epsilon for n in (1, threat.steps))
    return {"steps cannot reach the budget": Check(every, 1.0, every > 1 - 1e-6),
            "steps jump over the budget": Check(one, 2.0, one < 2 + 1e-6)}


def _of_network(trial: Trial) -> dict[str, Check]:
    """Each name says what is wrong where its check fails."""
    with attack_mode(trial.network, "eval"), _dropout_seen() as dropped:
        repeat, batch = differences(trial)
    still, right = _unmoved(trial), trial.correct(trial.images)
    sure = _part(trial, right if right.any() else ~right)  # the margin loss is flat where a wrong class leads by far
    margin = flat_gradients(sure, "margin")
    ce = flat_gradients(sure, "ce") - margin
    return {"dropout at test" if dropped else "random answers": Check(repeat, 0.0, repeat == 0),
            "batch statistics at test": Check(batch, 1e-4, batch <= 1e-4 or repeat > 0),
            "quantised input": Check(still, 0.1, still < 0.1), "zero gradients": Check(margin, 0.01, margin < 0.01),
            "saturated logits": Check(ce, 0.01, ce < 0.01)}


@torch.no_grad()
def differences(trial: Trial, images: int = 16) -> tuple[float, float]:
    """How far logits of the first `images` move from pass to pass, and from one batch to one by one.

    Relative to the largest logit where that is above 1; infinite where they are not finite. The network is taken in the
    mode it is in, so that batch statistics left on are caught (its buffers stay as they are).
    """
    x = trial.images[:images]

    def logits(batch: Tensor) -> Tensor:
        return trial.network(batch, trial.point, trial.stream("logits"))

    with attack_mode(trial.network, "batch" if trial.network.training else "eval"):
        together, again = logits(x), logits(x)
        alone = torch.cat([logits(image[None]) for image in x], dim=1)
    gaps = torch.stack([(together - other).abs().max() for other in (again, alone)]) / together.abs().max().clamp(min=1)
    return tuple(gaps.nan_to_num(math.inf).tolist())


def flat_gradients(trial: Trial, loss: str) -> float:
    """Share of the images on which the input gradient of this loss is exactly zero or not finite.

    Looks through the form's own loss, so "gate_aware" looks through the gate; for max_average at the mean of the exits.
    """
    form = forms.find("average" if trial.form == "max_average" else trial.form, trial.network.num_exits)
    threat = Threat(1.0, 1.0, 1, loss=loss)
    target = forms.Target.of(trial.network, trial.images, trial.labels, threat, trial.point)
    with attack_mode(trial.network, "eval"):
        gradient = steps.expected_gradient(target.loss(form, trial.stream(loss)), trial.images).flatten(1)
    return ((gradient == 0).all(1) | ~gradient.isfinite().all(1)).double().mean().item()


@torch.no_grad()
def _unmoved(trial: Trial) -> float:
    """Share of images whose logits stay the same, bit for bit, when every pixel moves a little."""
    with attack_mode(trial.network, "eval"):
        here, there = (trial.network(x, trial.point, trial.stream("move"))
                       for x in (trial.images, trial.images + 1e-5))
    return (here == there).all(-1).all(0).double().mean().item()


@contextmanager
def _dropout_seen() -> Iterator[list]:
    """A list that fills where dropout acts meanwhile."""

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if "dropout" in getattr(function, "__name__", "") and (kwargs.get("training") or True in args[1:]):
                seen.append(function)
            return function(*args, **kwargs)

    seen: list = []
    with Watch():
        yield seen


def _of_attack(trial: Trial, threat: Threat, right: Tensor | None, others: bool) -> dict[str, Check]:
    halfway = replace(threat, steps=max(1, threat.steps // 2))
    made = [trial.images, trial.attack(halfway), trial.attack(threat)]
    clean, half, full = (steps.per_sample(trial.decided(x), trial.labels).mean().item() for x in made)
    lost = (max(clean, half) - full) / max(abs(full), 1e-12)
    grows = {"loss does not grow": Check(lost, 0.05, lost <= 0.05)}
    if threat.algorithm.startswith("wrm"):  # its epsilon is a weight: there is no ball to search otherwise
        return grows
    if right is None:
        right = trial.correct(trial.images) & trial.correct(made[-1])
        if trial.network.num_exits > 1:
            right &= trial.correct(replace(trial, form="average").attack(threat))
    left = _part(trial, right)

    def few(attacks: Sequence[Craft], fell: bool, most: float) -> Check:
        share, most = (_under(left, attacks) != fell).sum().item() / len(right), max(most, 1 / len(right))
        return Check(share, most, share <= most)  # one image of a handful proves nothing

    tried = {"one step breaks more": few([lambda s: s.attack(replace(threat, algorithm="fgsm"))], True, 0.05),
             "an unlimited budget does not break all": few([lambda s, n=n: _climb(s, Threat(1.0, 1.5 / n, n))
                                                            for n in (15, 100)], False, 0.02)}
    return grows | tried | ({"other attacks break more": few(_others(left, threat), True, MORE)} if others else {})


def _part(trial: Trial, which: Tensor) -> Trial:
    return replace(trial, images=trial.images[which], labels=trial.labels[which])


def _others(trial: Trial, threat: Threat) -> list[Craft]:
    """What else an attacker of the same budget would try, cheapest first."""
    steps, point = 2 * max(threat.steps or 1, 5), trial.point
    longer = Threat(threat.epsilon, 2.5 * threat.epsilon / steps, steps)
    made = [lambda s: _climb(s, longer), lambda s: s.attack(longer), lambda s: s.attack(threat, restart=1)]
    if trial.network.num_exits > 1:
        made.insert(0, lambda s: replace(s, form="average").attack(longer))
    noisy = fresh(trial.network, point)
    quiet = point.replace(noise=0.0) if noisy else point
    return [*made, lambda s: replace(s, point=quiet).attack(longer) if noisy else _square(s, threat.epsilon)]


def _under(trial: Trial, attacks: Sequence[Craft]) -> Tensor:
    """Which images (N,) stay right under all of these; each meets only those that are left."""
    right = torch.ones_like(trial.labels, dtype=torch.bool)
    for attack in attacks:
        if right.any():
            left = _part(trial, right)
            right[right.clone()] = left.correct(attack(left))
    return right


def _climb(trial: Trial, threat: Threat) -> Tensor:
    """Images (N, C, H, W) at which the margin was best on the way."""
    decision = Decision(trial.network, trial.point, generator=trial.stream("climb"))

    def margin(logits: Tensor) -> Tensor:
        return steps.lead(logits, trial.labels)

    with attack_mode(trial.network, "eval"):
        return steps.climb(decision, margin, margin, trial.images, threat, trial.stream("start"))


def _square(trial: Trial, epsilon: float) -> Tensor:
    """Square's images after 100 queries; the clean ones where pyautoattack is not installed."""
    if find_spec("pyautoattack") is None:
        return trial.images
    return autoattack.run(trial.network, trial.images, trial.labels, epsilon, attacks=("square",),
                          point=trial.point, seed=trial.seed, queries=100).adversarial
