"""What a network's weights and features are conditioned on, one row per conditioning, and how one pass is run.

A conditioning joins by a row in CONDITIONINGS: `CONDITIONINGS["noise_only"] = Conditioning(noisy=True)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from lib import WorkbookError, randomness, unknown
from lib.operating_point import OperatingPoint


@dataclass(frozen=True)
class Conditioning:
    """noisy: weights carry scaled noise.  banks: batch norms behind each convolution, 1 or 2 (BN_C and BN_A).

    shared: what both banks have in common, "statistics" or "affine", None = nothing.
    film: features are modulated by the code of one of the trained lambdas, which also chooses the bank (so takes two).
    rest: scale of the noise where a point leaves it out; where it is not 0, training shows no other.
    Raises WorkbookError for banks that cannot be, or share what they have not.
    """

    noisy: bool = False
    banks: int = 1
    shared: str | None = None
    film: bool = False
    rest: float = 0.0

    def __post_init__(self):
        if self.banks not in ((2,) if self.film else (1, 2)):
            raise WorkbookError(f"a conditioning has 1 or 2 banks of batch norm, with FiLM 2, not {self.banks}")
        if self.shared and (self.banks == 1 or self.shared not in ("statistics", "affine")):
            raise WorkbookError(f"two banks share statistics or affine, one shares nothing; not {self.shared}")

    @staticmethod
    def named(name: str) -> "Conditioning":
        """The row of that name. Raises WorkbookError where there is none."""
        if name not in CONDITIONINGS:
            raise unknown("conditioning", name, CONDITIONINGS)
        return CONDITIONINGS[name]

    @property
    def knobs(self) -> frozenset[str]:
        """The fields of `OperatingPoint` that turn it."""
        mix = ("batch_norm",) if self.banks == 2 and not self.film else ()
        return frozenset((*(("noise", "draw") if self.noisy else ()), *mix, *(("code",) if self.film else ())))

    def at(self, lambda_n: float, lambda_th: float = 0.0, codes: Sequence[float] = ()) -> OperatingPoint:
        """Where one knob puts it: the nearest of FiLM's trained `codes`; noise and bank by FLOAT's mapping, those of
        them that it has; with a single bank the noise is lambda_n itself; without any knob the point is empty."""
        full = OperatingPoint.from_lambda(lambda_n, lambda_th if self.banks == 2 else 0.0)
        knobs = {name: round(getattr(full, name), 9) for name in ("noise", "batch_norm") if name in self.knobs}
        return OperatingPoint(**knobs, code=min(codes, key=lambda c: abs(c - lambda_n)) if self.film else None)

    def ends(self, codes: Sequence[float] = ()) -> tuple[OperatingPoint, OperatingPoint]:
        """The most accurate and the most robust of the points that training shows, equal where it shows only one."""
        return (OperatingPoint(), OperatingPoint()) if self.rest else (self.at(0.0, codes=codes),
                                                                       self.at(1.0, codes=codes))


CONDITIONINGS = {
    "none": Conditioning(),
    "float": Conditioning(noisy=True, banks=2),
    "dual_bn": Conditioning(banks=2),  # FLOAT's control, the same without noise
    "share_stats": Conditioning(banks=2, shared="statistics"),  # and the control's two halves, each by itself
    "share_affine": Conditioning(banks=2, shared="affine"),
    "oat": Conditioning(film=True, banks=2),
    "pni": Conditioning(noisy=True, rest=1.0),
}


@dataclass(eq=False)
class Conditions:
    """One forward pass of one network, resolved from an `OperatingPoint` by `Network.conditions`.

    noise: scale s of the weight noise, a float or (N,).
    batch_norm: 0 = BN_C, 1 = BN_A, between = outputs interpolated; or (N,) bool, True where an image takes BN_A.
    codes: (S, d) FiLM input of every trained lambda; code_index: (1,) or (N,), which of them each image takes.
    width, width_index: the active width and its place among the trained ones.
    generator: source of fresh noise and dropout; draw: seed of a frozen noise draw instead.
    noise_elements: how many weights of the network carry noise.
    """

    noise: float | Tensor = 0.0
    batch_norm: float | Tensor = 0.0
    codes: Tensor | None = None
    code_index: Tensor | None = None
    width: float = 1.0
    width_index: int = 0
    generator: torch.Generator | None = None
    draw: int | None = None
    noise_elements: int = 0
    _eta: Tensor | None = field(default=None, init=False)

    @property
    def noisy(self) -> bool:
        return isinstance(self.noise, Tensor) or self.noise != 0

    @property
    def fresh(self) -> bool:
        """Whether every pass draws new noise."""
        return self.noisy and self.draw is None

    @property
    def per_image(self) -> bool:
        """Whether the images of a batch are run differently."""
        return any(isinstance(knob, Tensor) and knob.dim() for knob in (self.noise, self.batch_norm))

    def eta(self, layer: nn.Module) -> Tensor:
        """This pass's standard-normal draw for one layer: a view into one buffer drawn for all layers at once."""
        if self._eta is None:
            device = layer.weight.device
            if self.draw is not None:
                self._eta = frozen_noise(self.draw, self.noise_elements, device)
            elif self.generator is not None:
                self._eta = torch.randn(self.noise_elements, generator=self.generator, device=device)
            else:
                raise WorkbookError("this operating point draws fresh weight noise: pass generator=…, or freeze one "
                                    "draw with OperatingPoint(draw=0)")
        start = layer.noise_start
        return self._eta[start:start + layer.weight.numel()].view(layer.weight.shape).to(layer.weight.dtype)

    @cached_property
    def bank_rows(self) -> tuple[slice | Tensor, slice | Tensor]:
        """Images of BN_C and of BN_A where `batch_norm` is a tensor: slices where BN_C's come first, else indices."""
        clean, adversarial = (~self.batch_norm).nonzero()[:, 0], self.batch_norm.nonzero()[:, 0]
        if len(clean) == 0 or clean[-1] == len(clean) - 1:
            return slice(len(clean)), slice(len(clean), None)
        return clean, adversarial


@lru_cache(maxsize=1)
def frozen_noise(draw: int, elements: int, device: torch.device) -> Tensor:
    """The standard-normal numbers of one frozen draw; the last one asked for is kept, as an attack asks many times."""
    generator = randomness.generator(draw, "weight noise", device=device)
    with torch.inference_mode(False):  # what is kept must serve later passes with gradients, too
        return torch.randn(elements, generator=generator, device=device)


def take(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Images `rows` of `x`, in the memory layout of `x` (plain indexing turns channels_last into NCHW)."""
    if isinstance(rows, slice):
        return x[rows]
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)
