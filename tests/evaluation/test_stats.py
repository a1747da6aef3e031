"""Intervals, against the literature and against slower ways to the same number."""

from fractions import Fraction

import numpy as np
import pytest

from lib import WorkbookError
from lib.evaluation import stats


def test_wilson_intervals_from_the_literature():
    """Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 (method 3)."""
    for successes, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                        (1, 29, 0.0061, 0.1718)]:
        assert stats.wilson(successes, total) == pytest.approx((low, high), abs=5e-5)
    assert stats.wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    with pytest.raises(WorkbookError, match="at least one image"):
        stats.wilson(0, 0)


def test_paired_bootstrap_agrees_with_resampling_images_one_by_one():
    source = np.random.default_rng(0)
    first, second = source.random(300) < 0.6, source.random(300) < 0.5
    found = stats.paired_difference(first, second)
    assert found["difference"] == float(Fraction(int(first.sum()) - int(second.sum()), 300))
    gaps = first.astype(int) - second
    slow = np.sort([gaps[source.integers(0, 300, 300)].mean() for _ in range(4000)])
    assert found["low"] == pytest.approx(slow[100], abs=0.01) and found["high"] == pytest.approx(slow[3900], abs=0.01)
    assert stats.paired_difference(first, second) == found  # the same seed, the same interval


def test_paired_bootstrap_of_scores_and_of_equals():
    shares = np.array([0.0, 0.25, 0.5, 1.0] * 10)
    found = stats.paired_difference(shares, shares / 2)
    assert found["difference"] == pytest.approx(shares.mean() / 2)
    assert found["low"] < found["difference"] < found["high"]
    assert stats.paired_difference(shares, shares) == {"difference": 0, "low": 0, "high": 0}
    with pytest.raises(WorkbookError, match="same images"):
        stats.paired_difference(shares, shares[:5])


def test_several_trainings_are_drawn_anew_as_well():
    source = np.random.default_rng(1)
    better = source.random((3, 200)) < np.array([[0.9], [0.7], [0.5]])  # the trainings differ far more than the images
    worse = source.random((3, 200)) < 0.5
    found = stats.paired_difference(better, worse)
    of_images = stats.paired_difference(better.mean(0), worse.mean(0))
    assert found["difference"] == pytest.approx(of_images["difference"])
    assert found["high"] - found["low"] > 1.5 * (of_images["high"] - of_images["low"])
    same = stats.paired_difference(better[:1], worse[:1])  # a single training: an interval over images alone
    alone = stats.paired_difference(better[0], worse[0])
    assert [same["low"], same["high"]] == pytest.approx([alone["low"], alone["high"]], abs=0.02)
