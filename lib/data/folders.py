"""Image files in folders: listed in natural order of their names, decoded by a pool of threads."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib import WorkbookError
from lib.data.splits import Raw, Split
from lib.progress import bar

LAYOUT = "{train,test}/<class>/<image>"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
GREY, COLOUR = {"1", "L", "LA"}, {"P", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's modes of at most 8 bits per channel
CHUNK = 128  # images per task of a thread


def image_folder(folder: Path) -> Raw:
    """Any image folder {train,test}/<class>/<image>; the sorted class folders of train number the classes.

    Images are ordered by file name across classes, numbers by value, so that files named by their index in an official
    set come in its order. Grey images become colour when any other is.
    """
    classes = sorted(entry.name for entry in listing(folder / "train") if entry.is_dir())
    train, test = (list_images(folder / part, classes) for part in ("train", "test"))
    images = decode([path for path, _ in train + test], folder.name)
    labels = torch.tensor([label for _, label in train + test])
    whole, cut = Split(images, labels), len(train)
    return Raw(whole[:cut], whole[cut:], tuple(classes), f"image folder {folder.name}")


def tiny_imagenet(folder: Path) -> Raw:
    """tiny-imagenet-200 as its zip unpacks: train/<wnid>/images/*, val/images/* with val/val_annotations.txt.

    The official validation images are the test set, because the labels of the official test images are not public.
    Classes are numbered by sorted WordNet id and named by the first word that words.txt has for it.
    """
    wnids = sorted(entry.name for entry in listing(folder / "train") if entry.is_dir())
    places = [folder / "train" / wnid / "images" for wnid in wnids]
    train = [(path, label) for label, place in enumerate(places) for path in image_paths(place)]
    number = {wnid: label for label, wnid in enumerate(wnids)}
    try:
        rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text("utf-8").splitlines()]
        label_of = {name: number[wnid] for name, wnid, *_ in rows}
        words = folder / "words.txt"
        word = dict(line.split("\t", 1) for line in words.read_text("utf-8").splitlines()) if words.is_file() else {}
        test = [(path, label_of[os.path.basename(path)]) for path in image_paths(folder / "val" / "images")]
    except (OSError, ValueError, KeyError) as reason:
        raise WorkbookError(f"The files in {folder} do not fit together ({reason!r}); unpack the zip again.") from None
    images = decode([path for path, _ in train + test], folder.name)
    whole, cut = Split(images, torch.tensor([label for _, label in train + test])), len(train)
    official = (cut, len(test)) == (100_000, 10_000)
    variant = "official" if official else f"{cut:,} training and {len(test):,} validation images"
    return Raw(whole[:cut], whole[cut:], tuple(word.get(wnid, wnid).split(",")[0] for wnid in wnids), variant)


def listing(folder: Path) -> list[os.DirEntry]:
    if not folder.is_dir():
        raise WorkbookError(f"The folder {folder} is missing; an image folder is laid out as {LAYOUT}.")
    return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]


def image_paths(folder: Path) -> list[str]:
    """The image files right in `folder`, in the natural order of their names."""
    names = (entry.name for entry in listing(folder) if entry.name.lower().endswith(SUFFIXES))
    return [os.path.join(folder, name) for name in sorted(names, key=natural)]


def list_images(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """(path, label) of every image below `folder`, in the natural order of file names, whatever their class."""
    strange = sorted(entry.name for entry in listing(folder) if entry.is_dir() and entry.name not in classes)
    if strange:
        raise WorkbookError(f"{folder} has a class {strange[0]!r} that the training images lack; remove or add it.")
    places = [(folder / name, label) for label, name in enumerate(classes) if (folder / name).is_dir()]
    files = [(path, label) for place, label in places for path in image_paths(place)]
    if not files:
        raise WorkbookError(f"There are no images below {folder}; an image folder is laid out as {LAYOUT}.")
    return sorted(files, key=lambda file: natural(os.path.basename(file[0])))


def natural(name: str) -> list[str | int]:
    """A sort key that compares runs of digits by value: 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]


def decode(paths: list[str], title: str) -> Tensor:
    """The images of `paths` as uint8 (N, 1 or 3, H, W): three channels when any of them is in colour.

    Raises WorkbookError naming the first file that cannot be read or that differs in size from the first of all.
    """
    width, height = read_image(paths[0])[0].size
    pixels = np.empty((len(paths), height, width, 3), np.uint8)

    def read(start: int) -> list[bool]:
        colourful = []
        for number in range(start, min(start + CHUNK, len(paths))):
            image, in_colour = read_image(paths[number])
            if image.size != (width, height):
                raise WorkbookError(f"{paths[number]} has {image.width}x{image.height} pixels where {paths[0]} has "
                                    f"{width}x{height}; all images of a folder must have one size.")
            pixels[number] = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
            colourful.append(in_colour)
        return colourful

    in_colour = False
    with (ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
          bar(len(paths), f"decode {title}", "image") as shown):
        try:
            for colourful in pool.map(read, range(0, len(paths), CHUNK)):
                in_colour |= any(colourful)
                shown.update(len(colourful))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(pixels if in_colour else pixels[..., :1]).permute(0, 3, 1, 2).contiguous()


def read_image(path: str) -> tuple[Image.Image, bool]:
    """(the image in RGB, whether it has colour)."""
    try:
        with Image.open(path) as image:
            if image.mode not in GREY | COLOUR:
                raise ValueError(f"its pixels are of kind {image.mode}, not 8 bits per channel")
            return image.convert("RGB"), image.mode in COLOUR
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        text = str(reason).replace(f" {str(path)!r}", "")
        raise WorkbookError(f"{path} cannot be read as an image ({text}); replace or remove it.") from None
