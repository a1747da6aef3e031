"""A network: ordered stages, exits tapping them, and the knobs it has."""

import math

import torch
from torch import Tensor, nn

from lib import WorkbookError
from lib.models.conditions import Conditions
from lib.models.layers import FiLM, Weighted
from lib.models.parts import Backbone, Parts
from lib.operating_point import OperatingPoint
from lib.randomness import generator as random_generator


class Network(nn.Module):
    """`network(images, point, generator)` -> logits (exits, N, classes): every exit, earliest first, "main" last.

    config: the arguments of `zoo.build` that made it.  knobs: names of the `OperatingPoint` fields it has.
    taps: for each exit the index of the stage it reads.  paper_thresholds: the published entropy thresholds, or None.
    """

    def __init__(self, backbone: Backbone, parts: Parts, config: dict):
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(backbone.stages)
        self.heads = nn.ModuleList(tap.head for tap in backbone.taps)
        self.taps = tuple(tap.stage for tap in backbone.taps)
        self.paper_thresholds = backbone.paper_thresholds
        self.conditioning, self.widths = parts.conditioning, tuple(parts.widths)
        self.classes, self.input_shape = config["classes"], tuple(config["input_shape"])
        self.knobs = self._knobs()
        if self.conditioning == "oat":
            self.code_values = tuple(config["codes"])
            self.register_buffer("code_rows", torch.zeros(len(self.code_values), parts.code_size))
            self.register_buffer("code_lambdas", torch.tensor(self.code_values), persistent=False)
        self.noise_elements = 0
        for layer in self.modules():
            if isinstance(layer, Weighted) and layer.alpha is not None:
                layer.noise_start = self.noise_elements
                self.noise_elements += layer.weight.numel()

    @property
    def num_exits(self) -> int:
        return len(self.heads)

    def _knobs(self) -> frozenset[str]:
        by_conditioning = {"none": (), "dual_bn": ("batch_norm",), "float": ("noise", "draw", "batch_norm"),
                           "pni": ("noise", "draw"), "oat": ("code",)}
        knobs = set(by_conditioning[self.conditioning])
        if len(self.widths) > 1:
            knobs.add("width")
        if self.num_exits > 1:
            knobs |= {"exits", "thresholds"}
        return frozenset(knobs)

    def initialise(self, seed: int):
        """Draw every weight anew from `seed`: PyTorch's defaults, then what the backbone's own modules prescribe."""
        source = random_generator(seed, "initialisation")
        for module in self.modules():
            if isinstance(module, Weighted):
                module.initialise(source)
        for module in self.modules():
            if hasattr(module, "initialise_children"):
                module.initialise_children(source)
        if self.conditioning == "oat":
            self.code_rows.copy_(self._random_codes(source))
        if self.config.get("film_identity"):
            for module in self.modules():
                if isinstance(module, FiLM):
                    module.start_at_identity(min(self.widths))

    def _random_codes(self, source: torch.Generator) -> Tensor:
        """OAT's codes: the lambda itself for d = 1, else the leading rows of a random orthogonal d x d matrix."""
        size = self.code_rows.shape[1]
        if size == 1:
            return torch.tensor(self.code_values)[:, None]
        return torch.linalg.qr(torch.randn(size, size, generator=source))[0][:len(self.code_values)]

    def check_point(self, point: OperatingPoint):
        """Raises WorkbookError when the point turns a knob that this network does not have, or past its end."""
        if missing := point.used() - self.knobs:
            has = ", ".join(sorted(self.knobs)) or "no knobs"
            raise WorkbookError(f"{self.config['name']} ({self.conditioning}) has no knob {', '.join(sorted(missing))}"
                                f"; it has {has}")
        if point.width is not None and point.width not in self.widths:
            raise WorkbookError(f"width {point.width} was not trained; choose from {self.widths}")
        last = self.num_exits
        if point.exits is not None and any(not 1 <= e <= last for e in point.exits):
            raise WorkbookError(f"exits {point.exits} are not all between 1 and {last}")
        if point.thresholds is not None and len(point.thresholds) != last - 1:
            raise WorkbookError(f"{len(point.thresholds)} thresholds given; this network has {last} exits and needs "
                                f"{last - 1} (none for the last)")

    def conditions(self, point: OperatingPoint | None, generator: torch.Generator | None = None) -> Conditions:
        """Check an operating point against this network and resolve it for one forward pass.

        Left out, noise is off for FLOAT (lambda = 0) and at its trained strength for PNI, which always runs noisy;
        batch norm is BN_C; OAT runs its lambda = 0 code; the width is the full one.
        """
        point = point or OperatingPoint()
        self.check_point(point)
        at = Conditions(noise=1.0 if self.conditioning == "pni" else 0.0, generator=generator, draw=point.draw,
                        noise_elements=self.noise_elements, width_index=self.widths.index(1.0))
        if point.noise is not None:
            at.noise = point.noise
        if point.batch_norm is not None:
            at.batch_norm = point.batch_norm
        if point.width is not None:
            at.width, at.width_index = point.width, self.widths.index(point.width)
        if self.conditioning == "oat":
            at.codes = self.code_rows
            at.code_index, at.batch_norm = self._code(0.0 if point.code is None else point.code)
        return at

    def _code(self, value: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """(which trained lambda, batch-norm bank) of OAT's lambda, (1,) or (N,): BN_C where it is 0, BN_A elsewhere."""
        known = self.code_lambdas
        wanted = torch.as_tensor(value, dtype=known.dtype, device=known.device).reshape(-1)
        gap, index = (wanted[:, None] - known).abs().min(dim=1)
        capturing = known.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing and not gap.max() <= 1e-6:
            raise WorkbookError(f"lambda {wanted[gap.argmax()].item():g} has no code; this network was trained with "
                                f"{self.code_values}")
        return index, wanted > 0 if len(wanted) > 1 else float(value > 0)

    def check_images(self, images: Tensor):
        channels = self.input_shape[0]
        if images.dim() != 4 or images.shape[1] != channels:
            raise WorkbookError(f"images of shape {tuple(images.shape)} do not fit {self.config['name']}, which takes "
                                f"(N, {', '.join(map(str, self.input_shape))})")

    def advance(self, x: Tensor, exit: int, at: Conditions) -> Tensor:
        """Run the stages between exit `exit` - 1 and exit `exit` (0-based) on features `x`."""
        start = self.taps[exit - 1] + 1 if exit else 0
        for stage in self.stages[start:self.taps[exit] + 1]:
            x = stage(x, at)
        return x

    def forward(self, images: Tensor, point: OperatingPoint | None = None,
                generator: torch.Generator | None = None) -> Tensor:
        self.check_images(images)
        at = self.conditions(point, generator)
        x, logits = images, []
        for exit, head in enumerate(self.heads):
            x = self.advance(x, exit, at)
            logits.append(head(x, at))
        return torch.stack(logits)

    def weight_count(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters())
