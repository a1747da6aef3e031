"""SmallCNN and RDI-SmallCNN (Hu et al. 2020, section 4 and appendix; layers as in the released code)."""

from torch import nn

from lib import WorkbookError
from lib.models.layers import Chain, Conv2d, Dropout, Flatten, MaxPool, ReLU
from lib.models.parts import Backbone, Parts, Tap

PAPER_THRESHOLDS = (0.023, 0.014)


class Initialised(Chain):
    """Convolutions start Kaiming-normal (fan-in) with zero bias, linear layers by default, the last one at zero if told."""

    def __init__(self, *layers: nn.Module, zero_last: bool = False):
        super().__init__(*layers)
        self.zero_last = zero_last

    def initialise_children(self, generator):
        for layer in self:
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        if self.zero_last:
            nn.init.zeros_(self[-1].weight)
            nn.init.zeros_(self[-1].bias)


def smallcnn(parts: Parts, *, exits: str, classes: int, input_shape: tuple[int, int, int], depth: float) -> Backbone:
    """Four 3x3 convolutions without padding, two max-pools, three linear layers; RDI adds two side branches.

    No activation stands inside a branch (released code). Raises WorkbookError for an exit design it does not have or
    for images too small for its unpadded convolutions.
    """
    if exits not in ("none", "rdi"):
        raise WorkbookError(f"smallcnn has no '{exits}' exits; choose none or rdi")
    channels, height, width = input_shape
    if min(height, width) < 20:
        raise WorkbookError(f"smallcnn needs images of at least 20x20, not {height}x{width}")
    a, b, hidden = parts.channels(32), parts.channels(64), parts.channels(200)

    def conv(cin, cout, **options):
        return parts.conv(cin, cout, 3, padding=0, bias=True, **options)

    def classifier(features, *middle):
        """fc-200, `middle`, fc-200, fc-classes."""
        return (parts.linear(features, hidden), *middle, parts.linear(hidden, hidden))

    stages = [
        Initialised(conv(channels, a, slim_in=False), ReLU()),
        Initialised(conv(a, a), ReLU(), MaxPool(2), conv(a, b), ReLU()),
        Initialised(conv(b, b), ReLU(), MaxPool(2)),
    ]
    sizes = []  # spatial size behind each stage
    for size in (height, width):
        s1 = size - 2
        s2 = (s1 - 2) // 2 - 2
        sizes.append((s1, s2, (s2 - 2) // 2))
    area = [h * w for h, w in zip(*sizes, strict=True)]
    branch1_area = (((sizes[0][0] - 3) // 2 + 1) // 2) * (((sizes[1][0] - 3) // 2 + 1) // 2)
    branch2_area = (sizes[0][1] // 2) * (sizes[1][1] // 2)

    main = Initialised(Flatten(), *classifier(b * area[2], ReLU(), Dropout(0.5)), ReLU(),
                parts.linear(hidden, classes, classifier=True), zero_last=True)
    if exits == "none":
        return Backbone(stages, [Tap(2, main)])
    narrow = parts.channels(16)
    branch1 = Initialised(conv(a, narrow, stride=2), MaxPool(2), Flatten(),
                         *classifier(narrow * branch1_area, Dropout(0.5)), parts.linear(hidden, classes, classifier=True))
    branch2 = Initialised(MaxPool(2), Flatten(), *classifier(b * branch2_area, Dropout(0.5)),
                         parts.linear(hidden, classes, classifier=True))
    return Backbone(stages, [Tap(0, branch1), Tap(1, branch2), Tap(2, main)], PAPER_THRESHOLDS)
