"""Readers of the official files: each returns the training and test images in their official order."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from lib import WorkbookError
from lib.data.splits import Split, stratified

TEN_DIGITS = tuple("0123456789")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Raw(NamedTuple):
    """All of a dataset's labelled images, before a validation split is held out of `train`."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    variant: str


def digits(shape: tuple[int, int, int] | None = None) -> Raw:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels, scaled up bilinearly to `shape` (1x28x28).

    The 500 test images are spread evenly over the classes and over the set's order (which goes by writer).
    """
    channels, height, width = shape or (1, 28, 28)
    if channels not in (1, 3) or min(height, width) < 8:
        raise WorkbookError(f"digits come with 1 or 3 channels and sides of at least 8, not {shape_text(shape)}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise WorkbookError("The digits come with scikit-learn, which is missing: pip install scikit-learn.") from None
    grey, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(grey).float().view(-1, 1, 8, 8).mul(255 / 16).round()
    images = interpolate(images, (height, width), mode="bilinear", align_corners=False).round().byte()
    whole = Split(images.repeat(1, channels, 1, 1), torch.from_numpy(labels).long())
    is_test = torch.zeros(len(whole), dtype=torch.bool)
    is_test[stratified(whole.labels, 500)] = True
    return Raw(whole[~is_test], whole[is_test], TEN_DIGITS, "embedded")


def idx(folder: Path, classes: tuple[str, ...]) -> Raw:
    """The four idx files of the MNIST family in `folder`, plain or .gz; they may hold fewer images than the official."""
    arrays = [idx_file(find_idx(folder, name)) for name in IDX_FILES]
    splits = []
    for images, labels, name in ((*arrays[:2], "training"), (*arrays[2:], "test")):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) >= len(classes):
            raise WorkbookError(f"The {name} images and labels in {folder} do not fit together; get the files again.")
        splits.append(Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()))
    train, test = splits
    counts = [f"{len(train):,} training"] * (len(train) != 60_000) + [f"{len(test):,} test"] * (len(test) != 10_000)
    return Raw(train, test, classes, f"first {' and '.join(counts)} images" if counts else "official")


def find_idx(folder: Path, name: str) -> Path | None:
    """The idx file `name` of `folder`, unpacked or as .gz, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def idx_file(path: Path) -> np.ndarray:
    """The unsigned bytes of one idx file (magic 0 0 8 ndim, big-endian sizes, data), of any number of dimensions."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("it is no idx file of unsigned bytes")
        shape = np.frombuffer(content, ">u4", content[3], 4)
        return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as reason:
        raise WorkbookError(f"{path} is damaged or cut short ({reason}); delete it and get it again.") from None


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
