"""SmallCNN and RDI-SmallCNN (Hu et al. 2020, section 4 and appendix; layers as in the released code)."""

import math

from torch import nn

from lib import WorkbookError
from lib.models.layers import Chain, Conv2d, Dropout, Flatten, MaxPool, ReLU
from lib.models.parts import Backbone, Parts, Tap

PAPER_THRESHOLDS = (0.023, 0.014)


class Initialised(Chain):
    """Convolutions start Kaiming-normal (fan-in) with zero bias, linear layers by default, the last at zero if told."""

    def __init__(self, *layers: nn.Module, zero_last: bool = False):
        super().__init__(*layers)
        self.zero_last = zero_last

    def initialise_children(self, generator):
        for layer in self:
            if isinstance(layer, Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        if self.zero_last:
            for parameter in self[-1].parameters():
                nn.init.zeros_(parameter)


def smallcnn(parts: Parts, *, exits: str, classes: int, input_shape: tuple[int, int, int], depth: float) -> Backbone:
    """Four 3x3 convolutions without padding, two max-pools, three linear layers; RDI adds two side branches.

    No activation stands inside a branch (released code). Raises WorkbookError for an exit design it does not have, for
    conditionings that need batch norm, and for images too small for its unpadded convolutions.
    """
    if exits not in ("none", "rdi"):
        raise WorkbookError(f"smallcnn has no '{exits}' exits; choose none or rdi")
    if parts.traits.banks > 1:
        raise WorkbookError(f"smallcnn has no batch norm for conditioning '{parts.conditioning}'; choose none or pni")
    if depth != 1:
        raise WorkbookError("smallcnn has no repeated blocks; leave depth_multiplier at 1 and use width_multiplier")
    colours, *size = input_shape
    if min(size) < 20:
        raise WorkbookError(f"smallcnn needs images of at least 20x20, not {'x'.join(map(str, size))}")
    a, b, hidden, narrow = (parts.channels(c) for c in (32, 64, 200, 16))

    def conv(cin, cout, **options):
        return parts.conv(cin, cout, 3, padding=0, bias=True, **options)

    def classifier(features, *middle):
        """flatten, fc-200, `middle`, fc-200."""
        return Flatten(), parts.linear(features, hidden), *middle, parts.linear(hidden, hidden)

    def logits():
        return parts.linear(hidden, classes, classifier=True)

    def pixels(after):
        return math.prod(after(s) for s in size)

    stages = [
        Initialised(conv(colours, a, slim_in=False), ReLU()),
        Initialised(conv(a, a), ReLU(), MaxPool(2), conv(a, b), ReLU()),
        Initialised(conv(b, b), ReLU(), MaxPool(2)),
    ]
    flat = b * pixels(lambda s: (((s - 4) // 2 - 2) - 2) // 2)
    main = Initialised(*classifier(flat, ReLU(), Dropout(0.5)), ReLU(), logits(), zero_last=True)
    if exits == "none":
        return Backbone(stages, [Tap(2, main)])
    flat = narrow * pixels(lambda s: ((s - 5) // 2 + 1) // 2)
    branch1 = Initialised(conv(a, narrow, stride=2), MaxPool(2), *classifier(flat, Dropout(0.5)), logits())
    flat = b * pixels(lambda s: ((s - 4) // 2 - 2) // 2)
    branch2 = Initialised(MaxPool(2), *classifier(flat, Dropout(0.5)), logits())
    return Backbone(stages, [Tap(0, branch1), Tap(1, branch2), Tap(2, main)], PAPER_THRESHOLDS)
