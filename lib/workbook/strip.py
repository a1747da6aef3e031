"""An image strip: pictures in a grid of cells, each framed where the answer to its image is wrong."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.evaluation import routing
from lib.evaluation.reading import Reading
from lib.workbook import style

GAP, FRAME, ENLARGE = 6, 2, 2


class Cell(NamedTuple):
    """Where a picture stands, which image of the record it is, and what the network says to it."""

    row: int
    column: int
    index: int
    said: int
    right: bool


def png_uri(pixels: np.ndarray, enlarge: int = 1) -> str:
    """A data URI of uint8 pixels (H, W, 3 or 4), each drawn as `enlarge` x `enlarge`."""
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if enlarge > 1:
        picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    picture.quantize(64, Image.Quantize.FASTOCTREE).save(file, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def as_pixels(images) -> np.ndarray:
    """Images (N, C, H, W), uint8 or floats in [0, 1], as uint8 (N, H, W, 3)."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (*array.shape[:1], *array.shape[2:], 3))


def answers(reading: Reading, view: str, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(exit, answer) of the sampled images in a view's first draw."""
    leaving = reading.leaving[view][0][sample]
    return leaving, routing.at_exit(reading.record.prediction[reading.first(view)][:, sample], leaving)


def by_exit(reading: Reading, view: str, sample: np.ndarray, left: int, columns: int) -> list[Cell]:
    """A row per exit with the images that leave there, surest first, in `columns` columns from `left` on."""
    sample = sample[sample < reading.record.images]
    leaving, said = answers(reading, view, sample)
    entropy, labels, cells = reading.record.entropy[reading.first(view)], reading.record.labels, []
    for row in range(reading.record.num_exits):
        here = np.flatnonzero(leaving == row)
        for place, k in enumerate(here[np.argsort(entropy[row, sample[here]], kind="stable")][:columns]):
            cells.append(Cell(row, left + place, int(sample[k]), int(said[k]), bool(said[k] == labels[sample[k]])))
    return cells


def in_a_row(reading: Reading, view: str, sample: np.ndarray, row: int) -> list[Cell]:
    """The sampled images side by side."""
    sample = sample[sample < reading.record.images]
    said = answers(reading, view, sample)[1]
    return [Cell(row, place, int(i), int(a), bool(a == reading.record.labels[i]))
            for place, (i, a) in enumerate(zip(sample, said, strict=True))]


def picture(cells: list[Cell], rows: int, columns: int, pixels: dict[int, np.ndarray]) -> str:
    """The whole strip as a data URI; pixels: uint8 (H, W, 3) by image."""
    height, width = (side + 2 * FRAME for side in next(iter(pixels.values())).shape[:2])
    canvas = np.zeros((rows * (height + GAP), columns * (width + GAP), 4), np.uint8)
    for cell in cells:
        top, left = cell.row * (height + GAP) + GAP // 2, cell.column * (width + GAP) + GAP // 2
        canvas[top:top + height, left:left + width] = [*style.rgb(style.RULE if cell.right else style.ATTACKED), 255]
        canvas[top + FRAME:top + height - FRAME, left + FRAME:left + width - FRAME, :3] = pixels[cell.index]
    return png_uri(canvas, ENLARGE)
