"""Numbers with intervals."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import WorkbookError, randomness

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Number(NamedTuple):
    """A value and its 95 % interval; low and high are None where it has none (a cost is counted, not drawn)."""

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, unit: float) -> "Number":
        return Number(*(None if part is None else unit * part for part in self))


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion; stays inside [0, 1] and has width even at 0 and at 1."""
    if total < 1:
        raise WorkbookError("an interval needs at least one image")
    p, z2 = successes / total, Z95**2 / total
    centre, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2)
    return low, 1.0 if successes == total else (centre + half) / (1 + z2)


def student(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    from scipy.stats import t  # comes with scikit-learn, which only pages of several trainings can count on

    return float(t.ppf(0.975, freedom))


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = 10_000) -> Number:
    """Mean of `first` - `second` over the same images, with a 95 % interval.

    first, second: (N,) correct or not, or scores such as means over draws: a percentile bootstrap over images.  (S, N),
    S trainings on the same images: Student's t over the trainings' mean differences, and in quadrature what the images
    add, which all trainings share (their noise within a training counts twice: too wide rather than too narrow).
    A bootstrap sample of images only needs to know how often each distinct difference was drawn, which is multinomial:
    drawn as a chain of binomials, 10,000 resamples of 10,000 images take milliseconds. Raises WorkbookError when both
    are not of the same images.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise WorkbookError(f"a paired comparison needs the same images twice, not {first.shape} and {second.shape}")
    each, source = np.atleast_2d(first - second), randomness.generator(seed, "bootstrap")
    gap, trainings = each.mean(0), len(each)
    patterns, counts = np.unique(gap, return_counts=True)
    left, weight = torch.full((resamples,), float(len(gap)), dtype=torch.float64), float(len(gap))
    totals = torch.zeros(resamples, dtype=torch.float64)
    for pattern, count in zip(patterns, counts, strict=True):
        drawn = torch.binomial(left, torch.full_like(left, min(1.0, count / weight)), generator=source)
        totals, left, weight = totals + drawn * pattern, left - drawn, weight - count
    mean, ends = float(gap.mean()), np.quantile((totals / len(gap)).numpy(), [0.025, 0.975])
    if trainings > 1:
        half = student(trainings - 1) * each.mean(1).std(ddof=1) / math.sqrt(trainings)
        ends = mean - math.hypot(half, mean - ends[0]), mean + math.hypot(half, ends[1] - mean)
    return Number(mean, float(ends[0]), float(ends[1]))


def interval(values: np.ndarray) -> Number:
    """Mean of shares over images (N,), Wilson's interval (too wide rather than too narrow for means over draws); of
    (S, N) over S trainings, as in `paired_difference`, cut to [0, 1]; Wilson's where all are alike in all of them."""
    values = np.asarray(values, float)
    if values.ndim == 2 and values.any() and not values.all():
        value, low, high = paired_difference(values, np.zeros_like(values))
        return Number(value, max(0.0, low), min(1.0, high))
    images = values.shape[-1]
    return Number(float(values.mean()), *wilson(float(values.sum()) * images / values.size, images))


def auroc(score: np.ndarray, positive: np.ndarray, seed: int = 0, resamples: int = 1000) -> Number:
    """How well a score (N,) tells images that are `positive` (N,) bool from the others: the probability that one of
    those scores higher than one of these, with a 95 % bootstrap over images; not a number where all are of one kind."""
    def area(places: np.ndarray) -> float:
        told, count = positive[places], int(positive[places].sum())
        ranks = pd.Series(score[places]).rank().to_numpy()
        return (ranks[told].sum() - count * (count + 1) / 2) / count / (len(told) - count) if 0 < count < len(
            told) else math.nan

    both = 0 < positive.sum() < len(positive)
    return _resampled(area, len(score), seed, "auroc", resamples) if both else Number(math.nan, math.nan, math.nan)


def trend(values: np.ndarray, seed: int = 0) -> Number:
    """Rank correlation (Spearman's) of `values` (N,) with their place, with a 95 % bootstrap over them."""
    values = np.asarray(values, float)

    def correlation(places: np.ndarray) -> float:
        return float(pd.Series(places).rank().corr(pd.Series(values[places]).rank()))

    return _resampled(correlation, len(values), seed, "layers", 2000)


def _resampled(statistic: Callable[[np.ndarray], float], count: int, seed: int, stream: str, resamples: int) -> Number:
    """A statistic of the indices 0 … count - 1, and its percentiles over indices drawn anew."""
    drawn = torch.randint(count, (resamples, count), generator=randomness.generator(seed, stream)).numpy()
    low, high = np.nanquantile([statistic(places) for places in drawn if len(set(places)) > 2], [0.025, 0.975])
    return Number(statistic(np.arange(count)), float(low), float(high))
