"""Layers that are told, at every forward pass, how to run: noise scale, batch-norm bank, width, code.

Each layer is called as `layer(x, at)` where `at` is the pass's `Conditions`. Nothing is stored in the layer, so two
operating points can be evaluated side by side and a slider can never leave a network in a half-turned state.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib import WorkbookError, randomness


class Conditions:
    """One forward pass of one network, resolved from an `OperatingPoint` by `Network.conditions`.

    noise: scale s of the weight noise, a float or (N,).  batch_norm: 0 = BN_C, 1 = BN_A, between = interpolated outputs,
    or a (N,) bool tensor that is True where an image takes BN_A.  code: (N, d) or (1, d) FiLM input.
    width, width_index: the active width and its place among the trained ones.
    generator: source of fresh noise and dropout; draw: seed of a frozen noise draw instead.
    """

    def __init__(self, noise=0.0, batch_norm=0.0, code=None, width=1.0, width_index=0, generator=None, draw=None,
                 noise_elements=0):
        self.noise, self.batch_norm, self.code = noise, batch_norm, code
        self.width, self.width_index = width, width_index
        self.generator, self.draw, self.noise_elements = generator, draw, noise_elements
        self._eta = None

    @property
    def noisy(self) -> bool:
        return isinstance(self.noise, Tensor) or self.noise != 0

    def eta(self, layer: "Weighted") -> Tensor:
        """This pass's standard-normal draw for one layer: a view into one buffer drawn for all layers at once."""
        if self._eta is None:
            device = layer.weight.device
            source = self.generator
            if self.draw is not None:
                source = randomness.generator(self.draw, "weight noise", device=device)
            if source is None:
                raise WorkbookError("this operating point draws fresh weight noise: pass generator=…, or freeze one draw "
                                    "with OperatingPoint(draw=0)")
            self._eta = torch.randn(self.noise_elements, generator=source, device=device)
        start = layer.noise_start
        return self._eta[start:start + layer.weight.numel()].view(layer.weight.shape).to(layer.weight.dtype)


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

    def parts(self, at: Conditions) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(theta, alpha * eta or None, bias or None), all cut to the active width."""
        weight = self._slice(self.weight if self.factors is None else self.factors(), at)
        bias = self.bias if self.bias is None else self._slice(self.bias, at)
        if self.alpha is None or not at.noisy:
            return weight, None, bias
        noise = self._slice(at.eta(self), at) * weight.detach().std()
        return weight, self._slice(self.alpha, at) * noise, bias

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        weight, noise, bias = self.parts(at)
        if noise is None:
            return self.apply_weight(x, weight, bias)
        if isinstance(at.noise, Tensor) and at.noise.dim() == 1:  # one scale per image: linearity keeps one draw for all
            scale = at.noise.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
            return self.apply_weight(x, weight, bias) + scale * self.apply_weight(x, noise, None)
        return self.apply_weight(x, weight + at.noise * noise, bias)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class Conv2d(Weighted):
    """2-d convolution. `slim_in=False` for the stem, whose input channels are never cut."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, groups=1, bias=False, noisy=None,
                 slim_in=True):
        super().__init__((out_channels, in_channels // groups, kernel_size, kernel_size), bias, noisy,
                         slim_in=slim_in and groups == 1, slim_out=True)
        self.stride, self.padding, self.groups = stride, padding, groups

    def apply_weight(self, x, weight, bias):
        groups = self.groups if self.groups == 1 else weight.shape[0]  # grouped convolutions here are depthwise
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)


class Linear(Weighted):
    """Fully connected layer. `slim_out=False` for a classifier, whose classes are never cut."""

    def __init__(self, in_features, out_features, bias=True, noisy=None, slim_out=True):
        super().__init__((out_features, in_features), bias, noisy, slim_in=True, slim_out=slim_out)

    def apply_weight(self, x, weight, bias):
        return F.linear(x, weight, bias)


class FiLM(nn.Module):
    """OAT's feature-wise modulation: code (N, d) -> multiplier and shift per channel; 4C^2 + 2C(d+2) parameters.

    At a narrow width w the first 2wC outputs are used, of which the second half shifts: the authors' slicing, kept.
    """

    def __init__(self, code_size: int, channels: int):
        super().__init__()
        self.first = Linear(code_size, 2 * channels)
        self.first.slim_in = False
        self.second = Linear(2 * channels, 2 * channels)

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        hidden = F.leaky_relu(self.first(at.code, at), 0.01)
        multiplier, shift = F.leaky_relu(self.second(hidden, at), 0.01)[:, :, None, None].chunk(2, dim=1)
        return x * multiplier + shift


class BatchNorm2d(nn.Module):
    """Batch norm with one pair of statistics and affine per bank (BN_C, BN_A) and per width, optionally with FiLM."""

    def __init__(self, channels: int, banks: int = 1, widths: tuple[float, ...] = (1.0,), code_size: int | None = None):
        super().__init__()
        self.banks = banks
        self.norms = nn.ModuleList(nn.BatchNorm2d(int(channels * w)) for w in widths for _ in range(banks))
        self.film = FiLM(code_size, channels) if code_size else None

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        clean = self.norms[at.width_index * self.banks]
        if self.banks == 1:
            y = clean(x)
        else:
            y = self._mixed(x, clean, self.norms[at.width_index * self.banks + 1], at.batch_norm)
        return y if self.film is None else self.film(y, at)

    @staticmethod
    def _mixed(x: Tensor, clean: nn.Module, adversarial: nn.Module, mix: float | Tensor) -> Tensor:
        if isinstance(mix, Tensor) and mix.dtype == torch.bool:  # each image through its own bank
            y = torch.empty_like(x)
            for bank, rows in ((clean, ~mix), (adversarial, mix)):
                if rows.any():
                    y[rows] = bank(x[rows]).to(y.dtype)
            return y
        if not isinstance(mix, Tensor) and mix in (0, 1):
            return adversarial(x) if mix else clean(x)
        return torch.lerp(clean(x), adversarial(x), mix)


class Chain(nn.Sequential):
    """Layers one after the other, each told the pass's conditions."""

    def forward(self, x: Tensor, at: Conditions) -> Tensor:
        for layer in self:
            x = layer(x, at)
        return x


class ReLU(nn.Module):
    def forward(self, x, at):
        return F.relu(x)


class ScaledReLU(nn.Module):
    """ReLU(scale * x), one factor per channel, 1 at the start: what sparse structure selection drives to zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x, at):
        return F.relu(x * self.scale[:, None, None])


class Flatten(nn.Module):
    def forward(self, x, at):
        return x.flatten(1)


class MaxPool(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x, at):
        return F.max_pool2d(x, self.size)


class AveragePool(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x, at):
        return F.avg_pool2d(x, self.size)


class GlobalAveragePool(nn.Module):
    """(N, C, H, W) -> (N, C). The fixed 8x8 pools of the CIFAR networks are this at 32x32 input."""

    def forward(self, x, at):
        return x.mean((2, 3))


class Dropout(nn.Module):
    """Dropout in train mode, with masks from the pass's generator."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x, at):
        if not self.training or self.probability == 0:
            return x
        if at.generator is None:
            raise WorkbookError("this network has dropout: pass generator=… in train mode, or call network.eval()")
        return randomness.dropout(x, self.probability, at.generator)
