"""Layers that are told, at every forward pass, how to run: noise scale, batch-norm bank, width, code.

Each layer is called as `layer(x, at)` where `at` is the pass's `Conditions`. Nothing is stored in the layer, so two
operating points can be evaluated side by side and a slider can never leave a network in a half-turned state.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import WorkbookError
from lib.models.conditioning import Conditions, take


class Weighted(nn.Module):
    """A weight that can be sliced to its leading channels and carry scaled noise: theta + s * alpha * eta.

    eta ~ N(0, std(theta)^2) elementwise, std taken over the active slice, unbiased and detached (FLOAT Eq. 4; PNI).
    `alpha` has one entry per layer, per output channel or per element and starts at 0.25; None = a plain layer.
    """

    def __init__(self, weight_shape: tuple[int, ...], bias: bool, noisy: str | None, slim_in: bool, slim_out: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(weight_shape[0])) if bias else None
        shapes = {"layer": (), "channel": (weight_shape[0],) + (1,) * (len(weight_shape) - 1), "element": weight_shape}
        self.alpha = nn.Parameter(torch.full(shapes[noisy], 0.25)) if noisy else None
        self.factors = None  # or a module that composes the weight (`models.factors`); `weight` is None then
        self.slim_in, self.slim_out = slim_in, slim_out
        self.register_buffer("deviations", None, persistent=False)  # sigma per width, where it is cached (`view`)
        self.noise_start = 0  # set by the network: where this layer's noise lies in the pass's buffer

    def initialise(self, generator: torch.Generator):
        """PyTorch's default for convolutions and linear layers, from our own generator."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def _slice(self, tensor: Tensor, at: Conditions) -> Tensor:
        """The leading output (and input) channels of the active width; a 0-d alpha serves every width."""
        if at.width == 1 or tensor.dim() == 0:
            return tensor
        if self.slim_out:
            tensor = tensor[:int(self.weight.shape[0] * at.width)]
        if self.slim_in and tensor.dim() > 1 and tensor.shape[1] > 1:
            tensor = tensor[:, :int(self.weight.shape[1] * at.width)]
        return tensor

    def deviation(self, at: Conditions) -> Tensor:
        """sigma, 0-d: standard deviation of the active slice's entries, unbiased, no gradient."""
        if self.deviations is not None:
            return self.deviations[at.width_index]
        return self._slice(self.weight, at).detach().std()

    def parts(self, at: Conditions) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(theta, eta, alpha * sigma, bias), all cut to the active width; what the layer or the pass lacks is None."""
        weight = self._slice(self.weight if self.factors is None else self.factors(), at)
        bias = self.bias if self.bias is None else self._slice(self.bias, at)
        if self.alpha is None or not at.noisy:
            return weight, None, None, bias
        return weight, self._slice(at.eta(self), at), self._slice(self.alpha, at) * self.deviation(at), bias

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        return self.run(x, at, *self.parts(at))

    def run(self, x: Tensor, at: Conditions, weight: Tensor, eta: Tensor | None, spread: Tensor | None,
            bias: Tensor | None) -> Tensor:
        """The layer's output for the weight theta + s * spread * eta."""
        if eta is None:
            return self.apply_weight(x, weight, bias)
        if isinstance(at.noise, Tensor) and at.noise.dim() == 1:  # a scale per image: linearity keeps one draw for all
            scale = at.noise.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
            return self.apply_weight(x, weight, bias) + scale * self.apply_weight(x, spread * eta, None)
        return self.apply_weight(x, torch.addcmul(weight, eta, at.noise * spread), bias)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


def passes(network: nn.Module) -> list[Conditions]:
    """One noise-free pass per width."""
    return [Conditions(width=width, width_index=i) for i, width in enumerate(network.widths)]


@contextmanager
def deviations_held(network: nn.Module) -> Iterator[None]:
    """Compute every noisy layer's sigma now and use it for the length of a `with` block, in which no weight changes."""
    noisy = [m for m in network.modules() if isinstance(m, Weighted) and m.alpha is not None and m.deviations is None]
    try:
        for layer in noisy:
            layer.deviations = torch.stack([layer.deviation(at) for at in passes(network)])
        yield
    finally:
        for layer in noisy:
            layer.deviations = None


class Conv2d(Weighted):
    """2-d convolution. `slim_in=False` for the stem, whose input channels are never cut."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, bias=False, noisy=None,
                 slim_in=True):
        super().__init__((out_channels, in_channels // groups, kernel_size, kernel_size), bias, noisy,
                         slim_in=slim_in and groups == 1, slim_out=True)
        self.stride, self.padding, self.groups = stride, padding, groups

    def apply_weight(self, x, weight, bias):
        groups = self.groups if self.groups == 1 else weight.shape[0]  # grouped convolutions here are depthwise
        stride = self.stride
        if stride > 1 and weight.shape[2] == 1 and weight.shape[1] < 8:
            # Subsampled first: torch 2.15 on CPU writes beyond the weight's gradient for these shapes in channels_last.
            x, stride = x[:, :, ::stride, ::stride], 1
        return F.conv2d(x, weight, bias, stride, self.padding, 1, groups)


class Linear(Weighted):
    """Fully connected layer. `slim_out=False` for a classifier, whose classes are never cut."""

    def __init__(self, in_features, out_features, noisy=None, slim_in=True, slim_out=True):
        super().__init__((out_features, in_features), True, noisy, slim_in=slim_in, slim_out=slim_out)

    def apply_weight(self, x, weight, bias):
        return F.linear(x, weight, bias)


class FiLM(nn.Module):
    """OAT's feature-wise modulation: code (N, d) -> multiplier and shift per channel; 4C^2 + 2C(d+2) parameters.

    At a narrow width w the first 2wC outputs are used, of which the second half shifts: the authors' slicing, kept.
    """

    def __init__(self, code_size: int, channels: int):
        super().__init__()
        self.first = Linear(code_size, 2 * channels, slim_in=False)
        self.second = Linear(2 * channels, 2 * channels)

    def start_at_identity(self, narrowest: float):
        """Multipliers near 1, shifts near 0. Only the rows that multiply at every width are raised, as at a narrow one
        the others shift."""
        nn.init.zeros_(self.second.bias)
        nn.init.ones_(self.second.bias[:int(len(self.second.bias) // 2 * narrowest)])

    def table(self, codes: Tensor, at: Conditions) -> Tensor:
        """(K, d) -> (K, 2C): multipliers, then shifts."""
        return F.leaky_relu(self.second(F.leaky_relu(self.first(codes, at), 0.01), at), 0.01)

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        if len(at.code_index) == 1:
            table = self.table(at.codes[at.code_index], at)
        else:  # once per trained lambda, not once per image
            table = self.table(at.codes, at)[at.code_index]
        multiplier, shift = table[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, multiplier)


class WidthHeads(nn.Module):
    """One classifier per width (SOLAR), the widest first as in `widths`, instead of slices of a shared one."""

    def __init__(self, features: int, classes: int, widths: tuple[float, ...], noisy: str | None):
        super().__init__()
        self.heads = nn.ModuleList(Linear(int(features * w), classes, noisy, slim_in=False, slim_out=False)
                                   for w in widths)

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        return self.heads[at.width_index](x, at)


class HalfBank(nn.BatchNorm2d):
    """Batch norm with an affine of its own over the statistics of `other`, or the other way round."""

    _load_from_state_dict = nn.Module._load_from_state_dict  # which expects no counter where statistics are shared

    def __init__(self, other: nn.BatchNorm2d, shared: str):
        super().__init__(other.num_features)
        (self._buffers if shared == "statistics" else self._parameters).clear()
        self.other = (other,)  # in a tuple, so that it does not become a part of this one

    def __getattr__(self, name: str):
        own = name in self._parameters or name in self._buffers or "other" not in self.__dict__
        return super().__getattr__(name) if own else getattr(self.other[0], name)


class BatchNorm2d(nn.Module):
    """Batch norm with one pair of statistics and affine per bank (BN_C, BN_A) and per width, optionally with FiLM.
    shared: "statistics" or "affine", which the two banks then have in common."""

    def __init__(self, channels: int, banks: int = 1, widths: tuple[float, ...] = (1.0,), code_size: int | None = None,
                 shared: str | None = None):
        super().__init__()
        self.banks = banks
        self.norms = nn.ModuleList(nn.BatchNorm2d(int(channels * w)) for w in widths for _ in range(banks))
        for i in range(1, len(self.norms), 2) if shared else ():
            self.norms[i] = HalfBank(self.norms[i - 1], shared)
        self.film = FiLM(code_size, channels) if code_size else None

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        clean = self.norms[at.width_index * self.banks]
        y = clean(x) if self.banks == 1 else self._mixed(x, clean, self.norms[at.width_index * self.banks + 1], at)
        return y if self.film is None else self.film(y, at)

    @staticmethod
    def _mixed(x: Tensor, clean: nn.Module, adversarial: nn.Module, at: Conditions) -> Tensor:
        mix = at.batch_norm
        if not isinstance(mix, Tensor) and mix in (0, 1):
            return adversarial(x) if mix else clean(x)
        if not isinstance(mix, Tensor) or mix.dtype != torch.bool:
            return torch.lerp(clean(x), adversarial(x), mix)
        y = torch.empty_like(x)  # each image through its own bank
        for bank, rows in zip((clean, adversarial), at.bank_rows, strict=True):
            if len(chosen := take(x, rows)):
                y[rows] = bank(chosen).to(y.dtype)
        return y


class Chain(nn.Sequential):
    """Layers one after the other, each told the pass's conditions."""

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        for layer in self:
            x = layer(x, at)
        return x


class ReLU(nn.ReLU):
    """inplace: overwrite the input, a tenth faster in attacks; only where no exit and no shortcut reads that input."""

    def forward(self, x, at):
        return super().forward(x)


class ScaledReLU(nn.Module):
    """ReLU(scale * x), one factor per channel, 1 at the start: what sparse structure selection drives to zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x, at):
        return F.relu(x * self.scale[:, None, None])


class Flatten(nn.Flatten):
    def forward(self, x, at):
        return super().forward(x)


class MaxPool(nn.MaxPool2d):
    def forward(self, x, at):
        return super().forward(x)


class GlobalAveragePool(nn.Module):
    """(N, C, H, W) -> (N, C). The fixed 8x8 pools of the CIFAR networks are this at 32x32 input."""

    def forward(self, x, at):
        return x.mean((2, 3))


class Normalise(nn.Module):
    """(x - mean) / deviation per channel, for networks that carry their normalisation inside (PNI)."""

    def __init__(self, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("deviation", deviation[:, None, None])

    def forward(self, x, at):
        return (x - self.mean) / self.deviation


class Dropout(nn.Dropout):
    """Dropout in train mode, with masks from the pass's generator; torch's own can only use the global one."""

    def forward(self, x, at):
        if not self.training or self.p == 0:
            return x
        if at.generator is None:
            raise WorkbookError("this network has dropout: pass generator=… in train mode, or call network.eval()")
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=at.generator) / (1 - self.p)
