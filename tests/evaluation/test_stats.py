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
    assert found.value == float(Fraction(int(first.sum()) - int(second.sum()), 300))
    gaps = first.astype(int) - second
    slow = np.sort([gaps[source.integers(0, 300, 300)].mean() for _ in range(4000)])
    assert found.low == pytest.approx(slow[100], abs=0.01) and found.high == pytest.approx(slow[3900], abs=0.01)
    assert stats.paired_difference(first, second) == found  # the same seed, the same interval


def test_paired_bootstrap_of_scores_and_of_equals():
    shares = np.array([0.0, 0.25, 0.5, 1.0] * 10)
    found = stats.paired_difference(shares, shares / 2)
    assert found.value == pytest.approx(shares.mean() / 2)
    assert found.low < found.value < found.high
    assert stats.paired_difference(shares, shares) == (0, 0, 0)
    with pytest.raises(WorkbookError, match="same images"):
        stats.paired_difference(shares, shares[:5])


def test_students_quantile_is_the_tables():
    """Abramowitz & Stegun, table 26.10, to the digits printed there."""
    for freedom, value in [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (29, 2.045)]:
        assert stats.student(freedom) == pytest.approx(value, abs=5e-4)


def test_several_trainings_make_a_t_interval_of_their_differences():
    source = np.random.default_rng(1)
    better = source.random((3, 200)) < np.array([[0.9], [0.7], [0.5]])  # the trainings differ far more than the images
    worse = source.random((3, 200)) < 0.5
    found = stats.paired_difference(better, worse)
    each = better.mean(1) - worse.mean(1)
    images = 1.959964 * (better.mean(0) - worse.mean(0)).std() / 200**0.5
    half = ((4.302653 * each.std(ddof=1)) ** 2 / 3 + images**2) ** 0.5
    assert found.value == pytest.approx(each.mean())
    assert [found.low, found.high] == pytest.approx([each.mean() - half, each.mean() + half], abs=2e-3)
    same = stats.paired_difference(better[:1], worse[:1])  # a single training: an interval over images alone
    assert same == stats.paired_difference(better[0], worse[0])
    nobody = stats.interval(np.zeros((3, 20)))  # alike in all trainings: that says nothing of other images
    assert nobody == stats.interval(np.zeros(20)) and nobody.high == pytest.approx(0.1611, abs=5e-5)
    shares = stats.interval(better)
    half = 4.302653 * better.mean(1).std(ddof=1) / 3**0.5
    assert shares.high == 1 and shares.low == pytest.approx(0.7 - half, abs=0.03)


def test_trainings_that_agree_by_luck_are_not_surer_than_their_images():
    first, second = np.zeros((3, 100)), np.zeros((3, 100))
    first[:, :10], second[:, 10:15] = 1, 1
    found = stats.paired_difference(first, second)
    alone = stats.paired_difference(first[0], second[0])
    assert found.low == pytest.approx(alone.low) and found.high == pytest.approx(alone.high)


@pytest.mark.parametrize("trainings", [3, 5])
@pytest.mark.parametrize("between_images", [0.0, 1.0])
def test_where_there_is_no_effect_one_is_found_in_at_most_six_percent(trainings, between_images):
    """Trainings of two equal methods, which differ from each other, and (between_images) are good at other images."""
    source, found, runs = np.random.default_rng(trainings), 0, 500
    for _ in range(runs):
        hard, right = source.normal(0.5, 2, 200), []
        for _ in range(2):
            own = source.normal(0, between_images, 200)
            right.append(source.random((trainings, 200)) < 1 / (1 + np.exp(
                hard + own + source.normal(0, 0.4, (trainings, 1)))))
        told = stats.paired_difference(*right, resamples=1000)  # which is what `tables.verdict` answers by
        found += told.low > 0 or told.high < 0
    assert found / runs <= 0.06


def test_the_area_under_the_curve_counts_pairs_and_holds_the_truth():
    """Of scores drawn one standard deviation apart the area is Φ(1/√2) = 0.76; ties count one half."""
    drawn = np.random.default_rng(0)
    positive = np.arange(400) % 2 == 0
    score = (drawn.normal(size=400) + positive).round(1)
    pairs = score[positive][:, None] - score[~positive][None]
    found = stats.auroc(score, positive)
    assert found.value == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    assert found.low < 0.7602 < found.high and found.high - found.low < 0.12
    assert np.isnan(stats.auroc(score, positive | True).value)
