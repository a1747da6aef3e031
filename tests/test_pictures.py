import io

import numpy as np
from PIL import Image

from lib.workbook import pictures


def test_a_smaller_picture_looks_the_same():
    pixels = np.full((300, 400, 3), 255, np.uint8)
    pixels[50:250, 100:300] = np.arange(200, dtype=np.uint8)[:, None, None] // 4 * np.array([4, 2, 1], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    made = pictures.small(file.getvalue())
    again = np.asarray(Image.open(io.BytesIO(made)).convert("RGB"))
    assert again.shape == pixels.shape and np.abs(again.astype(int) - pixels).max() <= 12
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    assert len(pictures.small(file.getvalue())) < len(file.getvalue()) / 2
