"""MobileNetV2 for CIFAR images with three sets of exits (Hu et al. 2020; backbone as in the released code)."""

from torch import nn

from lib import WorkbookError
from lib.models.layers import Chain, MaxPool, ReLU
from lib.models.parts import Backbone, Parts, Tap

PAPER_THRESHOLDS = (0.267, 0.765)
ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
EXIT_DESIGNS = ("none", "rdi", "cheap", "released")


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear; at stride 1 a shortcut is added, projected where channels differ.

    Plain ReLU, no activation after the addition, and the projection are the released code's, not Sandler et al.'s.
    """

    def __init__(self, parts: Parts, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        hidden = expansion * in_channels
        self.main = Chain(*parts.conv_norm(in_channels, hidden, 1),
                          *parts.conv_norm(hidden, hidden, 3, stride, groups=hidden),
                          *parts.conv_norm(hidden, channels, 1, relu=False))
        self.residual, self.shortcut = stride == 1, None
        if self.residual and in_channels != channels:
            self.shortcut = Chain(*parts.conv_norm(in_channels, channels, 1, relu=False, film=False))

    def forward(self, x, at):
        y = self.main(x, at)
        if not self.residual:
            return y
        return y.add_(x if self.shortcut is None else self.shortcut(x, at))


def mobilenet_v2(parts: Parts, *, exits: str, classes: int, input_shape, depth: float) -> Backbone:
    """Stem, 17 inverted residual blocks and the last 1x1 convolution as 19 stages.

    exits "rdi": K = 2 after blocks 3 and 11 as in the paper; their heads, which the paper only draws, are OUR design.
    exits "released": the released code's K = 6, after stages int(19 j / 7), without the convolution it never uses.
    exits "cheap": the same six taps with heads that pool first; the whole path costs 0.7 % above the backbone.
    """
    if exits not in EXIT_DESIGNS:
        raise WorkbookError(f"mobilenet_v2 has no '{exits}' exits; choose {', '.join(EXIT_DESIGNS)}")
    width = parts.channels(32)
    stages = [Chain(*parts.conv_norm(input_shape[0], width, 3, slim_in=False))]
    outputs, row_starts = [(width, 1)], []  # behind each stage: channels, how far the image has shrunk
    for expansion, channels, repeats, first_stride in ROWS:
        row_starts.append(len(stages))
        channels = parts.channels(channels)
        for block in range(max(1, round(repeats * depth))):
            stride = first_stride if block == 0 else 1
            stages.append(InvertedResidual(parts, width, channels, expansion, stride))
            width = channels
            outputs.append((width, outputs[-1][1] * stride))
    last = parts.channels(1280)
    stages.append(Chain(*parts.conv_norm(width, last, 1)))
    main = Tap(len(stages) - 1, parts.classifier(last, classes))
    if exits == "none":
        return Backbone(stages, [main])
    if exits == "rdi":  # the end of the 24-channel row, the first block of the 96-channel row
        early, late = row_starts[2] - 1, row_starts[4]
        heads = [Tap(early, our_head(parts, outputs[early][0], classes)),
                 Tap(late, parts.classifier(outputs[late][0], classes))]
        return Backbone(stages, [*heads, main], PAPER_THRESHOLDS)
    head = released_head if exits == "released" else cheap_head
    places = [len(stages) * j // 7 - 1 for j in range(1, 7)]
    return Backbone(stages, [*(Tap(place, head(parts, *outputs[place], classes)) for place in places), main])


def our_head(parts: Parts, channels: int, classes: int) -> nn.Module:
    """Max-pool, then one inverted residual block to 32 channels at stride 2 (1.2 Mi MACs)."""
    out = parts.channels(32)
    return Chain(MaxPool(2), InvertedResidual(parts, channels, out, 6, 2), *parts.classifier(out, classes))


def released_head(parts: Parts, channels: int, shrunk: int, classes: int) -> nn.Module:
    """Two inverted residual blocks at full resolution, one at half, pooling alone behind that."""
    if shrunk > 2:
        return parts.classifier(channels, classes)
    middle, out = parts.channels(32), parts.channels(64)
    if shrunk == 2:
        return Chain(InvertedResidual(parts, channels, middle, 6, 2), *parts.classifier(middle, classes))
    return Chain(InvertedResidual(parts, channels, middle, 6, 2), parts.norm(middle), ReLU(inplace=True),
                 InvertedResidual(parts, middle, out, 6, 2), parts.norm(out), *parts.classifier(out, classes))


def cheap_head(parts: Parts, channels: int, shrunk: int, classes: int) -> nn.Module:
    """Pooling before any convolution."""
    return parts.classifier(channels, classes) if shrunk > 2 else parts.pool_first(channels, classes)
