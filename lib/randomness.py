"""Every random draw of the project comes from a generator made here; the global one is never used.

A stream is named by a seed and labels ("train", step), ("attack", form, batch), so that no generator state has to be
saved: whoever knows the labels can draw the same numbers again, after a killed run or on another machine.
"""

import hashlib

import torch


def generator(seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on `seed` and the stream's labels alone, not on what was drawn before."""
    digest = hashlib.sha256(repr((int(seed), *stream)).encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
