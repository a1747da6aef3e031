"""What a dataset is here: three splits, each one uint8 tensor of images and one tensor of labels on the same device."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib import WorkbookError

LARGEST_VALIDATION = 5_000


@dataclass(frozen=True)
class Split:
    """Images and labels that stay on the device.

    images: uint8 (N, C, H, W), pixel values 0 to 255.    labels: int64 (N,).
    classes: what each label is called, or None where nobody says.
    Raises WorkbookError for floats, and for images and labels that do not fit together.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise WorkbookError(f"images of shape {tuple(self.images.shape)} and labels of shape "
                                f"{tuple(self.labels.shape)} do not fit together; give (N, C, H, W) and (N,)")
        if self.images.is_floating_point() or self.labels.is_floating_point():
            raise WorkbookError(f"a split holds whole pixels 0 to 255 and whole labels, not {self.images.dtype} and "
                                f"{self.labels.dtype}; give images.mul(255).round().byte() where they are in [0, 1]")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | list | Tensor) -> "Split":
        """A part of the split, always a Split again: a slice (no copy), index or boolean tensor, or one image.

        Raises WorkbookError for a slice from behind, which would be all but so many.
        """
        if isinstance(index, slice) and min(index.start or 0, index.stop or 0) < 0:
            raise WorkbookError(f"images {index.start or 0}:{index.stop} do not exist; ask for a number of at least 1")
        index = [index] if isinstance(index, int) else index
        return replace(self, images=self.images[index], labels=self.labels[index])

    def floats(self, index: slice | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(images float32 in [0, 1], exactly pixel / 255; labels), of the whole split or of `index`."""
        part = self if index is None else self[index]
        return part.images.float().div_(255), part.labels

    def to(self, device: torch.device | str) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test images of one dataset.

    variant: what stands beside every number made with it ("official", "first 17,435 training images", ...).
    augmentation: the `how` of `augment` that the papers train this dataset with.
    threat: the customary budget: `epsilon` and `step_size` in pixel / 255, `train_steps` and `steps` (evaluation).
    """

    name: str
    variant: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = field(repr=False)
    augmentation: str
    threat: dict[str, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return tuple(self.test.images.shape[1:])


class Raw(NamedTuple):
    """What a reader returns: all labelled images in their official order, before some of `train` are held out."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    variant: str


def stratified(labels: Tensor, count: int) -> Tensor:
    """Sorted indices of `count` images, evenly over every class (within one of its share) and along its order."""
    by_class = labels.argsort(stable=True)
    return by_class[(2 * torch.arange(count) + 1) * len(labels) // (2 * max(count, 1))].sort().values


def hold_out(split: Split, count: int | None, classes: int) -> tuple[Split, Split]:
    """(training, validation): the last `count` images are held out, the same ones for every seed.

    None means a tenth of the images, at least one and at most 5,000 (CIFAR: the last 5,000 of 50,000). Where the last
    images lack a class, because the order is by class, the held-out images are spread evenly over the classes instead.
    """
    total = len(split)
    count = min(LARGEST_VALIDATION, max(1, total // 10), total - 1) if count is None else count
    if not 0 <= count < total:
        raise WorkbookError(f"{count:,} validation images cannot be held out of {total:,}; ask for 0 to {total - 1:,}.")
    chosen = torch.arange(total - count, total)
    if split.labels[chosen].unique().numel() < classes:
        chosen = stratified(split.labels, count)
    keep = torch.ones(total, dtype=torch.bool)
    keep[chosen] = False
    return split[keep], split[chosen]
