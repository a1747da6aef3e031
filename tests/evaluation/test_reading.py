"""From records to numbers, against answers worked out by hand, by counting, or in the published measurements."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import WorkbookError
from lib.attacks.steps import Threat
from lib.evaluation import rows
from lib.evaluation.reading import Trainings, read
from lib.evaluation.stats import interval
from lib.operating_point import OperatingPoint
from tests.helpers.made_record import RESNET38, made, view

# Four images of class 0, two exits, threshold 0.5. Clean: right, right, wrong, right. Attacks break others.
LEAVES, STAYS = 0.1, 0.9
SMALL = made(
    ["clean", "single1", "main", "average", "max_average"],
    prediction=[[[0, 1, 1, 0], [1, 0, 1, 0]], [[1, 1, 1, 0], [1, 0, 1, 0]], [[0, 0, 1, 0], [0, 1, 0, 0]],
                [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 0], [1, 0, 1, 0]]],
    entropy=[[[LEAVES, STAYS, STAYS, STAYS], [9] * 4]] * 4 + [[[LEAVES, STAYS, STAYS, LEAVES], [9] * 4]],
    labels=[0, 0, 0, 0],
    costs={"trunk": [100, 200], "cumulative": [120, 220], "paper": [1.5, 2.0]},
)
ROBUST, QUIET = OperatingPoint(noise=1.0, batch_norm=1.0), OperatingPoint(noise=0.0, batch_norm=1.0)
KNOWN, EOT = ROBUST.replace(draw=0), Threat(0.1, 0.02, 5, draws=5)


def noisy(right=((4, 4), (2, 4), (3, 1), (4, 4), (0, 0), (1, 0))):
    """One exit, two images, 4 draws: clean (4, 4) right, white-box (2, 4), EOT (3, 1), transfer (4, 4), crafted afar
    (0, 0); and one draw that the attacker knew (1, 0)."""
    afar = OperatingPoint(noise=0.2, batch_norm=0.0)
    views = [view("clean", evaluated_at=ROBUST, draws=4), view("main", evaluated_at=ROBUST, draws=4),
             view("main", evaluated_at=ROBUST, draws=4, threat=EOT),
             view("main", evaluated_at=ROBUST, draws=4, crafted_at=QUIET),
             view("main", evaluated_at=ROBUST, draws=4, crafted_at=afar), view("main", evaluated_at=KNOWN)]
    counted = np.array(right, np.uint8)[:, None]
    return replace(made(views, np.zeros((6, 1, 2)), np.zeros((6, 1, 2)), [1, 2]), right=counted)


def test_a_case_worked_out_by_hand():
    found = read(SMALL, thresholds=(0.5,))
    assert {name: int(found.right(name).sum()) for name in found.names} == {
        "clean": 3, "single1": 2, "main": 3, "average": 4, "max_average": 3}
    assert found.alone().sum(1).tolist() == [2, 2] and found.share().tolist() == [0.25, 0.75]
    assert found.cost("paper_mflops") == (1.5 + 3 * 2) / 4 and found.cost("cumulative_macs") == (120 + 3 * 220) / 4
    assert found.measured("paper_saving").value == pytest.approx(1 - 1.875 / 2)
    assert found.measured("saving").value == pytest.approx(1 - 195 / 200)
    assert found.spent().tolist() == [120 / 200, 1.1, 1.1, 1.1]
    assert found.worst_form == found.paper_worst == "single1"
    assert found.right("union").sum() == 1  # single1 breaks image 0, main image 1, clean is wrong on image 2
    assert found.suite == ["clean", "single1", "main", "average", "max_average"]


def test_a_closed_exit_costs_nothing():
    found = read(SMALL, thresholds=(-np.inf,))
    assert found.share().tolist() == [0, 1] and found.right("clean").sum() == 2
    assert found.cost("cumulative_macs") == 200 and found.measured("saving").value == 0


def test_the_papers_worst_case_is_silent_when_a_form_is_missing():
    assert read(SMALL.select(["clean", "main", "average"]), thresholds=(0.5,)).paper_worst is None
    alone = read(SMALL.select(["clean"]), thresholds=(0.5,))
    assert alone.worst_form == "clean" and alone.right("union").sum() == 3
    with pytest.raises(WorkbookError, match="was not met by 'paper_worst'"):
        alone.right("paper_worst")


def test_forms_outside_the_paper_count_in_the_union_but_not_in_its_worst_case():
    wider = made(["main", "random"], prediction=[[[0, 0, 1], [0, 0, 1]], [[1, 1, 0], [1, 1, 0]]],
                 entropy=np.zeros((2, 2, 3)), labels=[0, 0, 0])
    found = read(wider, thresholds=(0.5,))
    assert found.paper_worst is None and found.worst_form == "random" and found.right("union").sum() == 0


def test_published_exit_counts_give_the_published_costs():
    """Released RDI-ResNet38, 500 clean test images: 53.08 by the paper's convention, 67.23 with all heads paid."""
    counts = [37, 53, 71, 113, 87, 71, 68]
    leaving = np.repeat(np.arange(7), counts)
    entropy = np.where(np.arange(7)[:, None] == leaving, 0.0, 2.0)[None]
    found = read(made(["clean"], np.zeros((1, 7, 500)), entropy, np.zeros(500), RESNET38), thresholds=[1.0] * 6)
    assert (found.share() * 500).round().tolist() == counts
    assert found.cost("paper_mflops") == pytest.approx(53.08, abs=0.006)
    assert found.cost("cumulative_macs") == pytest.approx(67.23, abs=0.001)
    assert found.measured("paper_saving").value == pytest.approx(0.332, abs=5e-4)
    assert found.measured("saving").value == pytest.approx(0.1535, abs=5e-4)


records = st.builds(
    lambda seed, views, exits, images: made(
        [view("average", restart=v) for v in range(views)],
        *(lambda r: (r.integers(0, 3, (views, exits, images)), r.random((views, exits, images)).round(1)))(
            np.random.default_rng(seed)),
        np.random.default_rng(seed + 1).integers(0, 3, images),
    ),
    st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 4), st.integers(1, 40),
)


@settings(max_examples=60, deadline=None)
@given(records, st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_union_is_below_every_view_and_shares_hold_every_image(record, thresholds):
    found = read(record, thresholds=thresholds[:record.num_exits - 1])
    counts = [found.right(name).sum() for name in found.names]
    assert found.right("union").sum() <= min(counts) == found.right(found.worst_form).sum()
    assert found.right("union").sum() >= sum(counts) - (len(counts) - 1) * record.images  # no image lost twice
    cheapest, *_, dearest = record.exit_costs().cumulative(found.thresholds)
    for name in found.names:
        assert found.share(name).sum() == pytest.approx(1)
        assert found.measured(name).low <= found.measured(name).value <= found.measured(name).high
        assert cheapest <= found.cost("cumulative_macs", name) <= dearest


def test_worst_cases_over_draws():
    found = read(noisy(), ROBUST)
    assert found.names == ("clean", "main", "EOT", "noise-free transfer", "crafted at s 0.2, BN_C", "draw known")
    assert found.right("union").tolist() == [0.5, 0.25] and found.right("worst").tolist() == [False, False]
    assert found.draws == 4 and found.right("draw known").tolist() == [True, False]
    assert found.right("white-box").tolist() == found.right("main").tolist() == [0.5, 1]
    with pytest.raises(WorkbookError, match="was not met by"):
        found.right("crafted at λ 1")
    with pytest.raises(WorkbookError, match="was not made at"):
        read(noisy(), QUIET)


def test_where_there_is_no_noise_the_plain_attack_is_eot_and_transfer():
    still = made([view("clean", evaluated_at=QUIET), view("main", evaluated_at=QUIET),
                  view("main", evaluated_at=QUIET, restart=1)], np.zeros((3, 1, 3)), np.zeros((3, 1, 3)), [0, 0, 1])
    found = read(still, QUIET)
    assert found.names == ("clean", "main", "restart 2")
    assert np.array_equal(found.right("EOT"), found.right("main"))


def test_draws_of_a_network_with_exits_are_routed_one_by_one():
    """Two draws of one noisy point, two exits: image 0 is right at the first exit only in draw 0; image 1 stays."""
    views = [view(form, evaluated_at=ROBUST.replace(draw=d), **more) for form, more in (
        ("clean", {}), ("average", dict(crafted_at=ROBUST)), ("average", dict(crafted_at=ROBUST, threat=EOT)))
        for d in (0, 1)]
    said = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 1]]])
    found = read(made(views, np.concatenate([said] * 3), np.tile([[LEAVES, STAYS], [9, 9]], (6, 1, 1)), [0, 0]),
                 thresholds=(0.5,))
    assert found.names == ("clean", "average", "average, EOT") and found.draws == 2
    assert found.right("clean").tolist() == [0.5, 0.5] and found.share().tolist() == [0.5, 0.5]
    assert np.array_equal(found.right("EOT"), found.right("average, EOT"))
    assert read(found.record, thresholds=(-np.inf,)).right("clean").tolist() == [0.5, 0.5]


def test_several_budgets_are_read_apart_or_together():
    fgsm, cw = Threat(0.1, algorithm="fgsm"), Threat(0.1, 0.1, 2, loss="margin")
    record = made(["clean", "main", view("main", threat=fgsm), view("main", threat=cw)],
                  [[[0, 0, 0]], [[0, 0, 1]], [[0, 1, 0]], [[1, 0, 0]]], np.zeros((4, 1, 3)), [0] * 3)
    together = read(record)
    assert together.names == ("clean", "main", "fgsm main", "pgd cw main") and not together.right("union").any()
    apart = read(record, threat=fgsm)
    assert apart.names == ("clean", "main") and apart.right("main").tolist() == [True, False, True]
    with pytest.raises(WorkbookError, match="was not attacked by pgd"):
        read(record, threat=Threat(0.3, 0.1, 2)).right("main")


def test_several_trainings_are_an_axis():
    every = [noisy(), noisy([(4, 4)] * 6)]
    found = read(every, ROBUST)
    assert found.right("clean").shape == (2, 2) and found.names == read(every[0], ROBUST).names
    assert found.measured("union") == interval(np.stack([read(r, ROBUST).right("union") for r in every]))
    assert found.measured("saving") == (0.0, 0.0, 0.0)


def test_a_reading_needs_a_point_and_thresholds_that_the_record_has():
    nothing = np.zeros((2, 2, 3))
    two = made([view("clean", evaluated_at=p) for p in (ROBUST, QUIET)], nothing, nothing, [0] * 3)
    with pytest.raises(WorkbookError, match="holds 2 operating points"):
        read(two)
    with pytest.raises(WorkbookError, match="where do images leave"):
        read(two, QUIET)
    assert read(two, QUIET.replace(thresholds=(0.2,))).thresholds == (0.2,)
    with pytest.raises(WorkbookError, match="2 thresholds for 2 exits"):
        read(two, QUIET, (0.1, 0.2))
    with pytest.raises(WorkbookError, match="kept no entropies"):
        read(replace(SMALL, entropy=None), thresholds=(0.5,)).right("clean")


def test_gate_aware_views_are_exact_at_their_thresholds_alone():
    nothing = np.zeros((2, 2, 3))
    record = made(["clean", view("gate_aware", thresholds_used=(0.5,))], nothing, nothing, [0] * 3)
    for thresholds, exact in (((0.5,), True), ((0.4,), False)):
        assert read(record, thresholds=thresholds).view("gate_aware").exact_at(thresholds) == exact


def test_a_robust_number_is_a_bound_where_no_attacker_knew_the_gates():
    def marks(views, *gates):
        record = made(views, *[np.zeros((len(views), 2, 3))] * 2, [0] * 3)
        return [read(record, thresholds=(gate,)).bound("union") for gate in gates]

    aware = [view("gate_aware", thresholds_used=(used,)) for used in (0.5, 0.7)]
    assert marks(["clean", "main"], 0.5, -np.inf) == ["≤ ", ""]  # nobody looked at gates, and where none is open
    assert marks(["clean", *aware], 0.5, 0.7, 0.6) == ["", "", "≤ "]
    found = read(made(["clean", "main", aware[0]], *[np.zeros((3, 2, 3))] * 2, [0] * 3), thresholds=(0.6,))
    assert [found.bound(what) for what in ("clean", "main", "gate_aware", "saving")] == ["", "", "≤ ", ""]
    assert Trainings((found, found)).bound("union") == "≤ "


def test_steps_that_do_not_fit_the_budget_are_doubted_in_every_record():
    for threat, said in ((Threat(0.1, 0.001, 5), "cannot reach"), (Threat(0.1, 0.5, 5), "jump over"),
                         (Threat(0.1, 0.02, 5), None)):
        views = [replace(v, threat=v.threat and threat) for v in SMALL.views]
        doubtful = read(replace(SMALL, views=tuple(views)), thresholds=(0.5,))
        assert [said in doubt for doubt in doubtful.doubts] == [True] * (said is not None)
        assert doubtful.flag("union") == " !" * (said is not None) and Trainings((doubtful,)).doubts == doubtful.doubts


def test_rows_hold_every_number_once():
    table = rows.frame(rows.of(read(SMALL, thresholds=(0.5,)), experiment="x"))
    routed = table[table["exit"] == "routed"].set_index(["metric", "attack"])["value"]
    assert routed["clean_accuracy", "clean"] == 0.75 and routed["robust_accuracy", "single1"] == 0.5
    assert len(table[(table["metric"] == "exit_share") & (table["attack"] == "clean")]) == 2
    assert table[table["metric"] == "union_accuracy"]["value"].item() == 0.25
    many = {(r["metric"], r.get("attack")): r["value"] for r in rows.of(read(noisy(), ROBUST))}
    assert many["robust_accuracy", "EOT"] == 0.5 and many["union_accuracy", None] == 0.375
    assert many["cumulative_macs", "clean"] == 100 and many["worst_draw_accuracy", None] == 0


def test_ten_thousand_images_are_read_while_a_slider_moves():
    source = np.random.default_rng(0)
    big = made(["clean", *(view("average", restart=k) for k in range(7))], source.integers(0, 10, (8, 7, 10_000)),
               source.random((8, 7, 10_000)), source.integers(0, 10, 10_000))

    def once(thresholds) -> float:
        start = time.process_time()  # whatever runs beside
        found = read(big, thresholds=thresholds)
        [found.measured(name) for name in (*found.names, "union", "saving")]
        return time.process_time() - start

    assert min(once([0.1 * k] * 6) for k in range(5)) < 0.1


