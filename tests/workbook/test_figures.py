"""Figures and tables of studies, on records made by hand whose every number is known."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lib.evaluation import between
from lib.evaluation.reading import Reading, read
from lib.evaluation.stats import wilson
from lib.models import zoo
from lib.models.cost import cost
from lib.operating_point import OperatingPoint
from lib.workbook import figures, live, published, style, tables
from lib.workbook.once_for_all import Trained
from lib.workbook.session import Session
from tests.helpers.made_record import made
from tests.helpers.networks import small

FORMS = ("clean", "single1", "single2", "main", "average", "max_average")


def record(right: dict | None = None):
    """Ten images of class 0, three exits. A view's number of right answers, at all exits alike, is `right[view]`; the
    first four images are sure at exit 1, the next three at exit 2."""
    right = dict.fromkeys(FORMS, 6) | {"clean": 10} | (right or {})
    prediction = np.array([[[0] * right[form] + [1] * (10 - right[form])] * 3 for form in FORMS])
    sure = np.array([[0.1] * 4 + [2.0] * 6, [2.0] * 4 + [0.1] * 3 + [2.0] * 3, [1.0] * 10])
    held_out = (np.linspace(0, 2, 10) * np.ones((3, 1)), np.ones((3, 10), bool))
    return made(FORMS, prediction, np.array([sure] * 6), np.zeros(10), validation=held_out, dataset="digits",
                data_variant="embedded")


def reading(label="main", **right) -> Reading:
    trained = Trained(f"rdi_smallcnn-digits-{label}-quick", None, "d")
    return Reading(record(right), OperatingPoint(), (0.5, 0.5), "paper", trained=trained)


def test_the_trade_off_runs_from_nobody_to_everybody_leaving_at_exit_1():
    curve = between.threshold_curve(record())
    exits = [(10 * reading.share()).tolist() for reading in curve]
    assert exits[0] == [0, 0, 10] and exits[-1] == [10, 0, 0]
    held_out = [round(10 * share) for share in between.PASSING]
    assert [sum(np.linspace(0, 2, 10) < np.float32(reading.thresholds[0])) for reading in curve] == pytest.approx(
        held_out, abs=1)


def test_the_trade_off_figure_marks_where_each_network_stands():
    pair = {"main": reading("main"), "max_average": reading("max_average", main=8)}
    figure = figures.against_cost(pair, "ten images", swept=pair, unit="cumulative_macs", robust="union")
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    cost = reading().cost("cumulative_macs") / 1e6
    assert [list(trace.y) for trace in marks] == [[100], [60], [100], [60]]
    assert all(x == pytest.approx(cost) for trace in marks for x in trace.x)
    assert "ten images" in figure.layout.title.text and figure.layout.yaxis.range == (-2, 102)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 4 and {trace.line.dash for trace in lines} == {"dot", "solid"}


def test_names_are_spoken():
    assert style.spoken("single2") == "on exit 2" and style.spoken("max_average 3") == "max-average 3"
    assert style.exit_names(3) == ["exit 1", "exit 2", "main"]
    told = {"dataset": "cifar10_png", "data_variant": "image folder cifar10_png"}
    assert style.dataset(told) == "CIFAR-10, lossless" and style.dataset({"dataset": "mine"}).startswith("mine, ")
    assert style.dataset(told | {"data_variant": "lossless, first 8"}) == "CIFAR-10, lossless, first 8"


def test_the_table_beside_the_paper_has_dashes_where_nothing_is_known(monkeypatch):
    found = {label: replace(reading(label), trained=Trained("x_released", None, "d"))
             for label in ("main", "standard")}
    monkeypatch.setattr(tables, "comparable", lambda reading: True)
    shown = tables.beside(published.TABLES[3], found, ("clean", "paper_worst", "paper_mflops", "gate_aware"))
    clean = shown.loc[("main branch", "TA")]
    assert (clean["published"], clean["measured"], clean["difference"]) == ("83.74", "100.00", "+16.3")
    low, high = wilson(10, 10)
    assert clean["95 % interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
    assert shown.loc[("standard", "TA")]["published"] == "92.43"
    assert (shown.loc[("standard", "gate-aware")] == tables.DASH).all()


def test_settings_say_what_each_costs():
    found = read(record(), thresholds=(0.5, -math.inf))
    line = tables.settings({"mine": found}).loc["mine"]
    assert line["leaves below"] == "0.5 closed" and line["leave at each exit, %"] == "40 0 60"
    assert line["true cost, M MACs"] == f"{found.cost('cumulative_macs') / 1e6:.2f}"


@pytest.mark.parametrize("first, second, answer", [
    ([1] * 40, [0] * 40, "held"), ([0] * 40, [1] * 40, "did not hold"), ([1, 0] * 5, [0, 1] * 5, "too small to tell")])
def test_a_verdict_is_computed_and_says_over_what(first, second, answer):
    """One training decides about its own weights, three about what they are trainings of."""
    first, second = np.array(first), np.array(second)
    one = tables.verdict("first is better", first, second)
    assert one["verdict"].removesuffix(" here") == answer and one["verdict"] != "held"
    assert one["images"] == len(first) and one["over"] == "1 training"
    three = tables.verdict("first is better", *(np.stack([half] * 3) for half in (first, second)), draws=5)
    assert three["verdict"] == answer and three["over"] == "3 trainings, 5 draws"


def test_a_study_writes_every_number_as_a_tidy_row(tmp_path):
    from lib.evaluation import rows

    wb = Session(run_dir=tmp_path / "11_x", notebook="11_x", preset="quick", weights="train")
    path = wb.write({"main": reading()})
    table = rows.read(path)
    assert path == tmp_path / "11_x" / "metrics.csv"
    clean = table[(table.metric == "clean_accuracy") & (table.exit == "routed")].iloc[0]
    assert (clean.value, clean.experiment, clean.threshold_source) == (1.0, "11_x", "paper")


def test_headless_a_figure_is_shown_with_its_title_as_text(monkeypatch):
    shown = []
    monkeypatch.setenv("WORKBOOK_PNG", "0")
    monkeypatch.setattr(live, "display", lambda bundle, raw: shown.append(bundle))
    live.show(figures.against_cost({"main": reading()}, "ten images"))
    (bundle,) = shown
    assert bundle["text/plain"].startswith("[Accuracy against cost, %") and "image/png" not in bundle
    json.dumps(bundle)


@pytest.mark.parametrize("told, ci, kernel, expected", [
    ("1", "", False, True), ("0", "", True, False), (None, "", True, True), (None, "", False, False),
    ("", "", True, True), (None, "true", True, False), (None, "false", True, True), ("1", "true", False, True)])
def test_live_is_every_kernel_unless_the_runner_or_ci_say_otherwise(monkeypatch, told, ci, kernel, expected):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("WORKBOOK_LIVE", told) if told is not None else monkeypatch.delenv("WORKBOOK_LIVE")
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=1) if kernel else None)
    assert live.is_live() == expected


# --- networks as they are built ---

def test_a_drawing_shows_every_stage_and_exit_of_the_built_network():
    network = zoo.build("resnet38", exits="rdi")
    figure = figures.built(network, "RDI-ResNet38", "full size")
    assert [int(text) for text in figure.data[0].text] == [16] * 7 + [32] * 6 + [64] * 6
    assert list(figure.data[0].y) == [32] * 7 + [16] * 6 + [8] * 6
    assert [note.x for note in figure.layout.annotations] == list(network.taps)
    counted, plain = cost(network).exits, cost(zoo.build("resnet38")).macs
    assert [note.text.split("<br>")[-1] for note in figure.layout.annotations] == [
        f"{100 * leave.cumulative_macs / plain:.0f} %" for leave in counted]
    assert figure.layout.annotations[0].text.startswith("<b>exit 1</b><br>5×5 to 64<br>3×3 to 32")
    assert len(figures.built(zoo.build("resnet20"), "ResNet-20", "").layout.annotations) == 1


def test_a_drawing_of_conditioned_blocks_says_what_conditions_them():
    slim = {name: small("resnet20", conditioning=name, widths=(1.0, 0.5), **more) for name, more in (
        ("float", {}), ("oat", dict(code_size=4)), ("none", {}))}
    figure = figures.conditioned(slim, "blocks", "as built")
    boxes = {name: [note.text for note in figure.layout.annotations if note.ay == row or note.y == row]
             for row, name in enumerate(slim)}
    assert [len(found) for found in boxes.values()] == [5, 7, 5]
    channels = slim["float"].stages[1][0].main[0].weight.shape[0]
    lines = ["<b>conv 3×3</b>", "weight + s·α·η", *(f"{c} to {c}" for c in (channels, channels // 2))]
    assert boxes["float"][0] == "<br>".join(lines)
    assert "BN_C | BN_A" in boxes["float"][1] and boxes["none"][1].startswith("<b>BN</b><br>width 1")
    assert boxes["oat"][2] == f"FiLM<br>fc 4 to {2 * channels}<br>fc {2 * channels} to {2 * channels}"


def test_of_many_series_no_two_look_alike():
    series = {name: {"a": (0.5, 0.5)} for name in (*style.DEFENCES, "one", "two", "three")}
    fig = figures.plane({"": series}, "", "", "x", "y")
    looks = [(trace.marker.color, trace.marker.symbol) for trace in fig.data]
    assert len(series) > 10 and len(set(looks)) == len(looks)
    few = figures.plane({"": dict(list(series.items())[:4])}, "", "", "x", "y")
    assert {trace.marker.symbol for trace in few.data} == {"circle"}
