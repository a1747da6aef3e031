"""What a class number means: the official classes by name, and images whose classes a network numbers otherwise."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from lib import WorkbookError
from lib.data.splits import Split

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
