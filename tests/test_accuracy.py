"""From arrays to numbers, against answers worked out by hand, by counting, or in the published measurements."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import WorkbookError
from lib.evaluation import accuracy, rows
from tests.made_atlas import RESNET38, THREAT, made, view

# Four images of class 0, two exits, threshold 0.5. Clean: right, right, wrong, right. Attacks break others.
LEAVES, STAYS = 0.1, 0.9
SMALL = made(
    ["clean", "single1", "main", "average", "max_average"],
    prediction=[[[0, 1, 1, 0], [1, 0, 1, 0]], [[1, 1, 1, 0], [1, 0, 1, 0]], [[0, 0, 1, 0], [0, 1, 0, 0]],
                [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 0], [1, 0, 1, 0]]],
    entropy=[[[LEAVES, STAYS, STAYS, STAYS], [9] * 4]] * 4 + [[[LEAVES, STAYS, STAYS, LEAVES], [9] * 4]],
    labels=[0, 0, 0, 0],
    costs={"trunk": [100, 200], "cumulative": [120, 220], "paper": [1.5, 2.0]},
)  # fmt: skip


def test_a_case_worked_out_by_hand():
    found = accuracy.summary(SMALL, (0.5,))
    clean = found["forms"]["clean"]
    assert clean["correct"] == 3 and clean["per_exit"] == [2, 2] and clean["exits"] == [1, 3]
    assert clean["paper_mflops"] == (1.5 + 3 * 2) / 4 and clean["cumulative_macs"] == (120 + 3 * 220) / 4
    assert clean["paper_saving"] == pytest.approx(1 - 1.875 / 2) and clean["saving"] == pytest.approx(1 - 195 / 200)
    assert {name: form["correct"] for name, form in found["forms"].items()} == {
        "clean": 3, "single1": 2, "main": 3, "average": 4, "max_average": 3}  # fmt: skip
    assert found["worst_form"] == found["paper_worst"] == "single1"
    assert found["union_correct"] == 1  # single1 breaks image 0, main image 1, clean is wrong on image 2
    assert found["suite"] == ["clean", "single1", "main", "average", "max_average"]


def test_a_closed_exit_costs_nothing():
    clean = accuracy.summary(SMALL, (-np.inf,))["forms"]["clean"]
    assert clean["exits"] == [0, 4] and clean["correct"] == 2
    assert clean["cumulative_macs"] == 200 and clean["saving"] == 0


def test_the_papers_worst_case_is_silent_when_a_form_is_missing():
    assert accuracy.summary(SMALL.select(["clean", "main", "average"]), (0.5,))["paper_worst"] is None
    alone = accuracy.summary(SMALL.select(["clean"]), (0.5,))
    assert alone["worst_form"] == "clean" and alone["union_correct"] == 3


def test_forms_outside_the_paper_count_in_the_union_but_not_in_its_worst_case():
    wider = made(
        ["main", "random"], prediction=[[[0, 0, 1]], [[1, 1, 0]]], entropy=np.zeros((2, 1, 3)), labels=[0, 0, 0],
        costs={"trunk": [10], "cumulative": [10], "paper": [1.0]},
    )  # fmt: skip
    found = accuracy.summary(wider, ())
    assert found["paper_worst"] == "main" and found["worst_form"] == "random" and found["union_correct"] == 0


def test_published_exit_counts_give_the_published_costs():
    """Released RDI-ResNet38, 500 clean test images: 53.08 by the paper's convention, 67.23 with all heads paid."""
    counts = [37, 53, 71, 113, 87, 71, 68]
    leaving = np.repeat(np.arange(7), counts)
    entropy = np.where(np.arange(7)[:, None] == leaving, 0.0, 2.0)[None]
    atlas = made(["clean"], np.zeros((1, 7, 500)), entropy, np.zeros(500), RESNET38)
    clean = accuracy.summary(atlas, [1.0] * 6)["forms"]["clean"]
    assert clean["exits"] == counts
    assert clean["paper_mflops"] == pytest.approx(53.08, abs=0.006)
    assert clean["cumulative_macs"] == pytest.approx(67.23, abs=0.001)
    assert clean["paper_saving"] == pytest.approx(0.332, abs=5e-4)
    assert clean["saving"] == pytest.approx(0.1535, abs=5e-4)


atlases = st.builds(
    lambda seed, views, exits, images: made(
        [view("main", seed=v) for v in range(views)],
        *(lambda r: (r.integers(0, 3, (views, exits, images)), r.random((views, exits, images)).round(1)))(
            np.random.default_rng(seed)),
        np.random.default_rng(seed + 1).integers(0, 3, images),
    ),
    st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 40),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(atlases, st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_union_is_below_every_form_and_histograms_hold_every_image(atlas, thresholds):
    found = accuracy.summary(atlas, thresholds[:atlas.num_exits - 1])
    counts = [form["correct"] for form in found["forms"].values()]
    assert found["union_correct"] <= min(counts) == found["forms"][found["worst_form"]]["correct"]
    assert found["union_correct"] >= sum(counts) - (len(counts) - 1) * found["images"]  # no image lost twice
    for form in found["forms"].values():
        assert sum(form["exits"]) == found["images"]
        assert form["low"] <= form["accuracy"] <= form["high"]
        assert atlas.meta["cumulative_macs"][0] <= form["cumulative_macs"] <= atlas.meta["cumulative_macs"][-1]


def test_wilson_intervals_from_the_literature():
    """Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 (method 3)."""
    for successes, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                        (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert accuracy.wilson(successes, total) == pytest.approx((low, high), abs=5e-5)
    assert accuracy.wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    with pytest.raises(WorkbookError, match="at least one image"):
        accuracy.wilson(0, 0)


def test_paired_bootstrap_agrees_with_resampling_images_one_by_one():
    source = np.random.default_rng(0)
    first, second = source.random(300) < 0.6, source.random(300) < 0.5
    found = accuracy.paired_difference(first, second)
    assert found["difference"] == float(Fraction(int(first.sum()) - int(second.sum()), 300))
    gaps = first.astype(int) - second
    slow = np.sort([gaps[source.integers(0, 300, 300)].mean() for _ in range(4000)])
    assert found["low"] == pytest.approx(slow[100], abs=0.01) and found["high"] == pytest.approx(slow[3900], abs=0.01)
    assert accuracy.paired_difference(first, second) == found  # the same seed, the same interval


def test_paired_bootstrap_of_scores_and_of_equals():
    shares = np.array([0.0, 0.25, 0.5, 1.0] * 10)
    found = accuracy.paired_difference(shares, shares / 2)
    assert found["difference"] == pytest.approx(shares.mean() / 2)
    assert found["low"] < found["difference"] < found["high"]
    assert accuracy.paired_difference(shares, shares) == {"difference": 0, "low": 0, "high": 0}
    with pytest.raises(WorkbookError, match="same images"):
        accuracy.paired_difference(shares, shares[:5])


def test_a_gate_aware_view_says_when_it_is_not_exact():
    views = ["clean", view("gate_aware", thresholds_used=(0.1,))]
    atlas = made(views, np.zeros((2, 2, 3)), np.zeros((2, 2, 3)), [0, 0, 0])
    assert accuracy.summary(atlas, (0.1,))["forms"]["gate_aware"]["exact"]
    other = accuracy.summary(atlas, (0.2,))["forms"]
    assert not other["gate_aware"]["exact"] and other["gate_aware"]["thresholds_used"] == [0.1]
    assert other["clean"]["exact"] and other["clean"]["thresholds_used"] is None


def test_rows_carry_one_number_each_and_every_setting():
    table = rows.frame(accuracy.rows(SMALL, (0.5,), "paper", experiment="10", defence="average", preset="quick"))
    assert (table["model"] == "rdi_smallcnn").all() and (table["threshold_source"] == "paper").all()

    def value(metric, attack=None, exit="routed"):
        found = table[(table.metric == metric) & (table.exit == exit) & (table.attack.eq(attack) if attack else True)]
        assert len(found) == 1
        return found.iloc[0]

    assert value("clean_accuracy", "clean").value == 0.75 and value("robust_accuracy", "single1").value == 0.5
    assert value("clean_accuracy", "clean", exit="2").value == 0.5  # the control: the last exit alone
    assert value("exit_share", "max_average", exit="1").value == 0.5
    assert value("exit_share", "max_average", exit="1").cost_inputs == "max_average"
    assert value("cumulative_macs", "clean").value == 195
    worst, union = value("paper_worst_case"), value("union_accuracy")
    assert worst.value == 0.5 and worst.suite == "single1 main average max_average" and worst.attack == "single1"
    assert union.value == 0.25 and union.suite.startswith("clean single1") and union.low < 0.25 < union.high
    attacked = value("robust_accuracy", "main")
    assert (attacked.epsilon, attacked.steps, attacked.step_size) == (THREAT.epsilon, THREAT.steps, THREAT.step_size)
    assert (attacked.attack_mode, attacked.crafted_at, attacked.evaluated_at) == ("eval", "{}", "{}")
    clean = value("clean_accuracy", "clean")
    assert clean.isna()[["epsilon", "steps", "attack_mode", "crafted_at"]].all()
    per_view = 1 + 2 * 2 + 4
    assert len(table) == 5 * per_view + 2


def test_ten_thousand_images_three_exits_eight_views_take_under_a_tenth_of_a_second():
    source = np.random.default_rng(0)
    shape = (8, 3, 10_000)
    atlas = made([view("main", seed=v) for v in range(8)], source.integers(0, 10, shape), source.random(shape),
                 source.integers(0, 10, 10_000))  # fmt: skip
    seconds = []
    for _ in range(5):
        start = time.process_time()  # not the wall clock: other work on the machine is not ours
        accuracy.summary(atlas, (0.3, 0.4))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


def test_several_trainings_are_drawn_anew_as_well():
    source = np.random.default_rng(1)
    better = source.random((3, 200)) < np.array([[0.9], [0.7], [0.5]])  # the trainings differ far more than the images
    worse = source.random((3, 200)) < 0.5
    found = accuracy.paired_difference(better, worse)
    of_images = accuracy.paired_difference(better.mean(0), worse.mean(0))
    assert found["difference"] == pytest.approx(of_images["difference"])
    assert found["high"] - found["low"] > 1.5 * (of_images["high"] - of_images["low"])
    same = accuracy.paired_difference(better[:1], worse[:1])  # a single training: an interval over images alone
    alone = accuracy.paired_difference(better[0], worse[0])
    assert [same["low"], same["high"]] == pytest.approx([alone["low"], alone["high"]], abs=0.02)
