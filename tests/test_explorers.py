"""The exit-threshold explorer: its numbers, its widgets driven without a browser, its still face."""

import json
import math
import time

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lib import WorkbookError, data
from lib.evaluation.reading import read
from lib.models import zoo
from lib.operating_point import OperatingPoint
from lib.workbook import explorers, microscope, tables
from lib.workbook.explorers import Subject, ThresholdExplorer, thresholds_for
from lib.workbook.strip import Strip, as_pixels
from lib.workbook.threshold_panel import ThresholdPanel
from tests.evaluation.made_record import made

FORMS = ("clean", "single1", "single2", "main", "average", "max_average")


def recorded(images=60, exits=3, forms=FORMS, seed=0, **more):
    """Random answers: right about as often as the view allows, entropies between 0 and 2.2."""
    draw = np.random.default_rng(seed)
    labels = np.arange(images) % 10
    right = draw.random((len(forms), exits, images)) < np.where(np.arange(len(forms)) == 0, 0.9, 0.4)[:, None, None]
    prediction = np.where(right, labels, (labels + 1) % 10)
    entropy = draw.random((len(forms), exits, images)) ** 3 * 2.2
    held_out = draw.random((exits, images)) ** 3 * 2.2, draw.random((exits, images)) < 0.9
    return made(forms, prediction, entropy, labels, validation=held_out,
                **({"paper_thresholds": [0.023, 0.014], "dataset": "mnist"} | more))


@pytest.fixture
def explorer(tmp_path):
    return ThresholdExplorer({"a": Subject(recorded()), "b": Subject(recorded(seed=1))}, tmp_path)


@pytest.fixture
def panel(explorer):
    return ThresholdPanel(explorer)


def shown(panel, name):
    return next(trace for trace in panel.figure.data if trace.name == name)


def test_the_sliders_start_at_the_papers_thresholds_and_tell_them_apart(panel):
    first, second = panel.gates
    assert (first.value, second.value) == (0.023, 0.014)
    assert (math.log10(0.023) - math.log10(0.014)) / first.step > 10


def test_moving_a_slider_moves_every_number_at_once(panel, explorer):
    before = panel.tiles.value, list(shown(panel, "now").x), list(shown(panel, "clean").y)
    panel.gates[0].value = 1.0
    found = tables.summary(read(explorer.record, thresholds=(1.0, 0.014)))
    assert explorer.point == OperatingPoint(thresholds=(1.0, 0.014)) and panel.setting.value == "by hand"
    assert shown(panel, "now").x[0] == pytest.approx(100 * found["forms"]["clean"]["accuracy"])
    assert shown(panel, "now").x[-1] == pytest.approx(100 * found["union_accuracy"])
    np.testing.assert_allclose(shown(panel, "clean").y, 100 * np.array(found["forms"]["clean"]["exits"]) / 60)
    assert shown(panel, "point").x[0] == pytest.approx(found["forms"]["clean"]["cumulative_macs"] / 1e6)
    assert f"{100 * found['union_accuracy']:.1f} %" in panel.tiles.value
    assert before != (panel.tiles.value, list(shown(panel, "now").x), list(shown(panel, "clean").y))
    assert panel.errors.value == ""


def test_a_browser_that_rounds_to_a_step_moves_nothing(panel, explorer):
    panel.gates[0].value = 10**-1.64  # the step nearest to 0.023
    assert explorer.thresholds == (0.023, 0.014) and panel.setting.value == "paper"
    panel.gates[0].value = 10**-1.62
    assert explorer.thresholds == (pytest.approx(10**-1.62), 0.014) and panel.setting.value == "by hand"


def test_a_closed_exit_is_minus_infinity_and_takes_nobody(panel, explorer):
    panel.gates[0].value = 2.0
    panel.opens[0].value = False
    assert explorer.thresholds[0] == -math.inf and shown(panel, "clean").y[0] == 0
    panel.opens[0].value = True
    assert explorer.thresholds[0] == pytest.approx(2.0) and shown(panel, "clean").y[0] > 0


def test_choosing_an_attack_changes_what_is_looked_at(panel, explorer):
    panel.attack.value = "single1"
    found = explorer.read()
    np.testing.assert_allclose(shown(panel, "attacked").y, 100 * np.array(found["forms"]["single1"]["exits"]) / 60)
    assert "on exit 1" in panel.tiles.value


@pytest.mark.parametrize("setting", ["paper", "equal share", "last exit only"])
def test_quick_settings_put_the_sliders_there(panel, explorer, setting):
    panel.gates[1].value = 1.5
    panel.setting.value = setting
    assert explorer.thresholds == pytest.approx(thresholds_for(explorer.record, setting))
    for gate, opened, threshold in zip(panel.gates, panel.opens, explorer.thresholds, strict=True):
        assert opened.value == (threshold > -math.inf)
        assert threshold == -math.inf or gate.value == pytest.approx(threshold)


def test_moving_the_budget_chooses_it_and_keeps_to_it_on_held_out_images(panel, explorer):
    panel.budget.value = 50
    assert panel.setting.value == "budget"
    assert explorer.thresholds == pytest.approx(explorer.record.thresholds_of(0.5 * explorer.reading.plain("trunk")))
    panel.budget.value = 90
    assert explorer.thresholds == pytest.approx(explorer.record.thresholds_of(0.9 * explorer.reading.plain("trunk")))


def test_equal_shares_leave_equally_on_the_held_out_images():
    record = recorded()
    gates = thresholds_for(record, "equal share")
    first = (record.held().entropy[0] < np.float32(gates[0])).sum()
    assert first == 20


def test_choosing_another_network_redraws_the_same_figure(panel, explorer):
    figure = panel.figure
    panel.subject.value = "b"
    assert panel.figure is figure and explorer.chosen == "b" and explorer.thresholds == (0.023, 0.014)
    expected = tables.summary(read(explorer.subjects["b"].record, thresholds=(0.023, 0.014)))
    assert shown(panel, "now").x[0] == pytest.approx(100 * expected["forms"]["clean"]["accuracy"])


def test_a_network_with_other_exits_gets_other_sliders(tmp_path):
    deep = recorded(exits=4, forms=("clean", "single1", "single2", "single3", "main", "average", "max_average"),
                 paper_thresholds=[0.3, 0.4, 0.5])
    panel = ThresholdPanel(ThresholdExplorer({"a": Subject(recorded()), "deep": Subject(deep)}, tmp_path))
    panel.subject.value = "deep"
    assert [gate.value for gate in panel.gates] == [0.3, 0.4, 0.5] and len(shown(panel, "clean").y) == 4


def test_an_error_in_a_callback_is_a_sentence_above_the_numbers(panel):
    panel.number.value = 3  # these subjects have no network to put under the microscope
    assert "microscope needs" in panel.errors.value and "Traceback" not in panel.errors.value
    assert panel.picture.value == "" and panel.box.children.index(panel.errors) < panel.box.children.index(panel.tiles)
    panel.gates[0].value = 1.0
    assert panel.errors.value == ""


def test_the_explorer_answers_in_time_on_ten_thousand_images(tmp_path):
    panel = ThresholdPanel(ThresholdExplorer(Subject(recorded(images=10_000)), tmp_path))
    times = []
    for value in np.linspace(0.01, 2, 15):
        begun = time.perf_counter()
        panel.explorer.thresholds = (value, 0.5)
        panel.explorer.read()
        times.append(time.perf_counter() - begun)
    assert np.median(times) < 0.1


def test_the_exported_point_reads_back(panel, explorer, tmp_path):
    panel.gates[0].value = 0.5
    panel.opens[1].value = False
    panel.save.click()
    written = json.loads((tmp_path / "point-a.json").read_text())
    assert OperatingPoint.from_json(written["point"]) == explorer.point
    assert written["numbers"]["union_correct"] == explorer.read()["union_correct"]
    assert "point-a.json" in panel.saved.value


def test_elsewhere_than_on_the_papers_dataset_it_starts_at_equal_shares(tmp_path):
    explorer = ThresholdExplorer(Subject(recorded(dataset="digits")), tmp_path)
    assert explorer.setting == "equal share" and explorer.thresholds == explorer.record.thresholds_of("calibrated")


def test_a_record_without_held_out_images_or_published_thresholds_says_so(tmp_path):
    bare = made(FORMS, np.zeros((6, 3, 5)), np.ones((6, 3, 5)), np.zeros(5), paper_thresholds=None)
    with pytest.raises(WorkbookError, match="held-out"):
        ThresholdExplorer(Subject(bare), tmp_path)
    with pytest.raises(WorkbookError, match="unknown setting"):
        thresholds_for(recorded(), "cheapest")
    with pytest.raises(WorkbookError, match="nothing to explore"):
        ThresholdExplorer({}, tmp_path)


def test_the_strip_puts_each_sampled_image_in_the_row_of_its_exit():
    record, sample = recorded(images=40), np.arange(0, 40, 2)
    strip = Strip.of(read(record, thresholds=(0.4, 0.3)), "clean", sample, columns=30)
    entropy, prediction = record.entropy[0], record.prediction[0]
    for index in sample:
        wanted = 0 if entropy[0, index] < np.float32(0.4) else 1 if entropy[1, index] < np.float32(0.3) else 2
        assert index in strip.rows[wanted]
        assert strip.right[index] == (prediction[wanted, index] == record.labels[index])
    assert sum(map(len, strip.rows)) == len(sample)
    assert strip.picture(np.zeros((40, 28, 28, 3), np.uint8)).startswith("data:image/png;base64,")


def test_pixels_of_grey_and_colour_images():
    grey = as_pixels(torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]]))
    assert grey.shape == (1, 2, 2, 3) and grey[0, 0, 1].tolist() == [255] * 3
    assert as_pixels(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)).shape == (2, 4, 5, 3)


@pytest.fixture(scope="module")
def small():
    return zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25).eval()


def test_the_microscope_asks_every_exit_about_both_images(small):
    split = data.load("digits").test
    threat = explorers.Threat(0.15, 0.05, 3)
    seen = microscope.look(small, split, 4, "max_average", threat)
    assert np.abs(seen.attacked - seen.clean).max() <= 0.15 + 1e-6
    np.testing.assert_allclose(seen.probabilities.sum(-1), 1, rtol=1e-5)
    expected = small(split.floats(slice(4, 5))[0]).softmax(-1)[:, 0]
    np.testing.assert_allclose(seen.probabilities[0], expected.detach(), rtol=1e-4, atol=1e-6)
    drawn = microscope.svg(seen, (5.0, 5.0), tuple("0123456789"))
    assert seen.leaves((5.0, 5.0)) == [0, 0] and seen.leaves((-math.inf, -math.inf)) == [2, 2]
    assert drawn.startswith("<svg") and drawn.count("● leaves") == 2


def test_the_microscope_shows_a_clean_image_without_an_attack(small):
    seen = microscope.look(small, data.load("digits").test, 0, "clean", explorers.Threat(0.15, 0.05, 3))
    assert (seen.attacked == seen.clean).all()


def test_clicking_a_picture_looks_at_its_image(small, tmp_path):
    digits = data.load("digits")
    subject = Subject(recorded(images=60), digits.test, digits.classes, lambda: small)
    panel = ThresholdPanel(ThresholdExplorer(subject, tmp_path))
    pictures = shown(panel, "pictures")
    panel.clicked(pictures, type("Points", (), {"point_inds": [3]}), None)
    assert panel.number.value == pictures.customdata[3] and "<svg" in panel.picture.value


def test_headless_the_same_object_leaves_a_figure_a_table_and_a_look(small, tmp_path, monkeypatch):
    digits, seen = data.load("digits"), []
    subject = Subject(recorded(images=60), digits.test, digits.classes, lambda: small)
    monkeypatch.setattr(explorers, "display", seen.append)
    monkeypatch.setattr(explorers.live, "show", seen.append)
    monkeypatch.setenv("WORKBOOK_LIVE", "0")
    ThresholdExplorer(subject, tmp_path)._ipython_display_()
    figure, table, look = seen
    assert isinstance(figure, go.Figure) and len(figure.layout.images) == 1
    assert list(table.index)[:2] == ["paper", "equal share"] and table.index[-1] == "last exit only"
    assert any(name.startswith("at most") for name in table.index) and table["leaves below"].is_unique
    assert look.layout.images[0].source.startswith("data:image/svg+xml;base64,") and look.layout.width > 500
