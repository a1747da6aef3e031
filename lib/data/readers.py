"""Readers of official files: each returns the labelled training and test images in their official order."""

import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from lib import WorkbookError
from lib.data.splits import TEN_DIGITS, Raw, Split, stratified

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def digits(shape: tuple[int, int, int] | None = None) -> Raw:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), scaled up bilinearly to `shape`, 1x28x28 if None.

    The 500 test images are spread evenly over the classes and over the set's order, which goes by writer.
    """
    channels, height, width = (*shape, 0, 0, 0)[:3] if shape else (1, 28, 28)
    if channels not in (1, 3) or min(height, width) < 8:
        raise WorkbookError("Digits are made with 1 or 3 channels and sides of at least 8 pixels, such as 1x28x28, "
                            f"not {shape_text(shape)}.")
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


def idx(folder: Path, classes: tuple[str, ...] = TEN_DIGITS) -> Raw:
    """The four idx files of the MNIST family in `folder`, plain or .gz; `variant` says when they hold fewer images."""
    splits, missing = [], []
    for name, official, files in (("training", 60_000, IDX_FILES[:2]), ("test", 10_000, IDX_FILES[2:])):
        places = ([folder / file, folder / f"{file}.gz"] for file in files)
        images, labels = (idx_file(next(filter(Path.is_file, both))) for both in places)
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(classes):
            raise WorkbookError(f"The {name} images and labels in {folder} do not fit together; get them again.")
        splits.append(Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()))
        missing += [f"{len(images):,} {name}"] * (len(images) != official)
    return Raw(*splits, classes, f"first {' and '.join(missing)} images" if missing else "official")


def idx_file(path: Path) -> np.ndarray:
    """The unsigned bytes of one idx file: 0 0 8 ndim, then the sizes big-endian, then exactly the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("no idx file of unsigned bytes")
        start = 4 + 4 * content[3]
        shape = np.frombuffer(content[4:start], ">u4")
        return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as reason:
        raise WorkbookError(f"{path} is damaged or cut short ({reason}); delete it and get it again.") from None


def cifar(folder: Path, loader: str) -> Raw:
    """CIFAR10 or CIFAR100 (`loader`) by torchvision, which compares every file with its published checksum."""
    from torchvision import datasets

    parts = [getattr(datasets, loader)(folder.parent, train=train) for train in (True, False)]
    return official([(part.data.transpose(0, 3, 1, 2), part.targets) for part in parts], parts[0].classes)


cifar10, cifar100 = partial(cifar, loader="CIFAR10"), partial(cifar, loader="CIFAR100")


def svhn(folder: Path) -> Raw:
    """SVHN's cropped digits (without the extra set) by torchvision; the digit 0 is class 0."""
    from torchvision import datasets

    try:
        parts = [datasets.SVHN(folder, split) for split in ("train", "test")]
    except ImportError:
        raise WorkbookError("SVHN's files are read with scipy, which is missing: pip install scipy.") from None
    return official([(part.data, part.labels) for part in parts], TEN_DIGITS)


def stl10(folder: Path) -> Raw:
    """STL-10's labelled images by torchvision."""
    from torchvision import datasets

    class Labelled(datasets.STL10):
        train_list = datasets.STL10.train_list[:2]  # else torchvision insists on the 2.6 GB of unlabelled images

    parts = [Labelled(folder.parent, split) for split in ("train", "test")]
    return official([(part.data, part.labels) for part in parts], parts[0].classes)


def official(parts: Sequence[tuple], classes: Sequence[str]) -> Raw:
    """From (pixels (N, C, H, W), labels (N,)) of the training and test images."""
    return Raw(*(Split(torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels).long())
                 for pixels, labels in parts), tuple(classes), "official")


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
