"""Image files in folders: listed in natural order of their names, decoded by a pool of threads."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib import WorkbookError
from lib.data.splits import Raw, Split, natural
from lib.progress import bar

LAYOUT = "{train,test}/<class>/<image>"
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
            ".gif", ".jp2", ".avif", ".tga")
GREY, COLOUR = {"1", "L", "LA"}, {"P", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's modes of at most 8 bits per channel
CHUNK = 128  # images per task of a thread


def image_folder(folder: Path) -> Raw:
    """Any image folder {train,test}/<class>/<image>; the class folders of train number the classes, in natural order.

    Images may lie at any depth below their class and are ordered by file name across classes, numbers by value, so that
    files named by their index in an official set come in its order. Grey images become colour when any other is.
    `variant` says how many other files were passed over.
    """
    classes = sorted((entry.name for entry in listing(folder / "train") if entry.is_dir()), key=natural)
    if not classes or len(classes) == 1 and any(e.is_dir() for e in listing(folder / "train" / classes[0])):
        raise WorkbookError(f"{folder / 'train'} has no class folders, or holds them one level deeper; an image folder "
                            f"is laid out as {LAYOUT}.")
    train, test = (list_images(folder / part, classes) for part in ("train", "test"))
    if empty := set(range(len(classes))) - {label for _, label in train}:
        raise WorkbookError(f"{folder / 'train' / classes[min(empty)]} holds no image that can be read "
                            f"({', '.join(SUFFIXES)}); add some or remove the folder.")
    images = decode([path for path, _ in train + test], folder.name)
    labels = torch.tensor([label for _, label in train + test])
    whole, cut = Split(images, labels), len(train)
    others = sum(len(files(folder / part)) for part in ("train", "test")) - len(whole)
    passed = f", {others:,} other files passed over" if others else ""
    return Raw(whole[:cut], whole[cut:], tuple(classes), f"image folder {folder.name}{passed}")


def tiny_imagenet(folder: Path) -> Raw:
    """tiny-imagenet-200 as its zip unpacks: train/<wnid>/images/*, val/images/* with val/val_annotations.txt; or with
    its validation images sorted into folders val/<wnid>, as many do.

    The official validation images are the test set, because the labels of the official test images are not public.
    Classes are numbered by sorted WordNet id and named by the first word that words.txt has for it.
    """
    wnids = sorted(entry.name for entry in listing(folder / "train") if entry.is_dir())
    train = [(path, label) for label, wnid in enumerate(wnids) for path in image_paths(folder / "train" / wnid)]
    number = {wnid: label for label, wnid in enumerate(wnids)}

    def rows(path: Path, cuts: int) -> list[list[str]]:
        return [line.split("\t", cuts) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []

    try:
        word = dict(rows(folder / "words.txt", 1))
        annotated = {name: wnid for name, wnid, *_ in rows(folder / "val" / "val_annotations.txt", 2)}
        sorted_into = {path: Path(path).relative_to(folder / "val").parts[0] for path in image_paths(folder / "val")}
        test = [(path, number[place if place in number else annotated[os.path.basename(path)]])
                for path, place in sorted_into.items()]
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


def files(folder: Path) -> list[str]:
    """Every file at any depth below `folder`, hidden ones and hidden folders left out."""
    found = (files(Path(entry.path)) if entry.is_dir() else [entry.path] for entry in listing(folder))
    return [path for paths in found for path in paths]


def image_paths(folder: Path) -> list[str]:
    """The image files at any depth below `folder`, in the natural order of their names."""
    images = (path for path in files(folder) if path.lower().endswith(SUFFIXES))
    return sorted(images, key=lambda path: natural(os.path.basename(path)))


def list_images(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """(path, label) of every image below `folder`, in the natural order of file names, whatever their class."""
    strange = sorted(entry.name for entry in listing(folder) if entry.is_dir() and entry.name not in classes)
    if strange:
        raise WorkbookError(f"{folder} has a class {strange[0]!r} that the training images lack; remove or add it.")
    if loose := [entry.path for entry in listing(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]:
        raise WorkbookError(f"{min(loose)} lies in no class folder; an image folder is laid out as {LAYOUT}.")
    places = [(folder / name, label) for label, name in enumerate(classes) if (folder / name).is_dir()]
    images = [(path, label) for place, label in places for path in image_paths(place)]
    if not images:
        raise WorkbookError(f"There are no images below {folder}; an image folder is laid out as {LAYOUT}.")
    return sorted(images, key=lambda image: natural(os.path.basename(image[0])))


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
    """(the image in RGB, upright as its EXIF orientation says; whether it has colour)."""
    try:
        with Image.open(path) as image:
            if image.mode not in GREY | COLOUR:
                raise ValueError(f"its pixels are of kind {image.mode}, not 8 bits per channel")
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"it holds {image.n_frames} images")
            return ImageOps.exif_transpose(image).convert("RGB"), image.mode in COLOUR
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        text = str(reason).replace(f" {str(path)!r}", "")
        raise WorkbookError(f"{path} cannot be read as an image ({text}); replace or remove it.") from None
