"""AutoAttack (Croce & Hein 2020) through the package pyautoattack, on any decision at any operating point.

`standard` (APGD-CE, targeted APGD-DLR, targeted FAB, Square) needs a deterministic network; `rand` (APGD-CE and
APGD-DLR with gradients averaged over 20 draws) is for noisy ones. Its verdict on a noisy network rests on single draws
and can err both ways: judge its images over many draws before believing it.
"""

import json
import logging
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import WorkbookError, check_counts, checkpoints, randomness
from lib.attacks.decision import Decision, attack_mode, fresh
from lib.attacks.steps import check_epsilon
from lib.models.network import Network, check_batch
from lib.operating_point import OperatingPoint
from lib.progress import bar

ATTACKS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
FEWEST_CLASSES = {"apgd-t": 4, "apgd-dlr": 3}  # the largest logits that the DLR losses look at


@dataclass(frozen=True)
class Outcome:
    """adversarial: images (N, C, H, W), the clean ones where nothing was found. robust: (N,) bool, right on clean and
    never broken. flags: AutoAttack's own warnings, which belong beside the number."""

    adversarial: Tensor
    robust: Tensor
    flags: tuple[str, ...]


@torch.inference_mode(False)  # inside inference_mode nothing has a gradient
def run(network: Network, images: Tensor, labels: Tensor, epsilon: float, *, version: str = "standard",
        attacks: tuple[str, ...] | None = None, point: OperatingPoint | None = None, decision: str | int | None = None,
        draws: int = 1, seed: int = 0, iterations: int = 100, queries: int = 5000, batch_size: int = 250,
        folder: Path | str | None = None) -> Outcome:
    """Attack `images` (floats in [0, 1]) in l_inf, the network in eval mode at `point`, on any `Decision`.

    version: standard | rand.  attacks: only some of its attacks.  decision, draws: what is attacked and judged, see
    `Decision`; a mean over frozen draws has no fresh noise, so that standard may be run on it.  iterations: of APGD and
    FAB; queries: of Square; fewer than the defaults is no longer the published AutoAttack, and a result has to say so.
    folder: keeps every batch there after every attack, and takes up a killed run again, with the same result.
    Raises WorkbookError without the package, for an unknown version or attack, for `standard` on a noisy decision, for
    thresholds or exits that the decision would not read, for a folder that holds another run, for attacks that compare
    more logits than the network has, and as `forms.craft` for images, labels and budgets.
    """
    check_batch(network, images, labels)
    check_epsilon(epsilon)
    check_counts(iterations=iterations, queries=queries, batch_size=batch_size, draws=draws)
    point = point or OperatingPoint()
    decided = Decision(network, point, decision, draws=draws)
    if version not in ATTACKS or not set(attacks or ()) <= set(ATTACKS[version]):
        raise WorkbookError(f"AutoAttack has no version '{version}' with {', '.join(attacks or ('all',))}; it has " +
                            "; ".join(f"{name}: {', '.join(parts)}" for name, parts in ATTACKS.items()))
    if few := [name for name in attacks or ATTACKS[version] if network.classes < FEWEST_CLASSES.get(name, 2)]:
        raise WorkbookError(f"AutoAttack's {few[0]} compares {FEWEST_CLASSES[few[0]]} logits, but the network has "
                            f"{network.classes} classes; choose other attacks=(…) and say so beside the number")
    if version == "standard" and draws == 1 and fresh(network, point):
        raise WorkbookError("standard AutoAttack means nothing on a network that draws fresh noise; use version rand, "
                            "freeze the noise with OperatingPoint(draw=0), or attack the mean over several draws")
    attacks, source = tuple(attacks or ATTACKS[version]), None
    images, labels = (t.clone() if t.is_inference() else t.detach() for t in (images, labels))
    if folder is not None:
        about = [epsilon, version, attacks, point.to_json(), decided.what, draws, seed, iterations, queries, batch_size]
        tensors = {**network.state_dict(), "images": images, "labels": labels}
        source = [checkpoints.digest(tensors), json.loads(json.dumps(about))]
    parts, batches = [], math.ceil(len(images) / batch_size)
    with bar(batches * len(attacks), "AutoAttack", "attack on a batch") as shown:
        for start in range(0, len(images), batch_size):
            x, y = images[start:start + batch_size], labels[start:start + batch_size]
            path = None if folder is None else Path(folder) / f"autoattack-{start:06d}.safetensors"
            part, done = _kept(path, source, x)
            shown.update(done)
            for place, attack in enumerate(attacks[done:], start=done + 1):
                decided.generator = randomness.generator(seed, "autoattack", start, attack, device=images.device)
                with attack_mode(network, "eval"), _aside(seed) as flags:
                    made = _attacker(decided, epsilon, version, seed, images.device)
                    made.attacks_to_run = [attack]
                    _resize(made, iterations, queries, network.classes)
                    part = _continued(part, made, x, y, flags)
                if path is not None:
                    checkpoints.save_state(path, {"adversarial": part.adversarial, "robust": part.robust},
                                           {"source": source, "done": place, "flags": part.flags})
                shown.update()
            parts.append(part)
    return Outcome(torch.cat([p.adversarial for p in parts]), torch.cat([p.robust for p in parts]),
                   tuple(dict.fromkeys(flag for p in parts for flag in p.flags)))


@torch.inference_mode()
def judged(network: Network, images: Tensor, labels: Tensor, point: OperatingPoint, draws: int = 20) -> np.ndarray:
    """(N,) the share of frozen draws in which each image is right; without fresh noise there is one."""
    frozen = [point.replace(draw=d) for d in range(draws)] if fresh(network, point) else [point]
    with attack_mode(network, "eval"):
        right = torch.stack([network(images, at)[-1].argmax(-1) == labels for at in frozen])
    return right.double().mean(0).cpu().numpy()


def _continued(part: Outcome, made, x: Tensor, y: Tensor, flags: list[str]) -> Outcome:
    """The verdict on one batch after one more attack, which meets only the images that are still right."""
    left, adversarial, robust = part.robust.nonzero()[:, 0], part.adversarial.clone(), part.robust.clone()
    if len(left):
        found, said = made.run_standard_evaluation(x[left], y[left], batch_size=len(left))
        adversarial[left], robust[left] = found.detach(), said == y[left]
    fell = len(left) - int(robust.sum())
    if made.attacks_to_run == ["square"] and fell and len(left) < len(y):
        flags.append(f"Square broke {fell} images that attacks with gradients did not: those may be misled")
    return Outcome(adversarial, robust, (*part.flags, *flags))


def _kept(path: Path | None, source: list | None, images: Tensor) -> tuple[Outcome, int]:
    """(the verdict on one batch so far, how many attacks it has met)."""
    if path is None or not path.is_file():
        return Outcome(images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device), ()), 0
    tensors, values = checkpoints.load_state(path, images.device)
    if values["source"] != source:
        raise WorkbookError(f"{path.parent} holds another run of AutoAttack; give a new folder, or the settings "
                            "and the network that it was begun with")
    return Outcome(tensors["adversarial"], tensors["robust"], tuple(values["flags"])), values["done"]


def _attacker(model: nn.Module, epsilon: float, version: str, seed: int, device):
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        raise WorkbookError("AutoAttack needs the package pyautoattack; install what requirements.txt lists") from None
    return AutoAttack(model, norm="Linf", eps=epsilon, version=version, seed=seed, device=device)


def _resize(made, iterations: int, queries: int, classes: int):
    """Set what pyautoattack's constructor does not take; APGD's checkpoints are shares of its iterations."""
    for part in (made.apgd, made.apgd_targeted):
        part.n_iter = part.n_iter_orig = iterations
        part.n_iter_2, part.n_iter_min, part.size_decr = (max(int(s * iterations), 1) for s in (0.22, 0.06, 0.03))
    made.fab.n_iter, made.square.n_queries = iterations, queries
    for part in (made.apgd_targeted, made.fab):
        part.n_target_classes = min(9, classes - 1)


@contextmanager
def _aside(seed: int):
    """AutoAttack draws from torch's global generator, stops tracers (coverage, debuggers) and logs its warnings: the
    former are put back, and the latter are the list that this gives; they go nowhere else."""
    traced, logger, flags = sys.gettrace(), logging.getLogger("auto-attack"), []
    handler, passed_on = logging.Handler(logging.WARNING), logger.propagate
    handler.emit = lambda record: flags.append(" ".join(record.getMessage().split()))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield flags
    finally:
        sys.settrace(traced)
        logger.removeHandler(handler)
        logger.propagate = passed_on
