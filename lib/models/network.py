"""A network: ordered stages, exits tapping them, and the knobs it has."""

import inspect
import math
from itertools import islice

import torch
from torch import Tensor, nn

from lib import WorkbookError
from lib.models.conditioning import Conditions
from lib.models.layers import Chain, FiLM, Weighted
from lib.models.parts import Backbone, Parts
from lib.operating_point import OperatingPoint
from lib.randomness import generator as random_generator


class Network(nn.Module):
    """`network(images, point, generator)` -> logits (exits, N, classes): every exit, earliest first, "main" last.

    config: the arguments of `zoo.build` that made it.  knobs: names of the `OperatingPoint` fields it has.
    taps: for each exit the index of the stage it reads.  paper_thresholds: the published entropy thresholds, or None.
    class_names: what its outputs mean, set by whoever trains or loads it; None = nobody says.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, backbone: Backbone, parts: Parts, config: dict):
        super().__init__()
        check_backbone(backbone, config["name"])
        self.config = config
        self.stages = nn.ModuleList(backbone.stages)
        self.heads = nn.ModuleList(tap.head for tap in backbone.taps)
        self.taps = tuple(tap.stage for tap in backbone.taps)
        self.paper_thresholds = backbone.paper_thresholds
        self.conditioning, self.widths = parts.conditioning, tuple(parts.widths)
        self.classes, self.input_shape = config["classes"], tuple(config["input_shape"])
        self.traits = parts.traits
        self.knobs = (self.traits.knobs | (frozenset({"width"}) if len(self.widths) > 1 else frozenset())
                      | (frozenset({"exits", "thresholds"}) if self.num_exits > 1 else frozenset()))
        self.code_values: tuple[float, ...] = ()
        if self.traits.film:
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

    def at(self, lambda_n: float, lambda_th: float = 0.0, width: float | None = None) -> OperatingPoint:
        """Where one knob puts this network at that width, see `Conditioning.at`."""
        return self.traits.at(lambda_n, lambda_th, self.code_values).replace(width=width)

    def ends(self) -> tuple[OperatingPoint, OperatingPoint]:
        """The most accurate and the most robust point that training shows it, see `Conditioning.ends`."""
        return self.traits.ends(self.code_values)

    def initialise(self, seed: int):
        """Draw every weight anew from `seed`: PyTorch's defaults, then what the backbone's own modules prescribe."""
        source = random_generator(seed, "initialisation")
        for module in self.modules():
            if isinstance(module, Weighted):
                module.initialise(source)
        for module in self.modules():
            if hasattr(module, "initialise_children"):
                module.initialise_children(source)
        if self.traits.film:  # OAT's codes: lambda itself for d = 1, else rows of a random orthogonal d x d matrix
            size, known = self.code_rows.shape[1], torch.tensor(self.code_values)
            self.code_rows.copy_(known[:, None] if size == 1 else torch.linalg.qr(
                torch.randn(size, size, generator=source))[0][:len(known)])
        if self.config.get("film_identity"):
            for module in self.modules():
                if isinstance(module, FiLM):
                    module.start_at_identity(min(self.widths))

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

        Left out, noise is at rest (off for FLOAT; PNI always runs noisy); batch norm is BN_C; OAT runs its lambda = 0
        code; the width is the full one.
        """
        point = point or OperatingPoint()
        self.check_point(point)
        at = Conditions(noise=self.traits.rest, generator=generator, draw=point.draw,
                        noise_elements=self.noise_elements, width_index=self.widths.index(1.0))
        if point.noise is not None:
            at.noise = point.noise
        if point.batch_norm is not None:
            at.batch_norm = point.batch_norm
        if point.width is not None:
            at.width, at.width_index = point.width, self.widths.index(point.width)
        if self.traits.film:
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

    @property
    def image_type(self) -> torch.dtype:
        """The floats that it takes."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def check_images(self, images: Tensor, slack: float = 3.0):
        """Raises WorkbookError unless these are floats that fit, far from 0 ... 255; `check_batch` is strict.

        Values may leave [0, 1] a little, as random starts do, and are not looked at on a GPU, to save waiting for it.
        """
        if not isinstance(images, Tensor):
            raise WorkbookError(f"images are a {type(images).__name__}; give a float tensor (torch.from_numpy)")
        if images.shape[1:] != self.input_shape:
            raise WorkbookError(f"images of shape {tuple(images.shape)} do not fit {self.config['name']}, which takes "
                                f"(N, {', '.join(map(str, self.input_shape))})")
        if images.dtype != self.image_type:
            raise WorkbookError(f"images of type {images.dtype} do not fit {self.config['name']}, which takes "
                                f"{self.image_type} in [0, 1] (pixel / 255)")
        if images.device.type == "cpu" and images.numel():
            check_range(images, slack)

    def advance(self, x: Tensor, exit: int, at: Conditions) -> Tensor:
        """Run the stages between exit `exit` - 1 and exit `exit` (0-based) on features `x`."""
        start = self.taps[exit - 1] + 1 if exit else 0
        for stage in islice(self.stages, start, self.taps[exit] + 1):  # a slice would be a module, made anew
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
        logits = torch.stack(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # losses of passes in bf16 are not

    def weight_count(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters())


def check_backbone(backbone: Backbone, name: str):
    """Raises WorkbookError unless exits tap the stages in order, the last the last, and every layer takes (x, at)."""
    taps = [tap.stage for tap in backbone.taps]
    if not taps or taps != sorted(taps) or taps[0] < 0 or taps[-1] != len(backbone.stages) - 1:
        raise WorkbookError(f"the exits of {name} tap stages {taps} of {len(backbone.stages)}; list them in order, "
                            f"counted from 0, the last one at the last stage")
    told = [*backbone.stages, *(tap.head for tap in backbone.taps)]
    chains = [m for module in told for m in module.modules() if isinstance(m, Chain)]
    for layer in (*told, *(child for chain in chains for child in chain)):
        try:
            inspect.signature(layer.forward).bind(None, None)
        except TypeError:
            raise WorkbookError(f"{name} holds a {type(layer).__name__} that takes no second argument `at` (how to "
                                "run); make layers with parts.conv, parts.norm, … or from lib.models.layers") from None


def check_range(images: Tensor, slack: float = 0.0):
    """Raises WorkbookError when a value lies further than `slack` outside [0, 1], or is not a number."""
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if not (low >= -slack and high <= 1 + slack):
        raise WorkbookError(f"image values reach from {low:g} to {high:g}; give floats in [0, 1] (pixel / 255)")


def check_batch(network: Network, images: Tensor, labels: Tensor | None = None):
    """The one gate of all that looks at a batch: attacks, AutoAttack, records and routed inference.

    Types, shapes and places always; values (one wait for the device) unless a CUDA graph is being captured. Raises
    WorkbookError for what is no network of ours, no images in [0, 1] as it takes them, or no labels that fit.
    """
    if not isinstance(network, Network):
        raise WorkbookError(f"a {type(network).__name__} is no network of this project; give one that zoo.build made "
                            "(of a DataParallel or compiled one that inside: network.module, network._orig_mod)")
    network.check_images(images, slack=0.0)
    if labels is not None:
        of = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        if of != f"torch.int64 ({len(images)},)" or not len(images):
            raise WorkbookError(f"labels ({of}) do not fit {len(images)} images; give an int64 tensor of shape "
                                f"({len(images)},)")
    here = next((p.device for p in network.parameters()), images.device)
    if any(given.device != here for given in (images, labels) if given is not None):
        raise WorkbookError(f"the network is on {here}, but its images or labels are not; move them: .to('{here}')")
    if not len(images) or images.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if images.device.type != "cpu":  # there `check_images` does not look at values
        check_range(images)
    if labels is not None:
        check_labels(network, labels)


def check_labels(network: Network, labels: Tensor):
    """Raises WorkbookError when a label is none of the network's classes."""
    first, last = torch.stack(labels.aminmax()).tolist()
    if first < 0 or last >= network.classes:
        raise WorkbookError(f"labels reach from {first} to {last}, but the network has classes 0 to "
                            f"{network.classes - 1}")
