"""What to maximise: the attack forms of multi-exit networks (Hu et al. 2020, section 3.3, Eq. 4), and how to run them.

    single k, main  the loss of one exit                   average      the mean of all exits' losses
    random          a random convex mix of them            gate_aware   the loss of the exit that fires, at each step
    max_average     each image's strongest single attack, judged by the sum of all exits' losses
    slow_…          how late the image leaves, see `slowdown`; only where it is asked for by name

N single attacks can run in three ways that give the same images. `full` evaluates every exit at every step, which only
mode "authors" needs, for its buffers. `prefix` runs one attack after the other, each only up to its own exit. `shrink`
runs them as one batch that loses a group at each exit: far fewer and larger kernels, exact where samples do not
interact (mode "eval", no fresh noise, no per-image knobs). Default: shrink on CUDA where exact, else prefix.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import WorkbookError, randomness, unknown
from lib.attacks import slowdown, steps
from lib.attacks.decision import attack_mode
from lib.attacks.steps import Loss, Threat
from lib.models import exits as early_exits
from lib.models.network import Network, check_batch
from lib.operating_point import OperatingPoint

GATED = ("gate_aware", *slowdown.FORMS)  # look at thresholds
# What is ascended, (N,), of the losses of all exits, (exits, N); a form of your own joins by its row.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {"average": lambda losses: losses.mean(0)}


def names(num_exits: int) -> tuple[str, ...]:
    """Every form of a network with so many exits; a single exit has only "main"."""
    if num_exits == 1:
        return ("main",)
    return tuple(dict.fromkeys((*paper_forms(num_exits), "random", "gate_aware", *FORMS)))


def paper_forms(num_exits: int) -> tuple[str, ...]:
    """The K+3 forms of Hu et al.'s tables; their "worst case" is the smallest accuracy over these."""
    return _singles(num_exits) + (("average", "max_average") if num_exits > 1 else ())


def _singles(num_exits: int) -> tuple[str, ...]:
    return tuple(f"single{k + 1}" for k in range(num_exits - 1)) + ("main",)


def find(form: str, num_exits: int) -> str:
    """The form's own name ("single{K+1}" is "main"). Raises WorkbookError listing the forms of this network."""
    known = names(num_exits) + slowdown.FORMS * (num_exits > 1)
    if form == f"single{num_exits}":
        return "main"
    if form not in known:
        exits = f"{num_exits} exit{'s' if num_exits > 1 else ''}"
        raise unknown("attack form", form, known, f"a network with {exits} has")
    return form


@torch.inference_mode(False)  # inside inference_mode nothing has a gradient
def craft(form: str, network: Network, images: Tensor, labels: Tensor, threat: Threat, *,
          generator: torch.Generator, point: OperatingPoint | None = None, mode: str = "eval",
          thresholds: Sequence[float] | None = None, schedule: str | None = None) -> Tensor:
    """Adversarial images (N, C, H, W) in [0, 1] within the threat's reach, detached; the network is left as it was.

    images: floats in [0, 1].  labels: int64 (N,).  generator: random start, random weights, fresh noise and dropout, in
    the order they are needed; max_average draws its starts in exit order.  mode: see `decision`.  thresholds: in place
    of the point's, read by gate_aware and slow_….
    Raises WorkbookError on unknown forms, modes and schedules, and on images, labels or thresholds that do not fit.
    """
    target = Target.of(network, images, labels, threat, point, mode, schedule, thresholds)
    with attack_mode(network, mode):
        return target.run(find(form, network.num_exits), generator)


@torch.inference_mode(False)  # inside inference_mode nothing has a gradient
def suite(network: Network, images: Tensor, labels: Tensor, threat: Threat, forms: Iterable[str], *, seed: int,
          batch_index: int = 0, point: OperatingPoint | None = None, mode: str = "eval",
          thresholds: Sequence[float] | None = None, restart: int = 0) -> dict[str, Tensor]:
    """Several forms on one batch, {form: adversarial images}; single attacks are crafted once, also for max_average.

    Each form draws from its own stream, generator(seed, "attack", form, batch_index), and max_average always picks
    among the single attacks of those streams: a form's images do not depend on which other forms run (on CUDA up to
    rounding, where batches of other sizes meet other kernels). restart: above 0 the streams are others, so that starts
    are. Arguments as in `craft`.
    """
    target = Target.of(network, images, labels, threat, point, mode, thresholds=thresholds)
    wanted = {form: find(form, network.num_exits) for form in forms}
    singles = _singles(network.num_exits)

    def stream(form: str) -> torch.Generator:
        name = f"{form}, restart {restart}" if restart else form
        return randomness.generator(seed, "attack", name, batch_index, device=images.device)

    with attack_mode(network, mode):
        needed = [k for k, form in enumerate(singles) if form in wanted.values() or "max_average" in wanted.values()]
        crafted = dict(zip((singles[k] for k in needed),
                           target.singles(needed, [stream(singles[k]) for k in needed]), strict=True))
        return {asked: crafted[form] if form in crafted else target.run(form, stream(form), list(crafted.values()))
                for asked, form in wanted.items()}


@dataclass(frozen=True)
class Target:
    """One batch under attack: the only place where (form, network, point) becomes a loss to ascend."""

    network: Network
    images: Tensor
    labels: Tensor
    threat: Threat
    point: OperatingPoint
    schedule: str

    @classmethod
    def of(cls, network, images, labels, threat, point, mode="eval", schedule=None, thresholds=None) -> "Target":
        point = point or OperatingPoint()
        point = point.replace(thresholds=tuple(map(float, thresholds))) if thresholds else point
        check_batch(network, images, labels)
        images, labels = (t.clone() if t.is_inference() else t for t in (images, labels))
        return cls(network, images, labels, threat, point, _schedule(network, images, point, mode, schedule))

    def run(self, form: str, generator: torch.Generator, candidates: Sequence[Tensor] = ()) -> Tensor:
        """The images of one form; candidates: for max_average, single attacks already crafted, in exit order."""
        num_exits = self.network.num_exits
        if form in _singles(num_exits):
            return self.singles([_singles(num_exits).index(form)], [generator])[0]
        if form == "max_average":
            return self.strongest(candidates or self.singles(range(num_exits), [generator] * num_exits), generator)
        if form in slowdown.FORMS:
            return self.slowest(form, generator, self.gates())
        loss = self.loss(form, generator)
        return steps.ascend(loss, self.images, self.threat, generator, exits=num_exits if form == "average" else 1)

    def slowest(self, form: str, generator: torch.Generator, gates: Tensor) -> Tensor:
        """The iterate of PGD that leaves latest, its decision as the form asks, or the image itself."""
        if self.threat.algorithm not in ("pgd", "fgsm"):
            raise WorkbookError(f"{form} steps as PGD does and judges every step; leave the algorithm at pgd")

        def forward(x: Tensor) -> Tensor:
            return self.network(x, self.point, generator)

        def judged(logits: Tensor) -> Tensor:
            return slowdown.score(form, logits, self.labels, gates)

        found = steps.climb(forward, lambda z: slowdown.loss(form, z, self.labels, gates), judged, self.images,
                            self.threat, generator)
        with torch.no_grad():
            better = judged(forward(found)) > judged(forward(self.images))
        return torch.where(better.view(-1, 1, 1, 1), found, self.images)

    def loss(self, form: str, generator: torch.Generator) -> Loss:
        """The loss that a form ascends (max_average has none of its own: it chooses). One call = one forward pass."""
        if form in _singles(self.network.num_exits):
            return self.exit_loss(_singles(self.network.num_exits).index(form), generator)

        def forward(x: Tensor) -> Tensor:
            return self.network(x, self.point, generator)

        if form in FORMS:
            return lambda x: self.total(FORMS[form](self.losses(forward(x))))
        if form == "random":  # one draw of weights for the whole batch and all steps
            weights = torch.rand(self.network.num_exits, 1, generator=generator, device=generator.device)
            weights = (weights / weights.sum()).to(self.images)
            return lambda x: self.total((weights * self.losses(forward(x))).sum(0))
        gates = self.gates()
        return lambda x: self.total(self.losses(early_exits.routed(forward(x), gates)[0]))

    def exit_loss(self, exit: int, generator: torch.Generator) -> Loss:
        """The loss of one exit (0-based): the backbone up to its tap and its head, or everything in schedule "full"."""

        def logits(x: Tensor) -> Tensor:
            if self.schedule != "full":
                return early_exits.prefix(self.network, x, exit, self.point, generator)
            at, every = self.network.conditions(self.point, generator), []
            for k, head in enumerate(self.network.heads):  # not stacked: the backward pass stops at this exit
                x = self.network.advance(x, k, at)
                every.append(head(x, at))
            return every[exit]

        return lambda x: self.total(self.losses(logits(x)))

    def singles(self, exits: Sequence[int], generators: Sequence[torch.Generator]) -> list[Tensor]:
        """The single attacks on `exits` (0-based, ascending), each from its own generator, in exit order."""
        if self.schedule != "shrink" or len(exits) < 2:
            return [steps.ascend(self.exit_loss(k, generator), self.images, self.threat, generator)
                    for k, generator in zip(exits, generators, strict=True)]
        starts = [steps.begin(self.images, self.threat, generator) for generator in generators]
        images = torch.cat([self.images] * len(exits))
        start = torch.cat(starts[::-1])
        return list(steps.ascend(self.shrinking_loss(exits), images, self.threat, start=start).chunk(len(exits)))[::-1]

    def shrinking_loss(self, exits: Sequence[int]) -> Loss:
        """All single attacks at once on a batch of groups, last exit first: who goes on is a slice, not a gather."""

        def loss(x: Tensor) -> Tensor:
            at, total, rows = self.network.conditions(self.point), 0.0, len(self.labels)
            for k in range(exits[-1] + 1):
                x = self.network.advance(x, k, at)
                if k in exits:
                    x, leaving = x.split([len(x) - rows, rows])
                    total = total + self.total(self.losses(self.network.heads[k](leaving, at)))
            return total

        return loss

    @torch.no_grad()
    def strongest(self, candidates: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """For each image the candidate with the highest unweighted sum of all exits' losses, the first among equals."""
        def score(x: Tensor) -> Tensor:
            return steps.expectation(lambda: self.losses(self.network(x, self.point, generator)).sum(0),
                                     self.threat.draws)

        stacked = torch.stack(list(candidates))
        if self.schedule == "shrink":
            scores = score(stacked.flatten(0, 1)).view(len(candidates), -1)
        else:
            scores = torch.stack([score(x) for x in candidates])
        return stacked[scores.argmax(0), torch.arange(len(self.labels), device=stacked.device)]

    def losses(self, logits: Tensor) -> Tensor:
        """(..., N, classes) -> (..., N); a batch of several groups repeats the labels."""
        groups = logits.shape[-2] // len(self.labels)
        return steps.per_sample(logits, self.labels.repeat(groups), self.threat.loss)

    def total(self, losses: Tensor) -> Tensor:
        mean = self.threat.algorithm == "wrm_authors"  # the others cannot tell a mean over the batch from a sum
        return losses.sum() / (len(self.labels) if mean else 1)

    def gates(self) -> Tensor:
        """Effective thresholds on the device, moved there once. Raises WorkbookError where there are none."""
        effective = early_exits.effective_thresholds(self.point, self.network.num_exits)
        return torch.tensor(effective, dtype=self.images.dtype, device=self.images.device)


def _schedule(network: Network, images: Tensor, point: OperatingPoint, mode: str, asked: str | None) -> str:
    at = network.conditions(point)
    exact = {"authors": ("full",), "batch": ("prefix", "full")}.get(mode, ("prefix", "full", "shrink"))
    if at.fresh or at.per_image:
        exact = tuple(s for s in exact if s != "shrink")
    if asked is None:
        return "shrink" if images.is_cuda and "shrink" in exact else exact[0]
    if asked not in exact:
        raise WorkbookError(f"schedule '{asked}' is not exact in mode '{mode}' at this operating point; choose from "
                            f"{', '.join(exact)}")
    return asked
