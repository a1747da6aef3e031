"""Networks written a second time, plainly, with torch's own modules only: what ours are compared with."""

import torch.nn.functional as F
from torch import nn


def conv(cin, cout, size, stride=1):
    return nn.Conv2d(cin, cout, size, stride, size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, cout, 3, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv(cout, cout, 3), nn.BatchNorm2d(cout)
        self.downsample = nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class RDIResNet38(nn.Module):
    """The seven-exit ResNet-38 with the module names of the released file."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.fc = conv(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(64, 10)
        self.pool = nn.AvgPool2d(8)
        for group, channels in enumerate((16, 32, 64)):
            for layer in range(6):
                first = group > 0 and layer == 0
                self.add_module(f"group{group}_layer{layer}",
                                Block(channels // 2 if first else channels, channels, 2 if first else 1))
        for branch in (1, 2):
            self.add_module(f"branch_layer{branch}", nn.Sequential(
                nn.MaxPool2d(2), conv(16, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
                conv(64, 32, 3), nn.BatchNorm2d(32), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(32, 10)))
            self.add_module(f"branch_layer{branch + 2}", nn.Sequential(
                nn.MaxPool2d(2), Block(32, 32), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(32, 10)))
            self.add_module(f"branch_layer{branch + 4}", nn.Sequential(
                nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)))

    def forward(self, x):
        logits = []
        x = F.relu(self.bn1(self.conv1(x)))
        for group in range(3):
            for layer in range(6):
                x = getattr(self, f"group{group}_layer{layer}")(x)
                if layer in (1, 4):
                    logits.append(getattr(self, f"branch_layer{2 * group + (1 if layer == 1 else 2)}")(x))
        return [*logits, self.fc(self.pool(x).flatten(1))]


class PlainSmallCNN(nn.Module):
    """The three-exit SmallCNN on 1x28x28: no activation inside a branch."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 64, 3),
                                    nn.Conv2d(64, 64, 3)])
        self.branch1 = nn.ModuleList([nn.Conv2d(32, 16, 3, 2), nn.Linear(576, 200), nn.Linear(200, 200),
                                      nn.Linear(200, 10)])
        self.branch2 = nn.ModuleList([nn.Linear(1600, 200), nn.Linear(200, 200), nn.Linear(200, 10)])
        self.main = nn.ModuleList([nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, 10)])

    def forward(self, x):
        """Logits of the three exits, without dropout."""
        one = F.relu(self.convs[0](x))
        two = F.relu(self.convs[2](F.max_pool2d(F.relu(self.convs[1](one)), 2)))
        three = F.max_pool2d(F.relu(self.convs[3](two)), 2)
        y1 = F.max_pool2d(self.branch1[0](one), 2).flatten(1)
        for layer in self.branch1[1:]:
            y1 = layer(y1)
        y2 = F.max_pool2d(two, 2).flatten(1)
        for layer in self.branch2:
            y2 = layer(y2)
        main = F.relu(self.main[1](F.relu(self.main[0](three.flatten(1)))))
        return [y1, y2, self.main[2](main)]
