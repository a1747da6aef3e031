"""CIFAR ResNets: ResNet-38 with RDI's exits (Hu et al. 2020), ResNet-34 (OAT, FLOAT), ResNet-20 (PNI), and the wide
ones, WRN-16-8 and WRN-40-2 (Zagoruyko & Komodakis; form of the OAT code)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from lib import WorkbookError
from lib.models.layers import Chain, Conv2d, Dropout, Linear, MaxPool, Normalise, ReLU, ScaledReLU
from lib.models.parts import Backbone, Parts, Tap

WIDE_DROPOUT = 0.3
PAPER_THRESHOLDS = (0.32, 0.36, 0.39, 0.83, 1.12, 1.35)
PNI_NORMALISATION = {  # mean and deviation per channel, of pixels in [0, 255]
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "half": ((127.5,) * 3, (127.5,) * 3),
}


class FanOutChain(Chain):
    """Every convolution inside starts N(0, sqrt(2 / (k k C_out))) (He, fan-out), as in the RDI and PNI code."""

    def initialise_children(self, generator):
        for layer in self.modules():
            if isinstance(layer, Conv2d):
                out_channels, _, height, width = layer.weight.shape
                nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / (height * width * out_channels)), generator=generator)


class KaimingHead(Chain):
    """A classifier that starts Kaiming-normal with zero bias (PNI code)."""

    def initialise_children(self, generator):
        for layer in self.modules():
            if isinstance(layer, Linear):
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)


class BasicBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus shortcut, ReLU. `inner` cuts the width between the two convolutions.

    scaled: one learnable factor per inner channel, before the first ReLU (sparse structure selection).
    A shortcut that changes shape is a 1x1 convolution with BN ("projection") or, parameter-free, subsampling by an
    average pool with zero channels appended ("pad", type A).
    """

    def __init__(self, parts: Parts, in_channels: int, channels: int, stride: int = 1, inner: int | None = None,
                 shortcut: str = "projection", scaled: bool = False):
        super().__init__()
        inner = inner or channels
        self.main = Chain(*parts.conv_norm(in_channels, inner, 3, stride, relu=not scaled),
                          *([ScaledReLU(inner)] if scaled else []),
                          *parts.conv_norm(inner, channels, 3, relu=False))
        self.stride, self.shortcut = stride, None
        if (stride != 1 or in_channels != channels) and shortcut == "projection":
            self.shortcut = Chain(*parts.conv_norm(in_channels, channels, 1, stride, relu=False, film=False))

    def forward(self, x, at):
        y = self.main(x, at)
        if self.shortcut is not None:
            x = self.shortcut(x, at)
        elif x.shape != y.shape:
            x = F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu_(y.add_(x))


def resnet(parts: Parts, groups: list[int], channels: list[int], *, input_shape, chain=Chain, shortcut="projection",
           inner: list[list[int]] | None = None, scaled: bool = False) -> list[nn.Module]:
    """Stem and residual blocks as stages, one block each; groups after the first start with stride 2."""
    stages = [chain(*parts.conv_norm(input_shape[0], channels[0], 3, slim_in=False))]
    width = channels[0]
    for group, (blocks, out) in enumerate(zip(groups, channels, strict=True)):
        for block in range(blocks):
            stride = 2 if group and block == 0 else 1
            cut = inner[group][block] if inner else None
            stages.append(chain(BasicBlock(parts, width, out, stride, cut, shortcut, scaled)))
            width = out
    return stages


def resnet38(parts: Parts, *, exits: str, classes: int, input_shape, depth: float, inner=None,
             channel_scales: bool = False) -> Backbone:
    """3 groups of 6 basic blocks at 16/32/64 channels; K = 6 side exits after blocks 1 and 4 (0-based) of each group.

    exits "rdi": the released heads, whose two 5x5 ones cost 14.8 of the 17.0 Mi MACs that all heads add.
    exits "cheap": heads that pool first, so that the whole multi-exit path costs under 2 % above the backbone.
    inner: channel-pruned inner widths per group and block (Fig. 6).  channel_scales: a learnable factor on each inner
    channel, by which `training.sparsity` chooses the widths.
    """
    blocks = max(2, round(6 * depth))
    channels = [parts.channels(c) for c in (16, 32, 64)]
    stages = resnet(parts, [blocks] * 3, channels, input_shape=input_shape, chain=FanOutChain, inner=inner,
                    scaled=channel_scales)
    main = Tap(len(stages) - 1, parts.classifier(channels[2], classes))
    if exits == "none":
        return Backbone(stages, [main])
    if exits not in HEADS:
        raise WorkbookError(f"resnet38 has no '{exits}' exits; choose none, {' or '.join(HEADS)}")
    taps = [Tap(1 + group * blocks + block, HEADS[exits](parts, group, channels, classes))
            for group in range(3) for block in (blocks // 4, 3 * blocks // 4)]
    return Backbone(stages, [*taps, main], PAPER_THRESHOLDS if exits == "rdi" else None)


def rdi_head(parts: Parts, group: int, channels: list[int], classes: int) -> nn.Module:
    """The released heads (group 0: 5x5 and 3x3 convolutions; group 1: a basic block; group 2: pooling only)."""
    if group == 0:
        return FanOutChain(MaxPool(2), *parts.conv_norm(channels[0], channels[2], 5, film=False),
                           MaxPool(2), *parts.conv_norm(channels[2], channels[1], 3, relu=False, film=False),
                           *parts.classifier(channels[1], classes))
    if group == 1:
        return FanOutChain(MaxPool(2), BasicBlock(parts, channels[1], channels[1]),
                           *parts.classifier(channels[1], classes))
    return parts.classifier(channels[2], classes)


def cheap_head(parts: Parts, group: int, channels: list[int], classes: int) -> nn.Module:
    """Pooling before any convolution; group 2 pools only, as in the released design."""
    if group == 2:
        return parts.classifier(channels[2], classes)
    return parts.pool_first(channels[group], classes, FanOutChain)


HEADS = {"rdi": rdi_head, "cheap": cheap_head}


def resnet34(parts: Parts, *, exits: str, classes: int, input_shape, depth: float) -> Backbone:
    """3, 4, 6, 3 basic blocks at 64/128/256/512 channels, stride-1 stem, no max-pool (OAT's CIFAR form)."""
    return plain(parts, [3, 4, 6, 3], (64, 128, 256, 512), exits, classes, input_shape, depth)


def resnet20(parts: Parts, *, exits: str, classes: int, input_shape, depth: float,
             normalise: str | None = None) -> Backbone:
    """3 groups of 3 basic blocks at 16/32/64 channels with parameter-free shortcuts (PNI).

    normalise: cifar10 | cifar100 | half puts PNI's normalisation inside the network; images stay in [0, 1].
    """
    network = plain(parts, [3, 3, 3], (16, 32, 64), exits, classes, input_shape, depth, chain=FanOutChain,
                    head=KaimingHead, shortcut="pad")
    if normalise is not None:
        if normalise not in PNI_NORMALISATION:
            raise WorkbookError(f"unknown normalisation '{normalise}'; choose {', '.join(PNI_NORMALISATION)}")
        mean, deviation = torch.tensor(PNI_NORMALISATION[normalise])[:, :input_shape[0]] / 255
        network.stages[0].insert(0, Normalise(mean, deviation))
    return network


def plain(parts, groups, channels, exits, classes, input_shape, depth, head=Chain, **options) -> Backbone:
    """A ResNet with its original output only."""
    if exits != "none":
        raise WorkbookError("only smallcnn, resnet38 and mobilenet_v2 have side exits; use exits='none'")
    channels = [parts.channels(c) for c in channels]
    groups = [max(1, round(g * depth)) for g in groups]
    stages = resnet(parts, groups, channels, input_shape=input_shape, **options)
    return Backbone(stages, [Tap(len(stages) - 1, head(*parts.classifier(channels[-1], classes)))])


class WideBlock(nn.Module):
    """Pre-activation: BN - ReLU - conv3x3 - BN - ReLU - dropout - conv3x3, plus shortcut.

    Where channels differ the shortcut is a bare 1x1 convolution of the activated input, else the raw input.
    """

    def __init__(self, parts: Parts, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.activate = Chain(parts.norm(in_channels, film=True), ReLU(inplace=True))
        self.main = Chain(*parts.conv_norm(in_channels, channels, 3, stride), Dropout(WIDE_DROPOUT),
                          parts.conv(channels, channels, 3))
        self.shortcut = parts.conv(in_channels, channels, 1, stride) if in_channels != channels else None

    def forward(self, x, at):
        activated = self.activate(x, at)
        return self.main(activated, at).add_(x if self.shortcut is None else self.shortcut(activated, at))


def wide_resnet(parts: Parts, layers: int, widening: int, *, exits, classes, input_shape, depth) -> Backbone:
    """3x3 stem of 16 channels, three groups of (layers - 4) / 6 blocks at 16, 32 and 64 times `widening` channels.

    Any image size; OAT modulates both norms of a block but not the last norm of the network.
    """
    if exits != "none":
        raise WorkbookError("wide ResNets have no side exits; use exits='none'")
    width = parts.channels(16)
    stages: list[nn.Module] = [parts.conv(input_shape[0], width, 3, slim_in=False)]
    for group in range(3):
        channels = parts.channels(16 * 2**group * widening)
        for block in range(max(1, round((layers - 4) // 6 * depth))):
            stages.append(WideBlock(parts, width, channels, stride=2 if group and block == 0 else 1))
            width = channels
    head = Chain(parts.norm(width), ReLU(inplace=True), *parts.classifier(width, classes))
    return Backbone(stages, [Tap(len(stages) - 1, head)])
