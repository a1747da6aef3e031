"""Numbers with intervals."""

import math
from typing import NamedTuple

import numpy as np
import torch

from lib import WorkbookError, randomness

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Number(NamedTuple):
    """A value and its 95 % interval; low and high are None where it has none (a cost is counted, not drawn)."""

    value: float
    low: float | None = None
    high: float | None = None
def wilson(successes: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion; stays inside [0, 1] and has width even at 0 and at 1."""
    if total < 1:
        raise WorkbookError("an interval needs at least one image")
    p, z2 = successes / total, Z95**2 / total
    centre, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2)
    return low, 1.0 if successes == total else (centre + half) / (1 + z2)


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = 10_000) -> dict:
    """Mean of `first` - `second` over the same images, with a 95 % percentile bootstrap over images.

    first, second: (N,) correct or not, or scores such as means over draws; or (S, N), S trainings on the same images,
    and then trainings and images are both drawn anew. Returns {"difference", "low", "high"}.
    A bootstrap sample of images only needs to know how often each distinct difference was drawn, which is multinomial:
    drawn as a chain of binomials, 10,000 resamples of 10,000 images take milliseconds. Raises WorkbookError when both
    are not of the same images.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise WorkbookError(f"a paired comparison needs the same images twice, not {first.shape} and {second.shape}")
    gap, source = np.atleast_2d(first - second), randomness.generator(seed, "bootstrap")
    trainings, images = gap.shape
    patterns, counts = np.unique(gap.T, axis=0, return_counts=True)
    left, weight = torch.full((resamples,), float(images), dtype=torch.float64), float(images)
    totals = torch.zeros(resamples, trainings, dtype=torch.float64)
    for pattern, count in zip(torch.from_numpy(patterns), counts, strict=True):
        drawn = torch.binomial(left, torch.full_like(left, min(1.0, count / weight)), generator=source)
        totals, left, weight = totals + drawn[:, None] * pattern, left - drawn, weight - count
    chosen = torch.randint(trainings, (resamples, trainings), generator=source)
    low, high = np.quantile((totals.gather(1, chosen).mean(1) / images).numpy(), [0.025, 0.975])
    return {"difference": float(gap.mean()), "low": float(low), "high": float(high)}


def interval(values: np.ndarray) -> Number:
    """Mean of shares over images (N,), Wilson's interval (too wide rather than too narrow for means over draws); of
    (S, N) over S trainings, which are drawn anew as well as the images."""
    values = np.asarray(values, float)
    if values.ndim == 2:
        found = paired_difference(values, np.zeros_like(values))
        return Number(found["difference"], found["low"], found["high"])
    return Number(float(values.mean()), *wilson(float(values.sum()), len(values)))
