"""What a dataset is here: three splits, each one uint8 tensor of images and one tensor of labels on the same device;
what its class numbers mean, also to a network that numbers them otherwise; and its augmentation on the device."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lib import WorkbookError

LARGEST_VALIDATION = 5_000
PADDING = {"none": 0, "crop4_flip": 4, "crop8_flip": 8}  # of each augmentation
TEN_DIGITS = tuple("0123456789")
CLASSES = {  # of the datasets whose order is fixed; CIFAR-100's and Tiny-ImageNet's come with their files
    **dict.fromkeys(("digits", "mnist", "svhn"), TEN_DIGITS),
    "fashion_mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                      "Ankle boot"),
    **dict.fromkeys(("cifar10", "cifar10_jpeg", "cifar10_png"),
                    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")),
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
}
NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
SYNONYMS = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile"}


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


def natural(name: str) -> list[str | int]:
    """A sort key that compares numbers by value, in digits or as the words zero to ten: 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", NUMBERS.get(name.lower(), name))]


def meaning(name: str) -> str:
    """What is compared of a class name: letters and digits, whatever the spelling of numbers and common synonyms."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    return SYNONYMS.get(plain, NUMBERS.get(plain, plain))


def match(split: Split, known: Sequence[str] | None, count: int) -> tuple[Split, str]:
    """(the images with labels as a network numbers its `count` classes, what to say beside its numbers or "").

    known: the network's class names. Where the images' names are all among them, labels follow the names; where none
    is, or one side has no names, the order is taken as it stands, and that is said.
    Raises WorkbookError when only some are among them, or the number of classes differs.
    """
    theirs, known = split.classes, None if known is None else tuple(known)
    if theirs == known and known is not None:
        return split, ""
    distinct = all(len({meaning(name) for name in names}) == len(names) for names in (theirs or (), known or ()))
    same = meaning if distinct else str
    place = {same(name): number for number, name in enumerate(known or ())}
    strange = [name for name in theirs or () if same(name) not in place]
    if known and theirs and not strange:
        order = torch.tensor([place[same(name)] for name in theirs], device=split.labels.device)
        moved = "" if order.tolist() == list(range(count)) else "classes matched by name"
        return replace(split, labels=order[split.labels], classes=known), moved
    if known and theirs and len(strange) < len(theirs):
        raise WorkbookError(f"the network knows no class {strange[0]!r}; it knows {listed(known)}, the images are of "
                            f"{listed(theirs)}: evaluate it on images of its own classes")
    if theirs and len(theirs) != count:
        raise WorkbookError(f"the images are of {len(theirs)} classes ({listed(theirs)}), but the network knows "
                            f"{count}; evaluate it on the dataset it was trained on")
    if not theirs:
        return split, ""
    said = f"the network's are {listed(known)}" if known else "the network does not name its own"
    return replace(split, classes=known or theirs), f"classes {listed(theirs)} taken in this order ({said})"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, … {names[-1]}"


def augment(images: Tensor, generator: torch.Generator, how: str) -> Tensor:
    """A training batch: every image is zero-padded, cropped back to its size at random, and flipped half of the time.

    images: uint8 (B, C, H, W). how: "none", "crop4_flip" (padding 4) or "crop8_flip" (padding 8). All randomness comes
    from `generator`, which lives on the images' device; nothing is read back to the host.
    Returns float32 (B, C, H, W) in [0, 1], exactly pixel / 255; three channels come in channels_last memory format.
    Raises WorkbookError for another `how`.
    """
    if how not in PADDING:
        raise WorkbookError(f"There is no augmentation {how!r}; choose one of {', '.join(PADDING)}.")
    pixels = images.permute(0, 2, 3, 1)
    if how != "none":
        count, height, width, _ = pixels.shape
        device, padding = images.device, PADDING[how]
        draw = lambda n: torch.randint(n, (count, 1), generator=generator, device=device)  # noqa: E731
        column = torch.arange(width, device=device)
        rows = draw(2 * padding + 1) + torch.arange(height, device=device)
        columns = draw(2 * padding + 1) + torch.where(draw(2) == 1, width - 1 - column, column)
        batch = torch.arange(count, device=device)[:, None, None]
        pixels = pad(pixels, (0, 0, padding, padding, padding, padding))[batch, rows[:, :, None], columns[:, None, :]]
    return pixels.contiguous().permute(0, 3, 1, 2).float().div_(255)
