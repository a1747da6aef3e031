"""The strong suite, a named and versioned list: what a robust number has to survive before it is believed.

    gate_aware          PGD on the cross-entropy of the decision, through its gates
    margin, margin 2 …  on the margin, each from its own start
    dlr                 on the difference of logits ratio
    reroute k           on the margin of exit k, while pushing the image to leave there
    target j            on the margin of the j-th wrong class of the clean image
    apgd-…, fab-t, square   AutoAttack `standard`, whole (on fresh noise `rand`: apgd-ce and apgd-dlr)

Every PGD judges each of its iterates and keeps the best, with steps that shrink to nothing. A network with fewer open
exits gets as many more restarts of the margin, so that all meet as many attacks. An attack meets only the images that
are still right, so that the costly ones at the end are run on few. The survivors are an upper bound.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lib import WorkbookError, check_counts, checkpoints, randomness
from lib.attacks import autoattack, forms, steps
from lib.attacks.decision import Decision, attack_mode, fresh
from lib.attacks.steps import Threat
from lib.models.exits import effective_thresholds, entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint

SUITE = "strong-3"  # changes whenever a number may change
STEPS, APGD, QUERIES = 50, 100, 5000
DRAWS = 5  # of fresh noise: averaged by the attacker, and judged
TRIES = 7  # exits to push an image to, and restarts of the margin for a network with fewer
AUTOATTACK = {name for version in autoattack.ATTACKS.values() for name in version}
WEIGHT = 5.0  # of what still holds an image back from the exit it is pushed to, in nats, against the margin, in logits


def names(network: Network, point: OperatingPoint | None = None) -> tuple[str, ...]:
    """The attacks of the suite at this point, in their order. DLR asks for 3 classes, its targeted form for 4."""
    point, classes = point or OperatingPoint(), network.classes
    gates = (-math.inf,) if point.thresholds is None else effective_thresholds(point, network.num_exits)
    opened = [k + 1 for k, t in enumerate((*gates, math.inf)) if t > -math.inf]
    reroute = [f"reroute {k}" for k in opened if len(opened) > 1]
    again = [f"margin {n + 3}" for n in range(TRIES - len(reroute))]
    many = ["dlr"] * (classes > 2), [f"target {j + 1}" for j in range(classes - 1) if classes > 2]
    version = autoattack.ATTACKS["rand" if fresh(network, point) else "standard"]
    last = [name for name in version if classes >= autoattack.FEWEST_CLASSES.get(name, 2)]
    return ("gate_aware", "margin", "margin 2", *many[0], *reroute, *again, *many[1], *last)


def budget(name: str, epsilon: float, noisy: bool) -> Threat:
    """What the attack `name` may do; AutoAttack's choose their steps, and average over 20 draws where they average."""
    theirs = name in AUTOATTACK
    steps = STEPS if not theirs else QUERIES if name == "square" else APGD
    return Threat(epsilon, 2 * epsilon if theirs else epsilon, steps, draws=1 if not noisy else 20 if theirs else DRAWS)


def attacked(network: Network, images: Tensor, labels: Tensor, threat: Threat, *, point: OperatingPoint | None = None,
             seed: int = 0, batch_size: int = 250, crafted_on: Network | None = None,
             known: Mapping[str, Tensor] = MappingProxyType({}),
             folder: Path | None = None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """After each attack (its name, the images (N, C, H, W) so far, in how many draws (N,) each is still right).

    images: floats in [0, 1].  threat: its epsilon is kept, its steps and losses are the suite's own.  point: with
    thresholds the routed decision is attacked, without the last exit's.  The draws are DRAWS frozen ones where noise
    is fresh, else 1; of each image the worst so far is kept, and one that is wrong in every draw is left alone.
    batch_size: of the images that are left at each attack, wherever they stand.  crafted_on: a folded copy of the
    network, which is faster; the network judges.  known: outcomes (N,) of the first attacks, made
    before, which are not made again.  folder: keeps every attack's outcome there, and takes up a killed run again, with
    the same result.
    Raises WorkbookError as the attacks do, without pyautoattack, and for a folder that holds another run.
    """
    check_counts(batch_size=batch_size)
    point, victim = point or OperatingPoint(), crafted_on or network
    forms.Target.of(network, images, labels, threat, point)  # what cannot be attacked is refused here
    if find_spec("pyautoattack") is None:
        raise WorkbookError("the strong suite needs the package pyautoattack; install what requirements.txt lists")
    noisy, made = fresh(network, point), images
    draws = [point.replace(draw=d) for d in range(DRAWS)] if noisy else [point]
    source = None if folder is None else [SUITE, checkpoints.digest(
        {**network.state_dict(), "images": images, "labels": labels}), repr((threat.epsilon, point, seed, batch_size))]

    @torch.no_grad()
    def judged(x: Tensor, y: Tensor) -> Tensor:
        with attack_mode(network, "eval"):
            return torch.cat([sum((Decision(network, at)(part).argmax(-1) == said).int() for at in draws)
                              for part, said in zip(x.split(batch_size), y.split(batch_size), strict=True)])

    right = judged(images, labels)
    for place, name in enumerate(names(network, point)):
        if name in known:
            right = known[name]
            yield name, made, right
            continue
        path = folder and Path(folder) / f"{place:02d}-{name.replace(' ', '-')}.safetensors"
        if path and path.is_file():
            kept, values = checkpoints.load_state(path, images.device)
            if values["source"] != source:
                raise WorkbookError(f"{folder} holds another run of the strong suite; give a new folder, or the "
                                    "network, images and settings that it was begun with")
            made, right = kept["images"], kept["right"]
        else:
            made, right = made.clone(), right.clone()
            for left in right.nonzero()[:, 0].split(batch_size) if right.any() else ():
                stream = randomness.generator(seed, "strong", name, int(left[0]), device=images.device)
                found = craft(name, victim, images[left], labels[left], threat.epsilon, point, stream, seed)
                now = judged(found, labels[left])
                worse = now <= right[left]
                made[left[worse]], right[left[worse]] = found[worse], now[worse]
            if path:
                checkpoints.save_state(path, {"images": made, "right": right}, {"source": source})
        yield name, made, right


def craft(name: str, network: Network, x: Tensor, y: Tensor, epsilon: float, point: OperatingPoint,
          source: torch.Generator, seed: int = 0) -> Tensor:
    """One attack of the suite by itself, on images x (N, C, H, W) with labels y; seed: of AutoAttack's."""
    (kind, _, number), noisy = name.partition(" "), fresh(network, point)
    if kind in AUTOATTACK:
        return autoattack.run(network, x, y, epsilon, version="rand" if noisy else "standard", attacks=(kind,),
                              point=point, seed=seed, iterations=APGD, queries=QUERIES).adversarial
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
                           budget(name, epsilon, noisy), source, sizes)


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
