"""How to step: the threat (budget, step, algorithm, per-sample loss) and the ascents that keep to it.

What is maximised is decided in `forms`. Here `loss(x)` is any scalar to ascend, summed over the samples, so that a
sample's step does not depend on its batch. All images are floats in [0, 1]; distances are l_inf in the same unit.
Random starts come from the generator that is passed in, drawn on the generator's device; nothing waits for the host.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from lib import WorkbookError, check_counts

ALGORITHMS = ("pgd", "fgsm", "fgsm_authors", "n_fgsm", "wrm", "wrm_authors")
UNPROJECTED = ("fgsm_authors", "n_fgsm")  # one step from a random start, wherever it leads
LOSSES = ("ce", "margin")
KAPPA = 50.0  # margin at which the C&W loss stops: so large that it is the plain logit margin

Loss = Callable[[Tensor], Tensor]


def check_epsilon(epsilon: float):
    """Raises WorkbookError unless `epsilon` is an l_inf budget for images in [0, 1]."""
    if not isinstance(epsilon, Real) or not 0 <= epsilon <= 1:
        raise WorkbookError(f"epsilon {epsilon} is outside [0, 1], the range of the images; write 8/255")


@dataclass(frozen=True)
class Threat:
    """What the attacker may do.

    epsilon: l_inf budget in [0, 1]; for WRM the weight of the loss against the squared distance, not a radius.
    step_size, steps: needed by pgd; what an algorithm fixes itself is filled in here, so that a record states what ran.
    random_start: begin at a uniform point of the epsilon-ball.
    algorithm: pgd | fgsm (one step of epsilon from the clean image, inside the ball) | fgsm_authors (released code:
        random start and no projection, so up to 2 epsilon) | n_fgsm (for training: one step of epsilon from a start in
        +-2 epsilon, no projection, de Jorge et al. 2022) | wrm (penalised ascent with rates 1/sqrt(t+2), Sinha et al.
        2018) | wrm_authors (released code: cross-entropy averaged over the batch, which makes it tiny).
    loss: ce | margin (C&W: -relu(z_y - max other + 50)), per sample, usable with every algorithm.
    draws: gradients averaged at each step (EOT), for networks that draw fresh noise.

    Raises WorkbookError for values outside their range or missing.
    """

    epsilon: float
    step_size: float | None = None
    steps: int | None = None
    random_start: bool = True
    algorithm: str = "pgd"
    loss: str = "ce"
    draws: int = 1

    def __post_init__(self):
        for name, value, known in (("attack algorithm", self.algorithm, ALGORITHMS), ("loss", self.loss, LOSSES)):
            if value not in known:
                raise WorkbookError(f"unknown {name} '{value}'; choose from {', '.join(known)}")
        check_epsilon(self.epsilon)
        fixed = {"fgsm": dict(step_size=self.epsilon, steps=1, random_start=False),
                 "fgsm_authors": dict(step_size=self.epsilon, steps=1),
                 "n_fgsm": dict(step_size=self.epsilon, steps=1, random_start=True),
                 "wrm": dict(step_size=None), "wrm_authors": dict(step_size=None)}
        for name, value in fixed.get(self.algorithm, {}).items():
            object.__setattr__(self, name, value)
        if self.algorithm == "pgd" and not (isinstance(self.step_size, Real) and 0 < self.step_size < math.inf):
            raise WorkbookError(f"step_size {self.step_size} is not above 0; give PGD a step such as 2/255")
        check_counts(steps=self.steps, draws=self.draws)

    @property
    def reach(self) -> float:
        """The largest l_inf distance from the clean image that the algorithm may end at."""
        if self.algorithm.startswith("wrm"):
            return 1.0
        return min(1.0, self.start_radius + self.step_size) if self.algorithm in UNPROJECTED else self.epsilon

    @property
    def start_radius(self) -> float:
        """How far from the clean image a random start may lie, per pixel."""
        return self.random_start * (2 if self.algorithm == "n_fgsm" else 1) * self.epsilon


def expected_gradient(loss: Callable[[Tensor], Tensor], x: Tensor, draws: int = 1) -> Tensor:
    """Mean over `draws` calls of d loss(x) / dx, the shape of `x`; no parameter's gradient is computed or touched.

    Of a network with fresh noise that is the gradient of the expected loss (EOT, Athalye et al. 2018): each call draws.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return expectation(lambda: torch.autograd.grad(loss(x), x)[0], draws)


def expectation(function: Callable[[], Tensor], draws: int = 1) -> Tensor:
    """Mean over `draws` calls of `function()`, one result held at a time."""
    total = function()
    for _ in range(draws - 1):
        total = total + function()
    return total / draws if draws > 1 else total


def per_sample(logits: Tensor, labels: Tensor, loss: str = "ce", smoothing: float = 0.0) -> Tensor:
    """Loss of each sample: logits (..., N, classes), labels (N,) -> (..., N).

    ce: cross-entropy, against labels smoothed by `smoothing`.  margin: -relu(z_y - max_{j != y} z_j + 50), Carlini &
    Wagner's f with kappa = 50.
    """
    if loss == "ce":
        labels = labels.expand(logits.shape[:-1])
        losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=smoothing)
        return losses.view(labels.shape)
    return -F.relu(KAPPA - lead(logits, labels))


def begin(images: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
    """Where the ascent starts: x + U(-r, r), r the threat's start radius, NOT clamped to [0, 1] before the first
    gradient, or x."""
    if not threat.random_start:
        return images
    if generator is None:
        raise WorkbookError("a random start draws numbers: pass generator=…, or use Threat(random_start=False)")
    noise = torch.empty(images.shape, dtype=images.dtype, device=generator.device)  # drawn in NCHW order for any layout
    radius = threat.start_radius
    return images + noise.uniform_(-radius, radius, generator=generator).to(images.device)


def ascend(loss: Loss, images: Tensor, threat: Threat, generator: torch.Generator | None = None, *,
           start: Tensor | None = None, exits: int = 1) -> Tensor:
    """Run the threat's algorithm from `start` (drawn by `begin` unless given); the last iterate (N, C, H, W), detached.

    exits: read by wrm_authors alone, see `wrm`.
    """
    images = images.detach()
    x = begin(images, threat, generator) if start is None else start
    if threat.algorithm.startswith("wrm"):
        return wrm(loss, images, x, threat, exits if threat.algorithm == "wrm_authors" else 1)
    return pgd(loss, images, x, threat)


def pgd(loss: Loss, images: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Projected gradient ascent from x, Madry et al. 2018: step along the sign, project, clamp; no restarts, last
    iterate.

    FGSM is its one-step case. Projection and clamp are one elementwise clamp: the same values, bit for bit.
    """
    low, high = (images - threat.reach).clamp(min=0), (images + threat.reach).clamp(max=1)
    for _ in range(threat.steps):
        x = torch.clamp(x + threat.step_size * expected_gradient(loss, x, threat.draws).sign(), low, high)
    return x


def wrm(loss: Loss, images: Tensor, x: Tensor, threat: Threat, exits: int) -> Tensor:
    """From x ascend epsilon * loss - ||x - images||^2 / 2 at rates 1/sqrt(t+2), t = 0, 1, ...; clamp to [0, 1], no
    projection.

    exits: the released average attack adds loss and penalty once per exit: `exits` times the mean exit's step, so its
    early steps overshoot and bounce off the clamp.
    """
    for t in range(threat.steps):
        ascent = threat.epsilon * expected_gradient(loss, x, threat.draws) - (x - images)
        x = (x + exits / math.sqrt(t + 2) * ascent).clamp(0, 1)
    return x


def climb(forward: Callable[[Tensor], Tensor], loss: Loss, margin: Loss, images: Tensor, threat: Threat,
          generator: torch.Generator, sizes: Sequence[float] | None = None) -> Tensor:
    """PGD that judges every iterate, the first and the last among them, and keeps each image's best (N, C, H, W).

    forward: images -> logits of any shape; loss, margin: those logits -> (N,), to ascend and to judge by (largest is
    best; above 0 it is broken).  sizes: the step at each step, by default the threat's own.
    """
    low, high = (images - threat.epsilon).clamp(min=0), (images + threat.epsilon).clamp(max=1)
    x = kept = torch.clamp(begin(images, threat, generator), low, high)
    best = torch.full(images.shape[:1], -math.inf, dtype=images.dtype, device=images.device)

    def look() -> Tensor:
        """(N + N * pixels,): the margin and the gradient of one pass, together so that draws average both."""
        logits = forward(x)
        gradient, = torch.autograd.grad(loss(logits).sum(), x)
        return torch.cat([margin(logits.detach())[:, None].to(gradient.dtype), gradient.flatten(1)], dim=1)

    for size in (*(sizes or (threat.step_size,) * threat.steps), 0.0):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            found, gradient = expectation(look, threat.draws).split([1, x[0].numel()], dim=1)
        better = found[:, 0] > best
        best, kept = torch.where(better, found[:, 0], best), torch.where(better.view(-1, 1, 1, 1), x.detach(), kept)
        x = torch.clamp(x.detach() + size * gradient.view_as(x).sign(), low, high)
    return kept


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the best wrong class leads, max_{j != y} z_j - z_y: logits (..., N, classes) -> (..., N)."""
    labels = labels.expand(logits.shape[:-1])[..., None]
    return logits.scatter(-1, labels, -math.inf).amax(-1) - logits.gather(-1, labels)[..., 0]
