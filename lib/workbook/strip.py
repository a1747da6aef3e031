"""An image strip: pictures laid out in rows, one row per exit, each with a frame that says whether it is right."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lib.evaluation.reading import Reading
from lib.workbook import style

GAP, FRAME, ENLARGE = 6, 2, 2


def png_uri(pixels: np.ndarray, enlarge: int = 1) -> str:
    """A data URI of uint8 pixels (H, W) or (H, W, 3), each drawn as `enlarge` x `enlarge`."""
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


@dataclass(frozen=True)
class Strip:
    """Which of the sampled images leave where: rows (exits) of image indices, and for each whether it is right."""

    rows: list[np.ndarray]
    right: np.ndarray
    columns: int

    @classmethod
    def of(cls, reading: Reading, form: str, sample: np.ndarray, columns: int) -> "Strip":
        """The `sample` (indices) as it leaves under `form`, surest first, at most `columns` a row."""
        leaving, right = reading.leaving[form][0][sample], reading.right(form) == 1
        entropy = reading.record.entropy[reading.first(form)]
        rows = []
        for k in range(reading.record.num_exits):
            here = sample[leaving == k]
            rows.append(here[np.argsort(entropy[k, here], kind="stable")][:columns])
        return cls(rows, right, columns)

    def places(self) -> tuple[list[float], list[float], list[int]]:
        """Centres x (column) and y (row) of the pictures, and their indices."""
        filled = [(c + 0.5, r + 0.5, int(i)) for r, row in enumerate(self.rows) for c, i in enumerate(row)]
        return tuple(map(list, zip(*filled, strict=True))) if filled else ([], [], [])

    def picture(self, pixels: np.ndarray) -> str:
        """The whole strip as a data URI; pixels: uint8 (N, H, W, 3) of all images."""
        height, width = (side + 2 * FRAME for side in pixels.shape[1:3])
        canvas = np.full((len(self.rows) * (height + GAP), self.columns * (width + GAP), 3), 255, np.uint8)
        frames = {True: style.rgb(style.RULE), False: style.rgb(style.ATTACKED)}
        for r, row in enumerate(self.rows):
            for c, index in enumerate(row):
                top, left = r * (height + GAP) + GAP // 2, c * (width + GAP) + GAP // 2
                canvas[top:top + height, left:left + width] = frames[bool(self.right[index])]
                canvas[top + FRAME:top + height - FRAME, left + FRAME:left + width - FRAME] = pixels[index]
        return png_uri(canvas, ENLARGE)
