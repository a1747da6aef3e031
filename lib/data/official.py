"""Where the official datasets are looked for, and how they are fetched when they are missing."""

from pathlib import Path

import lib
from lib.data import readers

FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                   "Ankle boot")
SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's and Ubuntu's package dataset-fashion-mnist


def mnist(download: bool) -> readers.Raw:
    return readers.idx(lib.DATASETS / "MNIST" / "raw", readers.TEN_DIGITS)


def fashion_mnist(download: bool) -> readers.Raw:
    return readers.idx(SYSTEM_FASHION, FASHION_CLASSES)
