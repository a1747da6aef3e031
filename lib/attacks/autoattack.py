"""AutoAttack (Croce & Hein 2020) through the package pyautoattack, told where on its trade-off the network stands.

`standard` (APGD-CE, targeted APGD-DLR, targeted FAB, Square) needs a deterministic network; `rand` (APGD-CE and
APGD-DLR with gradients averaged over 20 draws) is for noisy ones. Its verdict on a noisy network rests on single draws
and can err both ways: judge its images over many draws before believing it.
"""

import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import WorkbookError, randomness
from lib.attacks.modes import attack_mode
from lib.models.network import Network
from lib.operating_point import OperatingPoint

ATTACKS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}


@dataclass(frozen=True)
class Verdict:
    """adversarial: images (N, C, H, W), the clean ones where nothing was found. robust: (N,) bool, right on clean and
    never broken. flags: AutoAttack's own warnings, which belong beside the number."""

    adversarial: Tensor
    robust: Tensor
    flags: tuple[str, ...]


class Logits(nn.Module):
    """The last exit's logits at an operating point, (N, classes), as AutoAttack wants a model to be."""

    def __init__(self, network: Network, point: OperatingPoint, generator: torch.Generator):
        super().__init__()
        self.network, self.point, self.generator = network, point, generator

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self.point, self.generator)[-1]


def run(network: Network, images: Tensor, labels: Tensor, epsilon: float, *, version: str = "standard",
        attacks: tuple[str, ...] | None = None, point: OperatingPoint | None = None, seed: int = 0,
        iterations: int = 100, queries: int = 5000, batch_size: int = 250) -> Verdict:
    """Attack `images` (floats in [0, 1]) in l_inf, the network in eval mode at `point`.

    version: standard | rand.  attacks: only some of its attacks.  iterations: of APGD and FAB; queries: of Square;
    fewer than the defaults is no longer the published AutoAttack, and a result has to say so.
    Raises WorkbookError without the package, for an unknown version or attack, and for `standard` on a noisy point.
    """
    point = point or OperatingPoint()
    network.check_point(point)
    if version not in ATTACKS or not set(attacks or ()) <= set(ATTACKS[version]):
        raise WorkbookError(f"AutoAttack has no version '{version}' with {', '.join(attacks or ('all',))}; it has " +
                            "; ".join(f"{name}: {', '.join(parts)}" for name, parts in ATTACKS.items()))
    if version == "standard" and network.conditions(point).noisy and point.draw is None:
        raise WorkbookError("standard AutoAttack means nothing on a network that draws fresh noise; use version rand, "
                            "or freeze the noise with OperatingPoint(draw=0)")
    with attack_mode(network, "eval"), aside(seed), warnings_of("auto-attack") as flags:
        source = randomness.generator(seed, "autoattack", device=images.device)
        made = _attacker(Logits(network, point, source), epsilon, version, seed, images.device)
        made.attacks_to_run = list(attacks or ATTACKS[version])
        _resize(made, iterations, queries, network.classes)
        adversarial, said = made.run_standard_evaluation(images.detach(), labels, batch_size=batch_size)
    return Verdict(adversarial.detach(), said == labels, tuple(dict.fromkeys(flags)))


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
def aside(seed: int):
    """AutoAttack draws from torch's global generator and stops tracers (coverage, debuggers): both are put back."""
    traced = sys.gettrace()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            sys.settrace(traced)


@contextmanager
def warnings_of(name: str):
    """The messages of WARNING and above that a logger says meanwhile; they go nowhere else."""
    said, logger = [], logging.getLogger(name)

    class Keep(logging.Handler):
        def emit(self, record):
            said.append(" ".join(record.getMessage().split()))

    handler, passed_on = Keep(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = passed_on
