"""The building blocks a backbone asks for: the only place where conditioning and widths are decided.

A backbone says `parts.conv(16, 32, 3)`; whether that convolution carries noise, how many batch-norm banks stand behind
it and which widths it serves is decided here, once, so that no backbone is ever written twice.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from lib import WorkbookError, unknown
from lib.models.conditioning import Conditioning
from lib.models.layers import (
    BatchNorm2d,
    Chain,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ReLU,
    WidthHeads,
)


class Tap(NamedTuple):
    """One exit: the head reads the output of stage `stage` (0-based)."""

    stage: int
    head: nn.Module


@dataclass
class Backbone:
    """Ordered stages and the exits on them, the original output last. Listing these is all a new backbone has to do."""

    stages: list[nn.Module] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    paper_thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Parts:
    """Makes layers for one conditioning and one set of widths.

    multiplier: scales every channel count asked for.  code_size: OAT's d.  noise_granularity: one alpha per layer,
    channel or element.  width_heads: every width has a classifier of its own (SOLAR).
    """

    conditioning: str = "none"
    widths: tuple[float, ...] = (1.0,)
    multiplier: float = 1.0
    code_size: int = 128
    noise_granularity: str = "layer"
    width_heads: bool = False

    def __post_init__(self):
        Conditioning.named(self.conditioning)
        if self.noise_granularity not in (known := ("layer", "channel", "element")):
            raise unknown("noise granularity", self.noise_granularity, known)
        if not self.widths or any(not 0 < w <= 1 for w in self.widths) or max(self.widths) != 1:
            raise WorkbookError(f"widths {self.widths} must lie in (0, 1] and include 1.0")

    @property
    def traits(self) -> Conditioning:
        return Conditioning.named(self.conditioning)

    @property
    def noisy(self) -> str | None:
        return self.noise_granularity if self.traits.noisy else None

    def channels(self, count: int) -> int:
        """A published channel count under the width multiplier (a smaller network of the same shape)."""
        channels = max(1, round(count * self.multiplier))
        for width in self.widths:
            if abs(channels * width - round(channels * width)) > 1e-9:
                raise WorkbookError(f"{channels} channels cannot be cut to width {width}; choose widths or a "
                                    "width_multiplier that leave whole channels")
        return channels

    def conv(self, in_channels, out_channels, kernel_size, stride=1, padding=None, groups=1, bias=False, slim_in=True):
        """Convolution with 'same' padding unless told otherwise."""
        padding = kernel_size // 2 if padding is None else padding
        return Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups, bias, self.noisy, slim_in)

    def conv_norm(self, in_channels, out_channels, kernel_size, stride=1, *, relu=True, film=True, **options):
        """Convolution, norm and, unless told otherwise, ReLU."""
        pair = (self.conv(in_channels, out_channels, kernel_size, stride, **options), self.norm(out_channels, film))
        return (*pair, ReLU(inplace=True)) if relu else pair

    def linear(self, in_features, out_features, classifier=False):
        if classifier and self.width_heads:
            return WidthHeads(in_features, out_features, self.widths, self.noisy)
        return Linear(in_features, out_features, noisy=self.noisy, slim_out=not classifier)

    def norm(self, channels, film=False):
        """Batch norm; `film=True` where OAT modulates (main path before a ReLU, never shortcuts)."""
        code_size = self.code_size if film and self.traits.film else None
        return BatchNorm2d(channels, self.traits.banks, self.widths, code_size, self.traits.shared)

    def classifier(self, channels, classes):
        """Global average pool and a linear classifier."""
        return Chain(GlobalAveragePool(), self.linear(channels, classes, classifier=True))

    def pool_first(self, channels, classes, chain=Chain):
        """A head that costs little: max-pool by 4, one 3x3 convolution to twice the channels, classifier.

        As the paper intends its branches ("few pooling, light convolutions"); 0.28 Mi MACs at 16 x 32 x 32.
        """
        return chain(MaxPool(4), *self.conv_norm(channels, 2 * channels, 3, film=False),
                     *self.classifier(2 * channels, classes))
