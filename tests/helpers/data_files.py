"""What tests of datasets share: pixels to write, and what the text of an error has to be."""

import numpy as np

NUMPY = np.random.default_rng(0)


def pixels(*shape):
    return NUMPY.integers(0, 256, shape, dtype=np.uint8)


def sentence(error) -> str:
    """The error's text, which has to be what a person can read in one go."""
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith("."), text
    return text
