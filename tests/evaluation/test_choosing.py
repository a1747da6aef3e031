"""The setting for a budget: against a search by loops over images, chosen on one half and judged on the other."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lib import ATLASES, CHECKPOINTS, WorkbookError, __main__, checkpoints
from lib.evaluation import choosing, latency
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.made_record import THREAT, made, view

MNIST = ATLASES / "rdi_smallcnn-mnist-max_average-laptop.safetensors"


def slim(clean, attacked) -> Record:
    """One exit, widths 1 and 0.5. clean, attacked: per width ten marks, "x" where an image is right."""
    points = [OperatingPoint(width=w) for w in (1.0, 0.5)]
    views = [view(form, evaluated_at=p) for p in points for form in ("clean", "main")]
    right = np.array([[mark == "x" for mark in marks] for pair in zip(clean, attacked, strict=True) for marks in pair])
    found = made(views, np.where(right, 0, 1)[:, None], np.zeros((4, 1, 10)), np.zeros(10),
                 {"trunk": [100.0], "cumulative": [100.0], "paper": [1.0]})
    costs = found.meta["costs"] | {"0.5": {"paper_mflops": [0.5], "trunk": [25.0], "heads": [0.0]}}
    return replace(found, meta=found.meta | {"costs": costs})


def test_one_half_chooses_and_the_other_judges():
    """Width 1 is right on more of the images with even numbers, and on fewer of the others."""
    record = slim(["x.x.x.x.x.", "xxxxxxx..x"], ["x.x.x.....", "xxxx......"])
    found = choosing.choose(record, min_robust=0.4)
    assert found.reached and found.point == OperatingPoint(width=1.0)
    assert found.chosen["clean"].value == 1.0 and found.chosen["robust"].value == 0.6
    assert found.judged["clean"].value == 0.0 == found.judged["robust"].value
    assert found.chosen["macs"] == (100.0, 100.0, 100.0) and found.kept == {"macs": True, "robust": False}
    assert choosing.sentence(found).endswith("there the promise is missed: robust")
    half = choosing.choose(record, max_macs=99, min_robust=0.4)
    assert half.point == OperatingPoint(width=0.5) and half.judged["macs"].value == 25.0
    assert half.judged["clean"].value == 0.8 and half.judged["robust"].value == 0.4 and all(half.kept.values())
    assert choosing.sentence(half).endswith("there the promise holds")


def test_where_nothing_reaches_it_the_nearest_is_named():
    """Asked for 0.8 at 50 MACs: width 1 spends twice that, width 0.5 lacks half of the robustness and is nearer."""
    found = choosing.choose(slim(["x" * 10, "x" * 10], ["x" * 8 + "..", "xxxx......"]), 50, 0.8)
    assert not found.reached and found.point == OperatingPoint(width=0.5) and found.missed == pytest.approx(0.5)
    assert "at most 5e-05 M MACs and at least 80 % robust: nothing reaches it; nearest" in choosing.sentence(found)
    assert "≤ 40.0 % robust" in choosing.sentence(found)


def test_a_bound_on_milliseconds_is_by_the_clock_of_each_point():
    """Width 1 takes 4 ms and is right more often, width 0.5 takes 1 ms."""
    record = slim(["x" * 10, "xxxx" + "." * 6], ["x" * 10] * 2)
    clocks = {p: ExitCosts(np.array([ms]), np.zeros(1)) for p, ms in zip(record.points, (4.0, 1.0), strict=True)}
    assert choosing.choose(record, max_ms=5, clocks=clocks).point.width == 1.0
    found = choosing.choose(record, max_ms=2, clocks=clocks)
    assert found.point.width == 0.5 and found.judged["ms"] == (1, 1, 1) and found.kept["ms"]
    said = choosing.sentence(found)
    assert "at most 2 ms: reached" in said and "1 (1–1) ms an image here" in said
    nearest = choosing.choose(record, max_ms=0.5, clocks=clocks)
    assert not nearest.reached and nearest.point.width == 0.5 and nearest.missed == 1.0
    with pytest.raises(WorkbookError, match="give clocks"):
        choosing.choose(record, max_ms=2)


def test_the_clock_of_a_record_times_each_part_of_each_point(mnist):
    (clock,) = latency.clocks(mnist, batch_size=8).values()
    assert (np.diff(clock.trunk, prepend=0.0) > 0).all() and (clock.heads > 0).all() and len(clock.heads) == 3


def test_of_equally_accurate_settings_the_cheapest():
    assert choosing.choose(slim(["xx" * 5] * 2, ["xx" * 5] * 2)).point == OperatingPoint(width=0.5)


def test_a_budget_below_the_cheapest_exit_buys_that_one():
    """Steps between the cheapest exit and itself are rounded, some of them below it."""
    record = Record.load(ATLASES / "cheap_resnet38-cifar10_jpeg-float_slim-laptop.safetensors")
    point = next(p for p in record.points if p.width == 1.0)
    assert choosing.settings(record, point, max_macs=1e6)[-1].share()[0] == 1


def by_loops(record: Record, thresholds, half: int) -> tuple[float, float, float]:
    """(clean, worst case, MACs) of a record of one point on the images of one half, image by image."""
    costs, clean, robust, macs = record.meta["costs"]["1"], 0, 0, 0.0
    images = range(half, record.images, 2)
    for n in images:
        survived = True
        for v, one in enumerate(record.views):
            exit, spent = 0, 0.0
            while exit < record.num_exits - 1 and not record.entropy[v, exit, n] < np.float32(thresholds[exit]):
                spent += costs["heads"][exit] * (thresholds[exit] > -math.inf)
                exit += 1
            survived &= bool(record.right[v, exit, n])
            if not one.attacked:
                clean += int(record.right[v, exit, n])
                macs += spent + costs["trunk"][exit] + costs["heads"][exit]
        robust += survived
    return clean / len(images), robust / len(images), macs / len(images)


@pytest.fixture(scope="module")
def mnist() -> Record:
    return Record.load(MNIST).select(images=slice(1001))


@pytest.mark.parametrize("max_macs, min_robust", [(2e6, 0.9), (6e6, 0.93), (1.2e6, 0.5), (6e6, 0.99), (0.5e6, 0.5)])
def test_no_setting_of_a_real_record_does_better(mnist, max_macs, min_robust):
    found = choosing.choose(mnist, max_macs, min_robust)
    every = [by_loops(mnist, at.thresholds, 0) for at in choosing.settings(mnist, mnist.points[0], max_macs)]
    inside = [(clean, -macs) for clean, robust, macs in every if robust >= min_robust and macs <= max_macs]
    assert len(every) >= 4 and found.reached == bool(inside)
    for half, told in enumerate((found.chosen, found.judged)):
        clean, robust, macs = by_loops(mnist, found.reading.thresholds, half)
        assert (told["clean"].value, told["robust"].value) == pytest.approx((clean, robust), abs=1e-12)
        assert told["macs"].value == pytest.approx(macs) and told["macs"].low <= macs <= told["macs"].high
    if inside:
        assert (found.chosen["clean"].value, -found.chosen["macs"].value) == pytest.approx(max(inside))


def test_the_strong_suite_counts_where_it_was_run_at_this_very_setting(mnist):
    """Its attack breaks every third of the first 100 images; the looser bound of other thresholds carries ≤."""
    paper = mnist.thresholds_of("paper")
    right = (np.arange(100) % 3 > 0).astype(np.uint8)[None, None]
    strong = Record((view("gate", thresholds_used=paper, threat=THREAT),), right, mnist.labels[:100], {})
    record = replace(mnist, strong=strong)
    at = {at.source: choosing.Choice(at, math.inf, 0.0) for at in choosing.settings(record, record.points[0])}
    assert at["paper"].bound == "" and at["equal shares"].bound == at["last exit alone"].bound == "≤ "
    union = at["paper"].reading.right("union")[:100]
    assert at["paper"].judged["robust"].value == pytest.approx((union & (right[0, 0] > 0))[1::2].mean())
    assert "strong suite, 50 images" in choosing.sentence(at["paper"])


def test_what_cannot_be_asked_for_is_refused(mnist):
    for bounds, sentence in [((0.0, 0.5), "at most 0 MACs"), ((1e6, 1.5), "a share between 0 and 1"),
                             ((math.nan, 0.5), "cannot be asked for"), ((1e6, 0.5, math.nan), "cannot be asked for")]:
        with pytest.raises(WorkbookError, match=sentence):
            choosing.choose(mnist, *bounds)
    with pytest.raises(WorkbookError, match="holds no attack"):
        choosing.choose(mnist.select(forms=("clean",)))
    with pytest.raises(WorkbookError, match="two images"):
        choosing.choose(mnist.select(images=slice(1)))


def told(*line) -> tuple[int, dict]:
    args = [str(part) for part in line]
    return __main__.main(args), json.loads(open(args[-1], "rb").read())


def test_the_verb_takes_a_record_or_the_network_that_came_with_one(mnist, tmp_path, capsys):
    mnist.save(tmp_path / "record.safetensors")
    out = tmp_path / "choice.json"
    code, found = told("choose", tmp_path / "record.safetensors", "--max-macs", "2e6", "--min-robust", "0.9",
                       "--json", out)
    direct = choosing.choose(mnist, 2e6, 0.9)
    assert code == 0 and choosing.sentence(direct) in capsys.readouterr().out
    assert OperatingPoint.from_json(found["point"]) == direct.point and found["reached"] and found["robust"] == "union"
    assert found["judged"]["clean"] == direct.judged["clean"]._asdict() and found["kept"] == direct.kept
    code, found = told("choose", CHECKPOINTS / MNIST.name, "--json", out)
    assert code == 0 and (found["max_macs"], found["min_robust"]) == ("inf", 0.0)


def test_the_verb_says_how_to_record_a_network_without_one(tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    checkpoints.save(path, zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25))
    assert __main__.main(["choose", str(path)]) == 2
    said = capsys.readouterr().err
    assert "no record of" in said and "--save-record FILE" in said and said.count("\n") == 1
