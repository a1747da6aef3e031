"""Pictures of figures, small enough to live in a notebook file."""

import io

from PIL import Image


def small(png: bytes, colours: int = 256) -> bytes:
    """The same picture with a palette, a third to a quarter of the bytes; figures need few colours."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(colours).save(file, "png", optimize=True)
    return file.getvalue()
