"""Images in folders, {train,test}/<class>/<name>: ordered by name across classes, decoded by a pool of threads."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from lib import WorkbookError
from lib.data.readers import Raw
from lib.data.splits import Split

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}
GREY, COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "CMYK", "YCbCr"}


def image_folder(folder: Path) -> Raw:
    """Any image folder {train,test}/<class>/<image>; the sorted class folders of train number the classes.

    Images are ordered by file name across classes, numbers by value, so that files named by their index in an official
    set come in its order. Grey images become colour when any other is.
    """
    classes = sorted(path.name for path in visible(folder / "train") if path.is_dir())
    lists = [list_images(folder / part, classes) for part in ("train", "test")]
    images = decode([path for files in lists for path, _ in files], folder.name)
    labels = torch.tensor([label for files in lists for _, label in files])
    cut = len(lists[0])
    return Raw(Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]), tuple(classes),
               f"image folder {folder.name}")


def visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise WorkbookError(f"{folder} is missing; an image folder is laid out as {{train,test}}/<class>/<image>.")
    return [Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")]


def list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """(path, label) of every image below `folder`, in the natural order of file names (2.png before 10.png)."""
    files = []
    for place in visible(folder):
        if place.is_dir() and place.name not in classes:
            raise WorkbookError(f"{place} is a class that the training images do not have; remove it or add it there.")
        if place.is_dir():
            label = classes.index(place.name)
            files += [(path, label) for path in visible(place) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise WorkbookError(f"There are no images in {folder}; it should hold <class>/<image> with png or jpg files.")
    return sorted(files, key=lambda file: (natural(file[0].name), file[1]))


def natural(name: str) -> list[str | int]:
    """A sort key that compares runs of digits by value."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]


def decode(paths: list[Path], title: str) -> Tensor:
    """The images of `paths` as uint8 (N, 1 or 3, H, W): three channels when any of them is in colour.

    Raises WorkbookError that names the first file that cannot be read or that differs in size from the first one.
    """
    width, height = read_image(paths[0])[0].size
    pixels = np.empty((len(paths), height, width, 3), np.uint8)

    def read(number: int) -> bool:
        image, in_colour = read_image(paths[number])
        if image.size != (width, height):
            raise WorkbookError(f"{paths[number]} is {image.width}x{image.height} pixels but {paths[0]} is "
                                f"{width}x{height}; all images of a folder must have one size.")
        pixels[number] = image
        return in_colour

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            bar = tqdm(pool.map(read, range(len(paths))), f"decode {title}", len(paths), unit="image", leave=False)
            in_colour = any([colour for colour in bar])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return torch.from_numpy(pixels if in_colour else pixels[..., :1]).permute(0, 3, 1, 2).contiguous()


def read_image(path: Path) -> tuple[Image.Image, bool]:
    """(the image in RGB, whether it has colour)."""
    try:
        with Image.open(path) as image:
            if image.mode not in GREY | COLOUR:
                raise ValueError(f"pixel mode {image.mode} is not 8 bits per channel")
            return image.convert("RGB"), image.mode in COLOUR
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        raise WorkbookError(f"{path} cannot be read as an image ({reason}); replace or remove it.") from None
