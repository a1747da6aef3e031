"""Augmentation on the device: a whole batch is cropped and flipped by one gather."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from lib import WorkbookError

PADDING = {"none": 0, "crop4_flip": 4, "crop8_flip": 8}


def augment(images: Tensor, generator: torch.Generator, how: str) -> Tensor:
    """A training batch: every image is zero-padded, cropped back to its size at random, and flipped half of the time.

    images: uint8 (B, C, H, W). how: "none", "crop4_flip" (padding 4) or "crop8_flip" (padding 8). All randomness comes
    from `generator`, which lives on the images' device; nothing is read back to the host.
    Returns float32 (B, C, H, W) in [0, 1], exactly pixel / 255; three channels come in channels_last memory format.
    Raises WorkbookError for another `how`.
    """
    if how not in PADDING:
        raise WorkbookError(f"There is no augmentation {how!r}; choose one of {', '.join(PADDING)}.")
    pixels = images.permute(0, 2, 3, 1)
    if how != "none":
        count, height, width, _ = pixels.shape
        device, padding = images.device, PADDING[how]
        draw = lambda n: torch.randint(n, (count, 1), generator=generator, device=device)  # noqa: E731
        column = torch.arange(width, device=device)
        rows = draw(2 * padding + 1) + torch.arange(height, device=device)
        columns = draw(2 * padding + 1) + torch.where(draw(2) == 1, width - 1 - column, column)
        batch = torch.arange(count, device=device)[:, None, None]
        pixels = pad(pixels, (0, 0, padding, padding, padding, padding))[batch, rows[:, :, None], columns[:, None, :]]
    return pixels.contiguous().permute(0, 3, 1, 2).float().div_(255)
