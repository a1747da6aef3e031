"""How one forward pass is run: what an operating point has become once a network has checked and resolved it."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from lib import WorkbookError, randomness


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
