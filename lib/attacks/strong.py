"""The strong suite, a named and versioned list: what a robust number has to survive before it is believed.

    gate_aware         PGD on the cross-entropy of the decision, through its gates
    margin, margin 2   on the margin, from two starts
    dlr                on the difference of logits ratio
    reroute k          on the margin of exit k, while pushing the image to leave there
    target j           on the margin of the j-th wrong class of the clean image
    apgd-…             CE and targeted DLR (on fresh noise: CE and DLR) of AutoAttack

Every PGD judges each of its iterates and keeps the best, with steps that shrink to nothing. An attack meets only the
images that are still right, so that the costly ones at the end are run on few. The survivors are an upper bound.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lib import check_counts, randomness
from lib.attacks import autoattack, forms, steps
from lib.attacks.decision import Decision, fresh
from lib.attacks.modes import attack_mode
from lib.attacks.steps import Threat
from lib.models.exits import entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint

SUITE = "strong-1"  # changes whenever a number may change
STEPS = 50
DRAWS = 5  # of fresh noise: averaged by the attacker, and judged
WEIGHT = 5.0  # of what still holds an image back from the exit it is pushed to, in nats, against the margin, in logits


def names(network: Network, point: OperatingPoint | None = None) -> tuple[str, ...]:
    """The attacks of the suite at this point, in their order. DLR asks for 3 classes, its targeted form for 4."""
    point, classes = point or OperatingPoint(), network.classes
    gated = network.num_exits > 1 and point.thresholds is not None
    reroute = [f"reroute {k + 1}" for k in range(network.num_exits) if gated]
    many = ["dlr"] * (classes > 2), [f"target {j + 1}" for j in range(classes - 1) if classes > 2]
    last = ["apgd-dlr"] * (classes > 2) if fresh(network, point) else ["apgd-t"] * (classes > 3)
    return ("gate_aware", "margin", "margin 2", *many[0], *reroute, *many[1], "apgd-ce", *last)


def attacked(network: Network, images: Tensor, labels: Tensor, threat: Threat, *, point: OperatingPoint | None = None,
           seed: int = 0, batch_index: int = 0) -> Iterator[tuple[str, Tensor, Tensor]]:
    """After each attack (its name, the images (N, C, H, W) so far, which of them (N,) are still right).

    images: floats in [0, 1].  threat: its epsilon is kept, its steps and losses are the suite's own.  point: with
    thresholds the routed decision is attacked, without the last exit's.  batch_index: of the first image in its split;
    with seed and name it fixes the random draws. An image that fell stays what it was when it fell.
    Raises WorkbookError as the attacks do, and without pyautoattack.
    """
    point = point or OperatingPoint()
    forms.Target.of(network, images, labels, threat, point, "eval", None)  # what cannot be attacked is refused here
    noisy, made = fresh(network, point), images.clone()
    judge = Decision(network, point, draws=DRAWS if noisy else 1)

    @torch.no_grad()
    def is_right(x: Tensor, y: Tensor) -> Tensor:
        with attack_mode(network, "eval"):
            return judge(x).argmax(-1) == y

    right = is_right(images, labels)
    for name in names(network, point):
        if right.any():
            left = right.nonzero()[:, 0]
            source = randomness.generator(seed, "strong", name, batch_index, device=images.device)
            found = _craft(name, network, images[left], labels[left], threat.epsilon, point, noisy, source, seed)
            made[left], right[left] = found, is_right(found, labels[left])
        yield name, made.clone(), right.clone()


def _craft(name: str, network: Network, x: Tensor, y: Tensor, epsilon: float, point: OperatingPoint, noisy: bool,
           source: torch.Generator, seed: int) -> Tensor:
    kind, _, number = name.partition(" ")
    if kind.startswith("apgd"):
        return autoattack.run(network, x, y, epsilon, version="rand" if noisy else "standard", attacks=(kind,),
                              point=point, seed=seed).adversarial
    decision = Decision(network, point, generator=source)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "gate_aware": lambda z: steps.per_sample(decision.of(z), y),
        "margin": lambda z: steps.lead(decision.of(z), y), "dlr": lambda z: dlr(decision.of(z), y),
        "reroute": lambda z: _rerouted(z, y, decision.thresholds, int(number) - 1),
        "target": lambda z: _towards(decision.of(z), y, wrong)}
    with attack_mode(network, "eval"):
        if kind == "target":
            with torch.no_grad():
                wrong = decision(x).scatter(-1, y[:, None], -math.inf).argsort(-1, descending=True)[:, int(number) - 1]
        sizes = [epsilon / 2 * (1 + math.cos(math.pi * t / STEPS)) for t in range(STEPS)]
        return steps.climb(lambda z: network(z, point, source), losses[kind], losses["margin"], x,
                           Threat(epsilon, epsilon, STEPS, draws=DRAWS if noisy else 1), source, sizes)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)): (N, classes) -> (N,)."""
    ordered = logits.sort(-1, descending=True).values
    return steps.lead(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def _towards(logits: Tensor, labels: Tensor, wrong: Tensor) -> Tensor:
    return (logits.gather(-1, wrong[:, None]) - logits.gather(-1, labels[:, None]))[:, 0]


def _rerouted(logits: Tensor, labels: Tensor, thresholds: tuple[float, ...], exit: int) -> Tensor:
    """The margin of one exit, less what keeps an image from it: earlier exits that fire, and its own that does not."""
    unsure = entropy(logits[:-1])
    gates = torch.tensor(thresholds, dtype=logits.dtype, device=logits.device)[:, None].clamp(-1, 10)
    held = (gates[:exit] - unsure[:exit]).relu().sum(0) + (unsure[exit:exit + 1] - gates[exit:exit + 1]).relu().sum(0)
    return steps.lead(logits[exit], labels).clamp(max=WEIGHT) - WEIGHT * held


def survivors(network: Network, images: Tensor, labels: Tensor, threat: Threat, *, point: OperatingPoint | None = None,
              seed: int = 0, batch_size: int = 250) -> tuple[Tensor, dict[str, int]]:
    """(which images (N,) stay right under the whole suite, {attack: how many are left after it})."""
    check_counts(batch_size=batch_size)
    left, parts = {}, []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        for name, _, right in attacked(network, images[part], labels[part], threat, point=point, seed=seed,
                                     batch_index=start):
            left[name] = left.get(name, 0) + int(right.sum())
        parts.append(right)
    return torch.cat(parts), left
