"""Thresholds with a guarantee: chances by exact fractions, and how often the promise breaks where the risk is known."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lib import ATLASES, WorkbookError
from lib.evaluation import reading, risk, routing
from lib.evaluation.record import Record
from tests.helpers.made_record import made

MNIST = ATLASES / "rdi_smallcnn-mnist-max_average-laptop.safetensors"


@pytest.mark.parametrize("count, images, share", [(0, 299, 0.01), (3, 40, 0.1), (17, 200, 0.05), (60, 1000, 0.07)])
def test_the_chance_is_the_binomials(count, images, share):
    p = Fraction(share)
    exact = sum(math.comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(count + 1))
    assert risk.chance(count, images, share) == pytest.approx(float(exact), rel=1e-9)


def test_the_first_level_that_fails_ends_the_sequence():
    """Of 400 images three are lost at entropy 0.5 and won back nowhere: at 1 % one may be lost (P = 0.09), so none."""
    entropy = np.float32([np.full(400, 5.0), np.zeros(400)])
    correct = np.ones((2, 400), bool)
    entropy[0, :100], entropy[0, 100:103] = 0.05, 0.5
    correct[0, 100:103] = False
    [threshold] = risk.at_most(0.01, entropy, correct)
    assert max(level for level in risk.LEVELS if level <= 0.5) == threshold
    [laxer] = risk.at_most(0.02, entropy, correct)  # P(at most 3 of 400 at 2 %) = 0.04
    assert laxer == risk.LEVELS[-1]


def test_a_risk_that_so_few_images_cannot_show_is_refused():
    few = np.zeros((2, 298), np.float32), np.ones((2, 298), bool)
    with pytest.raises(WorkbookError, match="298 held-out images cannot show a risk of at most 0.01.*it takes 299"):
        risk.at_most(0.01, *few)
    assert risk.at_most(0.0101, *few) == (risk.LEVELS[-1],)


def test_where_the_risk_is_known_the_promise_breaks_as_rarely_as_said():
    """An image of entropy e is wrong at exit 1 with probability e / 10: below level t, up to 1, the risk is t² / 20."""
    draw, known = np.random.default_rng(0), []
    for _ in range(200):
        entropy = np.float32([draw.random(1000), np.zeros(1000)])
        correct = np.stack([draw.random(1000) >= entropy[0] / 10, np.ones(1000, bool)])
        [level] = risk.at_most(0.01, entropy, correct)
        known.append(min(level, 1.0) ** 2 / 20)
    assert np.mean(np.array(known) > 0.01) <= 0.05 and np.median(known) > 0.003  # not kept by letting nobody leave


def test_over_200_splits_of_real_held_out_images_the_bound_holds():
    """Chosen on one half; both the other half and all images lose at most 1 % in 95 % of the splits."""
    entropy, correct = Record.load(MNIST).held()
    draw, kept = np.random.default_rng(0), []
    for _ in range(200):
        order = draw.permutation(entropy.shape[1])
        half, rest = np.array_split(order, 2)
        gates = risk.at_most(0.01, entropy[:, half], correct[:, half])
        right = routing.at_exit(correct, routing.decide(entropy, gates))
        gone = correct[-1] & ~right
        kept.append((gone[rest].mean() <= 0.01, gone.mean() <= 0.01))
    assert (np.mean(kept, axis=0) >= 0.95).all()


def test_a_reading_takes_the_source_and_says_what_is_lost_under_attack():
    """At risk 0.2 all leave at exit 1, right on 3 of 5 clean, 1 of 5 attacked images; the last exit on 4 and on 5."""
    labels = np.zeros(5)
    right = np.array([[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]])
    held = np.zeros((2, 40)), np.ones((2, 40))
    record = made(("clean", "main"), 1 - right, np.ones((2, 2, 5)), labels, validation=held)
    at = reading.read(record, thresholds="risk 0.2")
    assert at.thresholds == (risk.LEVELS[-1],) and at.source == "risk 0.2"
    assert {view: number.value for view, number in risk.lost(at).items()} == {"clean": 0.2, "main": 0.8}
    for source in ("risk 1 %", "risk 2", "risk nan", "risk "):
        with pytest.raises(WorkbookError, match="states no risk; write risk 0.01"):
            record.thresholds_of(source)


def test_of_several_draws_an_image_counts_once():
    """The same 40 images in three draws show no more than 40 images do."""
    held = np.zeros((2, 40)), np.ones((2, 40))
    record = made(("clean",), np.zeros((1, 2, 5)), np.ones((1, 2, 5)), np.zeros(5), validation=held)
    again = record.held_out.take([0, 0, 0])
    several = Record(record.views, record.right, record.labels, record.meta, entropy=record.entropy, held_out=again)
    assert several.held().entropy.shape == (2, 120)
    with pytest.raises(WorkbookError, match="40 held-out images cannot show"):
        several.thresholds_of("risk 0.05")


def test_whether_the_promise_is_kept_is_counted_split_by_split():
    """Against loops over the same halves, on the held-out images and on the record's own."""
    record = Record.load(MNIST).select(images=slice(200))
    found = reading.read(record, thresholds="paper")
    share, means = risk.kept(found, 0.01, splits=4, seed=1)
    entropy, correct = record.held()
    drawn, kept, attacked, saved = np.random.default_rng(1), [], [], []
    for _ in range(4):
        order = drawn.permutation(entropy.shape[1])
        mine, others = order[:(len(order) + 1) // 2], order[(len(order) + 1) // 2:]
        thresholds = risk.at_most(0.01, entropy[:, mine], correct[:, mine])
        left = routing.decide(entropy[:, others], thresholds)
        gone = [correct[-1, n] and not correct[left[i], n] for i, n in enumerate(others)]
        kept.append(np.mean(gone))
        at = reading.read(record, thresholds=thresholds)
        attacked.append((at.alone("average")[-1].astype(bool) & ~at.right("average")).mean())
        saved.append(1 - at.spent().mean())
    assert share == np.mean(np.array(kept) <= 0.01) and means["held out"] == pytest.approx(np.mean(kept))
    assert means["average"] == pytest.approx(np.mean(attacked)) and means["saving"] == pytest.approx(np.mean(saved))
