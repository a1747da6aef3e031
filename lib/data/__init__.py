"""Datasets as uint8 tensors that live on the device, and their augmentation there.

    mnist = data.load("mnist", device="cuda")
    images, labels = mnist.test.floats(slice(0, 500))

A dataset is named, or is any image folder {train,test}/<class>/<image>. Every one has a validation split that is held
out of its training images, the same for every seed.
"""

from dataclasses import replace
from pathlib import Path

import torch

import lib
from lib import WorkbookError
from lib.data import readers
from lib.data.folders import LAYOUT, image_folder
from lib.data.official import COLOUR_THREAT, SOURCES, available, read_files
from lib.data.splits import CLASSES, Dataset, Raw, Split, augment, hold_out, match

__all__ = ["CLASSES", "NAMES", "Dataset", "Raw", "Split", "augment", "available", "find_folder", "load", "match"]

NAMES = ("digits", *SOURCES)
# Our own choice, as no paper attacks digits: at 0.15 the standard networks we tried fall below 10 %, while training
# with 7 steps keeps a small one above 50 %. In 20 steps, steps of epsilon / 5 do no worse than epsilon / 10.
DIGITS_THREAT = dict(epsilon=0.15, step_size=0.03, train_steps=7, steps=20)
DIGITS_VALIDATION = 200


def load(name: str | Path, *, device: torch.device | str = "cpu", shape: tuple[int, int, int] | None = None,
         download: bool = True, validation: int | None = None) -> Dataset:
    """The dataset `name` (one of NAMES), or the image folder at that path, on `device`.

    shape: (channels, height, width) that a network expects; digits are made in it, any other dataset must have it.
    download: whether missing files of a named dataset may be fetched into lib.DATASETS.
    validation: how many training images are held out; None: 200 of digits, else a tenth but at most 5,000.
    A path is looked up from the current folder, from the repository and from lib.DATASETS, in this order.
    Raises WorkbookError for an unknown name, for missing or damaged files and for a shape the dataset does not have.
    """
    name = str(name)
    if name == "digits":
        raw, threat, augmentation = readers.digits(shape), DIGITS_THREAT, "none"
        validation = DIGITS_VALIDATION if validation is None else validation
    elif name in SOURCES:
        source = SOURCES[name]
        check_shape(name, source.shape, shape)
        raw, threat, augmentation = read_files(name, download), source.threat, source.augmentation
    else:
        folder = find_folder(name)
        name, raw, threat = folder.name, image_folder(folder), COLOUR_THREAT
        augmentation = "crop4_flip" if len(raw.test.images[0]) == 3 else "none"
    for part, split in (("training", raw.train), ("test", raw.test)):
        if not len(split):
            raise WorkbookError(f"{name} has no {part} images; put some there, or load another dataset.")
    check_shape(name, raw.test.images.shape[1:], shape)
    raw = raw._replace(train=replace(raw.train, classes=raw.classes), test=replace(raw.test, classes=raw.classes))
    train, validation = hold_out(raw.train, validation, len(raw.classes))
    return Dataset(name, raw.variant, train.to(device), validation.to(device), raw.test.to(device), raw.classes,
                   augmentation, dict(threat))


def check_shape(name: str, actual: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    if wanted is not None and tuple(wanted) != tuple(actual):
        raise WorkbookError(f"{name} has images of {readers.shape_text(actual)}, not {readers.shape_text(wanted)}; "
                            "only digits can be made in another shape.")


def find_folder(name: str) -> Path:
    """The image folder that a user means by `name`."""
    for folder in lib.candidates(name):
        if folder.is_dir():
            return folder.resolve()
    raise WorkbookError(f"There is no dataset {name!r}; choose one of {', '.join(NAMES)}, or give the path of an image "
                        f"folder {LAYOUT}.")
