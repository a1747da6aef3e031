"""Wide ResNets WRN-16-8 and WRN-40-2, pre-activation with dropout (Zagoruyko & Komodakis; form of the OAT code)."""

from torch import nn

from lib import WorkbookError
from lib.models.layers import Chain, Dropout, ReLU
from lib.models.parts import Backbone, Parts, Tap

DROPOUT = 0.3


class WideBlock(nn.Module):
    """BN - ReLU - conv3x3 - BN - ReLU - dropout - conv3x3, plus shortcut.

    Where channels differ the shortcut is a bare 1x1 convolution of the activated input, else the raw input.
    """

    def __init__(self, parts: Parts, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.activate = Chain(parts.norm(in_channels, film=True), ReLU(inplace=True))
        self.main = Chain(*parts.conv_norm(in_channels, channels, 3, stride), Dropout(DROPOUT),
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
