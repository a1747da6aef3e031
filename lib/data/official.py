"""The named datasets: where their official files lie, how missing ones are fetched, how the papers train and attack."""

import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from tarfile import TarError

import lib
from lib import WorkbookError, locks
from lib.data import folders, readers
from lib.data.splits import CLASSES, Raw

MNIST_THREAT = dict(epsilon=0.3, step_size=0.01, train_steps=40, steps=40)  # RDI-Nets, section 4.1
FASHION_THREAT = dict(epsilon=0.1, step_size=0.01, train_steps=40, steps=40)  # customary; neither paper uses the set
COLOUR_THREAT = dict(epsilon=8 / 255, step_size=2 / 255, train_steps=10, steps=20)  # RDI-Nets, section 4.1
SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the system package dataset-fashion-mnist puts it
CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PATIENCE = 30  # seconds that a silent server is waited for
FAILURES = (OSError, RuntimeError, ValueError, EOFError, HTTPException, TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Source:
    """A named dataset. folder and archive are below lib.DATASETS; `files` (plain or .gz) make the folder complete."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], Raw]  # given the folder
    fetch: Callable[[Path], None] | None = None  # fills folder below the given place
    page: str = "whoever made it"  # where a person gets the files
    shape: tuple[int, int, int] = (3, 32, 32)
    threat: dict[str, float] = field(default_factory=lambda: COLOUR_THREAT)
    augmentation: str = "none"
    classes: int = 10
    archive: str | None = None  # unpacked when it is there
    elsewhere: Path | None = None  # a second place that may hold the files
    sizes: tuple[int, int] = (45_000, 10_000)  # of the whole set: training images that are not held out, test images

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if not ((folder / name).exists() or (folder / f"{name}.gz").exists())]

    def find(self) -> Path | None:
        """The folder that holds all files, or None."""
        places = (lib.DATASETS / self.folder, self.elsewhere)
        return next((place for place in places if place and not self.missing(place)), None)


def torchvision_download(loader: str) -> Callable[[Path], None]:
    def fetch(place: Path) -> None:
        from torchvision import datasets

        getattr(datasets, loader)(place, download=True)

    return fetch


def download_svhn(place: Path) -> None:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    for part in ("train", "test"):
        download_url(SVHN.split_list[part][0], place / "SVHN", md5=SVHN.split_list[part][2])


def download_tiny_imagenet(place: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(SOURCES["tiny_imagenet"].page, place, md5="90528d7ca1a48142e341f4ef8d21d0de")


def read_files(name: str, download: bool) -> Raw:
    """The named dataset from its files, which are unpacked or (if allowed) downloaded where they are missing.

    Raises WorkbookError when they are missing and cannot be had, or are not what they should be.
    """
    source = SOURCES[name]
    folder = source.find() or place_files(name, source, download)
    try:
        return source.read(folder)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, UnpicklingError):
        raise WorkbookError(f"The files of {name} in {folder} are damaged: their content or a checksum is not the "
                            "official one; delete that folder and load again.") from None


def place_files(name: str, source: Source, download: bool) -> Path:
    """Fills the source's folder: everything is made in a folder beside it and moved in when it is complete."""
    folder = lib.DATASETS / source.folder
    archive = lib.DATASETS / source.archive if source.archive else None
    if not (download and source.fetch) and not (archive and archive.is_file()):
        reason = "downloading was not asked for" if source.fetch else "it is not downloaded"
        raise missing_error(name, source, reason)
    try:
        with one_at_a_time(name) as scratch:
            if source.missing(folder):
                fill(scratch, source, archive)
                folder.mkdir(parents=True, exist_ok=True)
                for entry in (scratch / source.folder).iterdir():
                    if not (folder / entry.name).exists():
                        entry.rename(folder / entry.name)
    except FAILURES as reason:
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise missing_error(name, source, f"getting it failed: {text}") from None
    return folder


def fill(scratch: Path, source: Source, archive: Path | None) -> None:
    """Unpacks the archive that somebody placed, or else downloads, into `scratch`."""
    from torchvision.datasets.utils import extract_archive

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        extract_archive(archive, scratch) if archive and archive.is_file() else source.fetch(scratch)
    finally:
        socket.setdefaulttimeout(patience)
    for unlabelled in scratch.glob("*/unlabeled_X.bin"):  # 2.6 GB of STL-10 that nothing here reads
        unlabelled.unlink()


@contextmanager
def one_at_a_time(name: str) -> Iterator[Path]:
    """An empty folder for one download, which other processes wait for; what a killed one left is removed first."""
    lib.writable(lib.DATASETS, "name another place with WORKBOOK_DATA").mkdir(parents=True, exist_ok=True)
    scratch = lib.DATASETS / f".{name}.part"
    with locks.beside(lib.DATASETS / name):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def missing_error(name: str, source: Source, reason: str) -> WorkbookError:
    folder, others = lib.DATASETS / source.folder, ", ".join(image_folders())
    what = f"{source.archive} into {lib.DATASETS}" if source.archive else f"{', '.join(source.files)} into {folder}"
    instead = f", or load an image folder instead ({others})" if others else ""
    return WorkbookError(f"{name} is not in {folder} ({reason}): put {what}, from {source.page}{instead}; "
                         "data/README.md says more.")


def image_folders() -> dict[str, Path]:
    """The image folders of somebody's own in lib.DATASETS."""
    places = sorted(path.parent for path in lib.DATASETS.glob("*/train") if (path.parent / "test").is_dir())
    return {place.name: place for place in places if place.name not in {source.folder for source in SOURCES.values()}}


def available() -> dict[str, Path]:
    """What can be loaded from disk without a download, and where it lies: named datasets, then image folders."""
    return {name: place for name, source in SOURCES.items() if (place := source.find())} | image_folders()


SOURCES = {
    "mnist": Source("MNIST/raw", readers.IDX_FILES, readers.idx, torchvision_download("MNIST"),
                    "https://ossci-datasets.s3.amazonaws.com/mnist/", (1, 28, 28), MNIST_THREAT,
                    sizes=(55_000, 10_000)),
    "fashion_mnist": Source("FashionMNIST/raw", readers.IDX_FILES,
                            partial(readers.idx, classes=CLASSES["fashion_mnist"]),
                            torchvision_download("FashionMNIST"), "https://github.com/zalandoresearch/fashion-mnist",
                            (1, 28, 28), FASHION_THREAT, elsewhere=SYSTEM_FASHION, sizes=(55_000, 10_000)),
    "cifar10": Source("cifar-10-batches-py", (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"),
                      readers.cifar10, torchvision_download("CIFAR10"), CIFAR_PAGE,
                      augmentation="crop4_flip", archive="cifar-10-python.tar.gz"),
    "cifar100": Source("cifar-100-python", ("train", "test", "meta"), readers.cifar100,
                       torchvision_download("CIFAR100"), CIFAR_PAGE,
                       augmentation="crop4_flip", archive="cifar-100-python.tar.gz", classes=100),
    "svhn": Source("SVHN", ("train_32x32.mat", "test_32x32.mat"), readers.svhn, download_svhn,
                   "http://ufldl.stanford.edu/housenumbers/", sizes=(68_257, 26_032)),
    "stl10": Source("stl10_binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"),
                    readers.stl10, torchvision_download("STL10"), "https://cs.stanford.edu/~acoates/stl10/",
                    (3, 96, 96), augmentation="crop4_flip", archive="stl10_binary.tar.gz", sizes=(4_500, 8_000)),
    "tiny_imagenet": Source("tiny-imagenet-200", ("train", "val"), folders.tiny_imagenet, download_tiny_imagenet,
                            "http://cs231n.stanford.edu/tiny-imagenet-200.zip", (3, 64, 64),
                            augmentation="crop8_flip", archive="tiny-imagenet-200.zip", classes=200,
                            sizes=(95_000, 10_000)),
}
