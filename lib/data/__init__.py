"""Datasets as uint8 tensors that live on the device, and their augmentation there.

    mnist = data.load("mnist", device="cuda")
    images, labels = mnist.test.floats(slice(0, 500))

A dataset is named, or is any image folder {train,test}/<class>/<image>. Every one has a validation split that is held
out of its training images, the same for every seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import lib
from lib import WorkbookError
from lib.data import official, readers
from lib.data.augment import augment
from lib.data.folders import image_folder
from lib.data.splits import Dataset, Split, hold_out

__all__ = ["NAMES", "Dataset", "Split", "augment", "load"]

MNIST_THREAT = dict(epsilon=0.3, step_size=0.01, train_steps=40, steps=40)  # RDI-Nets, section 4.1
FASHION_THREAT = dict(epsilon=0.1, step_size=0.01, train_steps=40, steps=40)  # customary; neither paper uses the set
COLOUR_THREAT = dict(epsilon=8 / 255, step_size=2 / 255, train_steps=10, steps=20)  # RDI-Nets, section 4.1
DIGITS_THREAT = dict(epsilon=0.15, step_size=0.03, train_steps=7, steps=20)
DIGITS_VALIDATION = 200


@dataclass(frozen=True)
class Source:
    """How a named dataset is read, and what the papers train and attack it with."""

    read: Callable[[bool], readers.Raw]
    shape: tuple[int, int, int]
    threat: dict[str, float]
    augmentation: str = "none"


SOURCES = {
    "mnist": Source(official.mnist, (1, 28, 28), MNIST_THREAT),
    "fashion_mnist": Source(official.fashion_mnist, (1, 28, 28), FASHION_THREAT),
}
NAMES = ("digits", *SOURCES)


def load(name: str, *, device: torch.device | str = "cpu", shape: tuple[int, int, int] | None = None,
         download: bool = True, validation: int | None = None) -> Dataset:
    """The dataset `name` (one of NAMES), or the image folder at that path, on `device`.

    shape: (channels, height, width) that a network expects: digits are made in it, any other dataset must have it.
    download: whether missing files of a named dataset may be fetched. Downloads go to lib.DATASETS.
    validation: how many training images are held out; None: 200 digits, else a tenth but at most 5,000.
    A path is looked up from the current folder, the repository and lib.DATASETS, in this order.
    Raises WorkbookError for an unknown name, missing or damaged files, and a shape that the dataset does not have.
    """
    if name == "digits":
        raw, threat, augmentation = readers.digits(shape), DIGITS_THREAT, "none"
        validation = DIGITS_VALIDATION if validation is None else validation
    elif name in SOURCES:
        source = SOURCES[name]
        check_shape(name, source.shape, shape)
        raw, threat, augmentation = source.read(download), source.threat, source.augmentation
    else:
        folder = find_folder(name)
        name = folder.name
        raw, threat = image_folder(folder), COLOUR_THREAT
        augmentation = "crop4_flip" if raw.test.images.shape[1] == 3 else "none"
    check_shape(name, tuple(raw.test.images.shape[1:]), shape)
    train, validation = hold_out(raw.train, validation, len(raw.classes))
    return Dataset(name, raw.variant, train.to(device), validation.to(device), raw.test.to(device), raw.classes,
                   augmentation, dict(threat))


def check_shape(name: str, actual: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    if wanted is not None and tuple(wanted) != tuple(actual):
        raise WorkbookError(f"{name} has images of {readers.shape_text(actual)}, not {readers.shape_text(wanted)}; "
                            "only digits can be made in another shape.")


def find_folder(name: str) -> Path:
    """The image folder that a user means by `name`."""
    for place in (Path(), lib.ROOT, lib.DATASETS):
        if (place / name).is_dir():
            return (place / name).resolve()
    raise WorkbookError(f"There is no dataset {name!r}; choose one of {', '.join(NAMES)}, or give the path of an image "
                        "folder laid out as {train,test}/<class>/<image>.")
