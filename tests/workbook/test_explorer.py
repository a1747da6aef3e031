"""The explorer without a browser: where it stands, what it reads there, its widgets and its still face."""

import copy
import html
import json
import math
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import lib
from lib import ATLASES, WorkbookError, checkpoints, data
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import choosing, latency, points, recording, routing
from lib.evaluation.between import corners, view_for
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.models import zoo
from lib.operating_point import OperatingPoint
from lib.workbook import live, microscope, panel, style, tables, view
from lib.workbook.controls import Chooser, choose
from lib.workbook.explorer import Explorer
from lib.workbook.panel import Panel
from lib.workbook.subject import Subject, explorable
from tests.helpers.made_members import IMAGES, THREAT, accuracy, member
from tests.helpers.made_record import every_knob, made
from tests.helpers.made_record import view as made_view
from tests.helpers.networks import small

FORMS = ("clean", "single1", "single2", "main", "average", "max_average")
KNOBS = Threat(8 / 255, 8 / 255, 1)
GATES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
def exits(tmp_path):
    return Explorer({"a": Subject(recorded()), "b": Subject(recorded(seed=1))}, tmp_path)


@pytest.fixture(scope="module")
def methods():
    """FLOAT, its control, OAT, and PGD-AT with a network per lambda; numbers as `accuracy` says."""
    pictures = Split(torch.zeros(IMAGES, 3, 8, 8, dtype=torch.uint8), torch.arange(IMAGES) % 10)

    def subject(method, conditioning="none", **options):
        found = member(method, conditioning, **options)
        return Subject(found.record, pictures, lambda: found.network)

    return {"FLOAT": subject("float", "float"), "control": subject("dual_bn", "dual_bn"),
            "OAT": subject("oat", "oat", code_size=8), "PGD-AT": {0.0: subject("pgd_at0"), 1.0: subject("pgd_at1")}}


@pytest.fixture
def knob(methods, tmp_path):
    return Explorer(methods, tmp_path, computed=4)


@pytest.fixture(scope="module")
def network():
    return small("resnet38", exits="cheap", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))


@pytest.fixture(scope="module")
def every(network):
    images = Split(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 3)
    return Subject(every_knob(network, KNOBS, GATES), images, lambda: network)


def finished():
    """Waits for what works beside the controls."""
    for thread in threading.enumerate():
        if thread.name == "compute":
            thread.join(240)


def shown(live, name):
    return next(trace for trace in live.figure.data if trace.name == name)


# Where it stands, and what the record says there.


def test_records_of_one_name_in_two_folders_are_both_explored(tmp_path):
    for folder, seed in (("a", 0), ("b/c", 1)):
        recorded(seed=seed).save(tmp_path / folder / "same.safetensors")
    found = explorable(tmp_path)
    assert list(found) == ["a/same", "b/c/same"]
    assert not np.array_equal(*(one.record.entropy for one in found.values()))


def test_a_pinned_network_that_was_attacked_otherwise_stands_beside_as_far_as_it_goes(tmp_path):
    plain = Subject(recorded(exits=1, forms=("clean", "main"), paper_thresholds=None))
    explorer = Explorer({"plain": plain, "exits": Subject(recorded())}, tmp_path)
    live = Panel(explorer)
    live.network.value, live.attack.value = "exits", "average"
    assert not live.errors.value
    reference = dict(zip(view.lines(explorer), shown(live, "reference").x, strict=True))
    assert {line for line, value in reference.items() if value is not None} == {
        "clean", "main", "paper_worst", "union"}
    assert shown(live, "pinned").y[1] is None and shown(live, "here").y[1] is not None
    live.pin.click()
    live.network.value = "plain"
    assert not live.errors.value and shown(live, "reference").x[0] is not None


def test_one_record_under_attackers_of_several_kinds_and_budgets(tmp_path):
    """Each by itself, as a reading under its threat alone says; nothing is mixed, and nothing of them is lost."""
    attacked, threats = FORMS[1:], (THREAT, replace(THREAT, step_size=0.01), Threat(0.3, algorithm="fgsm"))
    forms = ("clean", *attacked * 3, "random")
    views = [made_view("clean"), *(made_view(form, threat=threat) for threat in threats for form in attacked),
             made_view("random", threat=THREAT)]
    record = replace(recorded(forms=forms), views=tuple(views))
    explorer = Explorer(Subject(record), tmp_path)
    live = Panel(explorer)
    assert len(live.threat.options) == 3 and live.threat.layout.display != "none" and not live.errors.value
    for name, threat in zip(live.threat.options, threats, strict=True):
        live.threat.value = name
        assert not live.errors.value and [a for _, a in live.attack.options] == [
            "union", "paper_worst", *attacked, *(["random"] if threat == THREAT else [])]
        alone = read(record, thresholds=explorer.here.thresholds, threat=threat)
        for attack in ("average", "union", "paper_worst"):
            live.attack.value = attack
            assert not live.errors.value and explorer.spot().number(attack) == alone.measured(attack)
        last = read(record, thresholds=(-math.inf,) * 2, threat=threat)
        assert explorer.recorded("network") == [(last.measured("clean").value, last.measured("paper_worst").value)]
        assert explorer.best().reading.right("union").sum() == read(
            record, thresholds=explorer.best().reading.thresholds, threat=threat).right("union").sum()
    live.threat.value, live.attack.value = live.threat.options[0], "random"
    explorer.restore(explorer.export())
    live.threat.value = live.threat.options[2]  # whose record has no such form
    assert explorer.here.attack == "union" and not live.errors.value
    explorer.choose()
    assert explorer.here.threat == live.threat.options[2]


def test_every_knob_of_one_network_moves_its_point_numbers_and_answers(every, tmp_path):
    explorer = Explorer(every, tmp_path)
    live = Panel(explorer)
    assert not live.errors.value and live.width.options == (("1", 1.0), ("0.5", 0.5))
    assert every.knobs == {"noise", "batch_norm", "width", "thresholds"} and len(live.gates) == 6
    moves = {"lambda_n": lambda: live.lambda_n.field.set_trait("value", 0.25),
             "lambda_th": lambda: live.lambda_th.slider.set_trait("value", 0.5),
             "noise": lambda: live.noise.field.set_trait("value", 0.3),
             "batch norm": lambda: live.mix.slider.set_trait("value", 0.5),
             "width": lambda: live.width.set_trait("value", 0.5),
             "threshold": lambda: live.gates[0].field.set_trait("value", 2.3),
             "closed exit": lambda: live.opens[1].set_trait("value", False)}
    for name, move in moves.items():
        before = explorer.point, live.tiles.value, live.figure.to_plotly_json()
        move()
        assert not live.errors.value, name
        assert explorer.point != before[0] and live.tiles.value != before[1], name
    before = live.tiles.value
    live.attack.value = "gate_aware"
    assert explorer.here.attack == "gate_aware" and live.tiles.value != before
    assert explorer.point == OperatingPoint(noise=0.3, batch_norm=0.5, width=0.5, thresholds=(2.3, -math.inf, *(
        explorer.here.thresholds[2:])))


def test_an_attack_on_gates_is_exact_at_those_alone(every, tmp_path):
    explorer = Explorer(every, tmp_path, lambda_n=1.0, thresholds=GATES, attack="gate_aware")
    assert explorer.spot().mark("gate_aware") == "" == explorer.spot().mark("main")
    explorer.set(thresholds="equal share")
    assert explorer.spot().mark("gate_aware") == "≤ " == explorer.spot().mark("union")
    assert explorer.spot().mark("main") == "" and "≤" in view.tiles(explorer)
    explorer.set(lambda_n=0.6)
    assert explorer.spot().mark("gate_aware") == "≈ ≤ "
    explorer.set(lambda_n=1.0, thresholds="last exit only")  # no gate to know
    assert explorer.spot().mark("union") == ""


def test_the_worst_case_is_the_strong_suites_where_it_was_run_at_this_very_setting(tmp_path):
    record = Record.load(ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors")
    explorer, met = Explorer(Subject(record), tmp_path, thresholds="equal share"), read(record, thresholds="calibrated")
    told = view.tiles(explorer)
    assert explorer.spot().robust == "strong" and "strong suite, 100 images" in told
    assert f"{100 * met.measured('strong').value:.1f} %" in told
    figure = view.drawn(explorer)
    now = next(trace for trace in figure.data if trace.name == "now")
    at, (value, low, high) = now.y.index("strong suite"), (100 * part for part in met.measured("strong"))
    assert (now.x[at], now.x[at] - now.error_x.arrayminus[at], now.x[at] + now.error_x.array[at]) == pytest.approx(
        (value, low, high))
    explorer.set(thresholds=(0.5, 0.5))
    assert explorer.spot().robust == "union" and "strong suite" not in view.tiles(explorer)
    view.update(figure, explorer)
    assert now.x[at] is None and None not in now.x[:at]


def test_the_views_of_every_knob_name_the_gates_of_each_point(network):
    digits = data.load("digits", shape=network.input_shape).validation[:20]
    where = points.published(network, (0.0, 1.0), (0.0,), network.widths)
    held_out = recording.hold_out(network, digits, where, draws=1)
    views = points.every_knob(network, KNOBS, held_out, lambdas=(0.0, 1.0), switches=(0.0,))
    aware = {v.point: v.thresholds_used for v in views if v.form == "gate_aware"}
    assert len(aware) == 2 * 3 and len(set(aware.values())) > 3  # both widths; without noise in both banks, and with it
    for point, used in aware.items():
        assert used == pytest.approx(replace(held_out, held_out=held_out).thresholds_of("calibrated", point))
    assert all(network.conditions(v.point).noisy for v in views if v.threat and v.threat.draws > 1)


def test_another_decision_is_a_choice_like_any_other(exits):
    record = exits.subject.record
    live = Panel(exits)
    assert live.decision.options == ("entropy", "patience") and live.decision in live.exits.children
    exits.set(thresholds=(0.3, 0.4))
    live.decision.value = "patience"
    assert not live.errors.value and exits.here.source == "2 in a row" == live.source.value  # 0.3 is another score's
    two = (record.prediction[0, 1] == record.prediction[0, 0])
    assert exits.spot().nearest.leaving["clean"][0].tolist() == np.where(two, 1, 2).tolist()
    assert "1 / how many exits in a row agree" in live.notes.value and "decision='patience'" in exits.code
    exits.set(thresholds=(None, 0.6))
    assert exits.spot().nearest.leaving["clean"][0].tolist() == np.where(two, 1, 2).tolist()
    assert exits.spot().mark("union") == "≤ " and live.gates[1].value == pytest.approx(0.6)
    for act in (lambda: exits.point, lambda: exits.examine(0), exits.compute):
        with pytest.raises(WorkbookError, match="by entropy; choose that in place of patience"):
            act()
    with pytest.raises(WorkbookError, match="cannot say who leaves by 'mean so far'"):
        exits.set(decision="mean so far")
    exits.set(**exits.setting | {"network": "b"})
    assert exits.here.decision == "patience" and exits.here.thresholds == (-math.inf, 0.6)


def test_a_setting_for_a_budget_is_found_and_gone_to(every, tmp_path, monkeypatch):
    clock = routing.ExitCosts(np.arange(1.0, 8.0), np.full(7, 0.1))
    monkeypatch.setattr(latency, "clocks", lambda record: dict.fromkeys(record.points, clock))
    explorer = Explorer(every, tmp_path)
    choice = explorer.choose(0.6 * every.record.macs(), 0.3)
    assert explorer.point == choice.point == choosing.choose(every.record, 0.6 * every.record.macs(), 0.3).point
    live = Panel(explorer)
    live.most.value, live.least.value = 1e-6, 99
    before = explorer.here
    live.choose.click()
    finished()
    assert explorer.here != before and explorer.here.attack == "union" and not live.errors.value
    assert "nothing reaches it; nearest" in live.chosen.value and "that did not choose" in live.chosen.value
    explorer.set(width=0.5 if explorer.here.at.width == 1 else 1.0)
    assert live.chosen.value == ""  # it was said of another setting
    found = explorer.best(0.6 * every.record.macs(), 0.3)  # and meanwhile a hand moves on
    explorer.set(decision="patience")
    explorer.take(found)
    assert explorer.here.decision == "entropy" and explorer.point == choice.point
    live.unit.index = 1
    live.choose.click()
    finished()
    assert "ms an image here" in live.chosen.value
    live.most.value = 0
    live.choose.click()
    finished()
    assert "give MACs and ms above 0" in live.errors.value and not live.choose.disabled
    right, wrong = np.arange(20)[None] % 10, np.ones((1, 20)) * 11
    weak, strong = (Subject(made(("clean", "main"), [right, attacked], np.zeros((2, 1, 20)), right[0]))
                    for attacked in (wrong, right))
    family = Explorer({"PGD-AT": {0.0: weak, 1.0: strong}}, tmp_path, lambda_n=0.0)
    family.choose(min_robust=0.5)
    assert family.here.lambda_n == 1.0


def test_a_gate_that_lets_all_leave_stands_at_its_end(exits):
    """No field can hold infinity: a browser would send back another number, as if a hand had typed it."""
    live = Panel(exits)
    exits.set(thresholds=(math.inf, 0.5))
    assert exits.here.thresholds == (math.inf, 0.5) and live.gates[0].slider.value == live.gates[0].stands
    assert math.isfinite(live.gates[0].field.value) and live.gates[0].field.value >= 2.2
    assert exits.spot().share()[0] == 1


def test_between_recorded_points_numbers_are_interpolated(knob):
    knob.set(noise=0.55, batch_norm=0.25)
    spot = knob.spot()
    assert spot.mark() == "≈ " and spot.number().low < spot.number().value < spot.number().high
    assert spot.number().value == pytest.approx(accuracy(knob.here.at, False), abs=0.5 / IMAGES)
    assert spot.number("union").value == pytest.approx(accuracy(knob.here.at, True), abs=0.5 / IMAGES)
    weights = [weight for weight, _ in corners(knob.subject.record, knob.here.at)]
    assert sum(weights) == pytest.approx(1) and len(weights) == 4


def test_the_knob_moves_every_method_as_it_can_and_what_snaps_is_said(knob):
    knob.set(lambda_n=0.7, lambda_th=0.5)
    assert knob.point == OperatingPoint(noise=0.4, batch_norm=1.0) and knob.spot().mark() == ""
    knob.set(network="control")
    assert knob.point == OperatingPoint(batch_norm=1.0) and knob.here.lambda_n == 0.7
    knob.set(network="OAT", lambda_n=0.65, lambda_th=0.0)
    assert knob.point == OperatingPoint(code=0.7) and "the nearest is 0.7" in knob.notes()[0]
    knob.set(network="PGD-AT", lambda_n=0.8)
    assert knob.subject is knob.subjects["PGD-AT"][1.0] and knob.point == OperatingPoint()
    assert "the nearest is 1" in knob.notes()[0]


def test_the_point_shown_is_the_point_used(knob):
    knob.set(lambda_n=0.35, lambda_th=0.9)
    assert knob.here.at.noise == pytest.approx(0.35 / 0.9, abs=1e-9) and knob.spot().mark() == "≈ "
    live = Panel(knob)
    assert live.noise.field.value == pytest.approx(0.388889) and "s 0.388889" in live.tiles.value


def test_a_setting_by_hand_finds_its_lambda_or_says_that_none_leads_there(knob):
    knob.set(lambda_th=0.5, noise=0.4, batch_norm=1.0)
    assert knob.here.lambda_n == pytest.approx(0.7)
    knob.set(batch_norm=0.3)
    assert knob.here.lambda_n is None and "no λ_n leads here" in " ".join(knob.notes())
    assert "noise=0.4" in knob.code and "lambda_n" not in knob.code


def test_a_knob_that_does_nothing_is_said(methods, tmp_path):
    flat = methods["FLOAT"].record
    draws = np.array([0 if view.attacked else view.draws for view in flat.views])[:, None, None]
    same = replace(flat, right=draws * flat.right[:1])
    assert any("the batch norm does it" in note for note in Explorer(Subject(same), tmp_path).notes())
    assert not Explorer(Subject(flat), tmp_path).notes()


def test_another_network_keeps_lambda_and_width(every, methods, tmp_path):
    explorer = Explorer({"every": every, "PGD-AT": methods["PGD-AT"]}, tmp_path)
    explorer.set(lambda_n=0.5, lambda_th=0.5, width=0.5)
    before = explorer.point
    explorer.set(network="PGD-AT")
    explorer.set(network="every")
    assert explorer.point == before and explorer.here.lambda_n == 0.5


@pytest.mark.parametrize("wrong, said", [
    (dict(width=0.3), "width 0.3 was not recorded"), (dict(lambda_m=1), "unknown knob 'lambda_m'.*lambda_n"),
    (dict(network="x"), "unknown network 'x'"), (dict(attack="square"), "attack square was not recorded"),
    (dict(lambda_n=-1.0), "below 0"), (dict(noise=0.5, network="control"), "has no knob noise"),
    (dict(code=0.2), "has no knob code")])
def test_what_is_not_there_is_refused_and_changes_nothing(knob, wrong, said):
    before = knob.here
    with pytest.raises(WorkbookError, match=said):
        knob.set(**wrong)
    assert knob.here == before


def test_thresholds_that_cannot_be_are_refused(exits):
    before = exits.here
    for wrong, said in (((0.5,), "1 thresholds for 3"), (0.001, "below the cheapest"), ("cheap", "unknown source")):
        with pytest.raises(WorkbookError, match=said):
            exits.set(thresholds=wrong)
    assert exits.here == before
    with pytest.raises(WorkbookError, match="nothing to explore"):
        Explorer({})


def test_a_point_outside_the_record_asks_to_be_computed(knob):
    with pytest.raises(WorkbookError, match="compute this point"):
        corners(knob.subject.record, OperatingPoint(noise=0.2, batch_norm=0.5, width=0.5))


def test_computing_makes_the_present_point_exact(knob, methods):
    knob.set(noise=0.3, batch_norm=1.0)
    seen = []
    knob.compute(lambda done, total: seen.append((done, total)))
    spot = knob.spot()
    assert spot.mark() == "" and spot.nearest.record.images == 4 and seen[-1] == (4, 4)
    assert set(spot.nearest.suite) == {"clean", "main", "EOT", "noise-free transfer"}
    bare = Explorer(Subject(methods["FLOAT"].record))
    with pytest.raises(WorkbookError, match="images"):
        bare.compute()


def test_what_was_computed_is_what_recording_gives(network, tmp_path):
    """At a recorded point, attacks of the network with every knob give the record's own numbers."""
    at = OperatingPoint(noise=1.0, batch_norm=1.0, width=0.5)
    digits = data.load("digits", shape=network.input_shape).test
    views = recording.suite(network, KNOBS, ("clean", "main", "gate_aware"), point=at, thresholds=GATES)
    record = recording.record(network, digits[:6], views, draws=1, progress=False, dataset="digits")
    explorer = Explorer(Subject(record, digits, lambda: network), tmp_path, thresholds=GATES)
    before = [explorer.spot().number(attack) for attack in ("clean", "main", "gate_aware")]
    assert explorer.here.at == at
    explorer.compute()
    assert [explorer.spot().number(attack) for attack in ("clean", "main", "gate_aware")] == before
    assert explorer.spot().nearest.record is not record and explorer.spot().mark("gate_aware") == ""


def test_an_exported_setting_reads_back(exits, tmp_path):
    exits.set(network="b", thresholds=(0.5, None), attack="main")
    written = json.loads(exits.export().read_text())
    assert OperatingPoint.from_json(written["point"]) == exits.point == OperatingPoint(thresholds=(0.5, -math.inf))
    assert written["numbers"]["clean"] == f"{100 * exits.spot().number().value:.1f}"
    before = exits.here
    exits.set(network="a", thresholds="paper", attack="union")
    exits.restore(tmp_path / "point-b.json")
    assert exits.here == before
    exits.set(thresholds="paper")
    exec(exits.code.replace("explorer", "exits"))
    with pytest.raises(WorkbookError, match="holds no exported point"):
        exits.restore(tmp_path / "nothing.json")


def test_the_line_shown_leads_to_the_point(knob, every, tmp_path):
    for explorer, setting in ((knob, dict(lambda_n=0.35, lambda_th=0.5)), (knob, dict(noise=0.2, batch_norm=0.7)),
                              (Explorer(every, tmp_path), dict(width=0.5, thresholds=(*GATES[:5], None)))):
        explorer.set(**setting)
        here, line = explorer.here, explorer.code
        explorer.set(**({"noise": 0.0, "batch_norm": 0.0}))
        exec(line)
        assert explorer.here == here


def test_elsewhere_than_on_the_papers_dataset_it_starts_at_equal_shares():
    assert Explorer(Subject(recorded(dataset="digits"))).here.source == "equal share"
    bare = made(FORMS, np.zeros((6, 3, 5)), np.ones((6, 3, 5)), np.zeros(5), paper_thresholds=None)
    assert Explorer(Subject(bare)).here.source == "last exit only"


def test_stops_turn_one_knob_at_a_time(every, exits, tmp_path):
    table = panel.stops(Explorer(every, tmp_path))
    assert {"here", "λ_n", "width", "thresholds"} == set(table.index.get_level_values(0))
    assert table.loc[("λ_n", "0.7"), "clean"].startswith("≈") and table.loc[("λ_n", "1"), "clean"][0] != "≈"
    table = panel.stops(exits)
    assert table.index[-1] == ("thresholds", "last exit only") and ("thresholds", "paper") in table.index


def test_a_flag_stands_beside_attacked_numbers_alone_wherever_they_are_shown(tmp_path):
    forms = ("clean", "single1", "single2", "main", "average", "max_average")
    record = made(forms, np.zeros((6, 3, 20)), np.ones((6, 3, 20)), np.arange(20) % 10, paper_thresholds=[0.1, 0.1])
    point = record.points[0]
    audits = {json.dumps(point.to_json()): {"flags": ["zero gradients"]}, "elsewhere": {"flags": ["saturated logits"]}}
    doubtful = read(replace(record, meta={**record.meta, "audit": audits}), thresholds="paper")
    assert doubtful.doubts == ["zero gradients"] and read(record, thresholds="paper").doubts == []
    assert (doubtful.flag("main"), doubtful.flag("union"), doubtful.flag("clean"), doubtful.flag("saving")) == (
        " !", " !", "", "")
    table = tables.forms({"max_average": doubtful}).loc["max-average"]
    assert [column for column in table.index if "!" in table[column]] == [
        *map(style.spoken, forms[1:]), "ATA, paper's worst case", "per-image worst case"]
    assert table["average"] == "1̶0̶.̶0̶ !" and table["per-image worst case"] == "≤ 1̶0̶.̶0̶ !"
    tiles = view.tiles(Explorer(Subject(doubtful.record), tmp_path))
    assert "do not trust numbers with ! (zero gradients)" in tiles
    assert "10.0 % !" in tiles and "10.0 %</div>" in tiles  # attacked and clean


def test_without_the_images_it_says_what_is_missing_and_marks_wrong_answers():
    explorer = Explorer(Subject(recorded(dataset="cifar10")))
    said = view.tiles(explorer)
    assert "Pictures need the images" in said and "cifar10" in said
    pictures = next(t for t in view.drawn(explorer).data if t.name == "pictures")
    assert set(pictures.textfont.color) == {style.INK, style.ATTACKED} and all(pictures.text)


# The widgets.


def test_the_sliders_start_at_the_papers_thresholds_and_fields_are_exact(exits):
    first, second = Panel(exits).gates
    assert (first.field.value, second.field.value) == (0.023, 0.014) == exits.here.thresholds
    assert (math.log10(0.023) - math.log10(0.014)) / first.slider.step > 10


def test_moving_a_slider_moves_every_number_at_once(exits):
    live = Panel(exits)
    before = live.tiles.value, list(shown(live, "now").x), list(shown(live, "clean").x)
    live.gates[0].field.value = 1.0
    found = read(exits.subject.record, thresholds=(1.0, 0.014))
    assert exits.point == OperatingPoint(thresholds=(1.0, 0.014)) and live.source.value == "by hand"
    assert shown(live, "now").x[0] == pytest.approx(100 * found.measured("clean").value)
    assert shown(live, "now").x[-1] == pytest.approx(100 * found.measured("union").value)
    np.testing.assert_allclose(shown(live, "clean").x, 100 * found.share())
    assert shown(live, "here").x[0] == pytest.approx(found.cost("cumulative_macs") / 1e6)
    assert f"{100 * found.measured('union').value:.1f} %" in live.tiles.value and not live.errors.value
    assert before != (live.tiles.value, list(shown(live, "now").x), list(shown(live, "clean").x))


def test_a_browser_that_rounds_to_a_step_moves_nothing(exits):
    live = Panel(exits)
    live.gates[0].slider.value = round(-4 + 0.02 * round((math.log10(0.023) + 4) / 0.02), 9)
    assert exits.here.thresholds == (0.023, 0.014) and live.source.value == "paper"
    live.gates[0].slider.value += 0.02
    assert exits.here.thresholds[0] == pytest.approx(10**-1.62) and live.source.value == "by hand"


def test_a_slider_is_not_pulled_back_to_where_it_was_heard(knob):
    """A browser's step is 0.1 + 0.2, not 0.3; a word back about it would move a slider that a hand has moved on."""
    live, words = Panel(knob), []
    live.lambda_th.slider.observe(lambda change: words.append(change.new), "value")
    live.lambda_th.slider.value = 0.1 + 0.2
    assert words == [0.1 + 0.2] and knob.here.lambda_th == live.lambda_th.value == 0.3


def test_a_threshold_below_the_sliders_end_is_kept(exits):
    live = Panel(exits)
    live.gates[0].field.value = 1e-9
    assert exits.here.thresholds[0] == 1e-9 and live.gates[0].slider.value == live.gates[0].slider.min


def test_a_closed_exit_is_minus_infinity_and_takes_nobody(exits):
    live = Panel(exits)
    live.gates[0].field.value = 2.0
    live.opens[0].value = False
    assert exits.here.thresholds[0] == -math.inf and shown(live, "clean").x[0] == 0
    live.opens[0].value = True
    assert exits.here.thresholds[0] == 2.0 and shown(live, "clean").x[0] > 0


def test_choosing_an_attack_changes_what_is_looked_at(exits):
    live = Panel(exits)
    live.attack.value = "single1"
    share = read(exits.subject.record, thresholds=exits.here.thresholds).share("single1")
    np.testing.assert_allclose(shown(live, "attacked").x, 100 * share)
    assert "on exit 1" in live.tiles.value


@pytest.mark.parametrize("source", ["paper", "equal share", "last exit only", "budget"])
def test_sources_put_the_sliders_there(exits, source):
    live = Panel(exits)
    live.gates[1].field.value = 1.5
    live.source.value = source
    record = exits.subject.record
    wanted = {"paper": (0.023, 0.014), "equal share": record.thresholds_of("calibrated"), "last exit only": (
        -math.inf,) * 2, "budget": record.thresholds_of(0.6 * record.costs()["trunk"][-1])}[source]
    assert exits.here.thresholds == pytest.approx(wanted)
    for gate, opened, threshold in zip(live.gates, live.opens, wanted, strict=True):
        assert opened.value == (threshold > -math.inf)
        assert threshold == -math.inf or gate.field.value == pytest.approx(min(threshold, gate.most), rel=1e-5)


def test_a_budget_that_buys_nothing_is_a_sentence_and_the_controls_go_back(exits):
    live = Panel(exits)
    live.source.value = "budget"
    before, tiles = exits.here, live.tiles.value
    live.budget.field.value = 2
    assert "below the cheapest exit" in live.errors.value and "Traceback" not in live.errors.value
    assert exits.here == before and live.tiles.value == tiles and live.budget.field.value == 60
    assert live.box.children.index(live.errors) < live.box.children.index(live.tiles)
    live.budget.slider.value = 90
    assert not live.errors.value and exits.here.source == 0.9


def test_choosing_another_network_redraws_the_same_figure(exits):
    live = Panel(exits)
    figure = live.figure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live.network.value = "b"
    assert live.figure is figure and exits.here.network == "b" and exits.here.thresholds == (0.023, 0.014)
    expected = read(exits.subjects["b"][None].record, thresholds=(0.023, 0.014))
    assert shown(live, "now").x[0] == pytest.approx(100 * expected.measured("clean").value)


def test_networks_with_other_knobs_get_other_sliders_and_panels(methods, tmp_path):
    deep = recorded(exits=4, forms=("clean", "single1", "single2", "single3", "main", "average", "max_average"),
                    paper_thresholds=[0.3, 0.4, 0.5])
    live = Panel(Explorer({"a": Subject(recorded()), "deep": Subject(deep)} | methods, tmp_path))
    live.network.value = "deep"
    assert [gate.field.value for gate in live.gates] == [0.3, 0.4, 0.5] and len(shown(live, "clean").x) == 4
    live.network.value = "FLOAT"
    assert not live.errors.value and not live.gates and {t.name for t in live.figure.data} >= {"knob", "OAT"}
    assert live.noise.box in live.dials.children
    live.network.value = "OAT"
    assert live.noise.box not in live.dials.children and live.lambda_n.box in live.dials.children
    live.network.value = "a"
    assert not live.errors.value and live.gates and live.lambda_n.box not in live.dials.children


def test_the_panel_follows_a_setting_from_another_cell(knob):
    live = Panel(knob)
    knob.set(lambda_n=0.3, lambda_th=0.5)
    assert (live.lambda_n.field.value, live.lambda_th.field.value) == (0.3, 0.5) and "≈" in live.tiles.value
    assert live.noise.field.value == pytest.approx(0.6) and live.mix.field.value == 0


def test_the_panel_moves_the_figure_in_place(knob):
    live = Panel(knob)
    figure, here = live.figure, shown(live, "here")
    assert isinstance(figure, go.FigureWidget) and here.y[0] == pytest.approx(60)
    live.lambda_n.slider.value = 0.0
    assert knob.point == OperatingPoint(noise=0.0, batch_norm=0.0)
    assert (here.x[0], here.y[0]) == (pytest.approx(10), pytest.approx(90)) and live.figure is figure
    assert live.noise.field.value == 0 and live.mix.field.value == 0 and "≈" not in live.tiles.value
    assert not live.errors.value


def test_a_pinned_setting_stands_beside_with_the_line_that_leads_back(knob):
    live, back = Panel(knob), knob.code
    assert "pinned: " not in live.tiles.value
    knob.set(lambda_n=0.0)
    assert f"pinned: <code>{back}</code>" in html.unescape(live.tiles.value)


def test_the_figure_can_be_downloaded_as_a_picture(knob):
    figure = Panel(knob).figure
    assert figure._config["modeBarButtons"] == [["toImage"]]
    assert figure._config["toImageButtonOptions"]["filename"] == knob.here.network


def test_a_computation_can_be_cancelled_and_an_error_is_a_sentence_without_markup(knob):
    live = Panel(knob)
    live.mix.field.value = 0.25

    def computed():
        live.compute.click()
        finished()
        assert not live.compute.disabled and live.work.box.layout.visibility == "hidden"

    live.work.bar.observe(lambda change: live.work.cancel.click(), "max")
    knob.computed = 30  # two pieces: the first one's bar is where the hand cancels
    computed()
    assert "cancelled" in live.errors.value and knob.spot().mark() == "≈ "
    live.work.bar.unobserve_all()
    computed()
    assert live.errors.value == "" and knob.spot().mark() == "" and "≈" not in live.tiles.value
    knob.set = lambda **_: (_ for _ in ()).throw(WorkbookError("<img src=x>"))
    live.network.value = "OAT"
    assert "&lt;img src=x&gt;" in live.errors.value and "<img" not in live.errors.value


def test_the_explorer_answers_in_time_on_ten_thousand_images(tmp_path):
    explorer = Explorer(Subject(recorded(images=10_000)), tmp_path)
    times = []
    for value in np.linspace(0.01, 2, 15):
        begun = time.process_time()  # whatever runs beside
        explorer.set(thresholds=(value, 0.5))
        view.tiles(explorer)
        times.append(time.process_time() - begun)
    assert np.median(times) < 0.1


# Pictures.


def test_the_strip_puts_each_sampled_image_in_the_row_of_its_exit():
    record, sample = recorded(images=40), np.arange(0, 40, 2)
    reading = read(record, thresholds=(0.4, 0.3))
    cells = microscope.by_exit(reading, "clean", sample, left=5, columns=30)
    entropy, prediction = (a[reading.first("clean")] for a in (record.entropy, record.prediction))
    rows = {cell.index: cell for cell in cells}
    for index in sample:
        wanted = 0 if entropy[0, index] < np.float32(0.4) else 1 if entropy[1, index] < np.float32(0.3) else 2
        assert rows[index].row == wanted and rows[index].answer == prediction[wanted, index]
        assert rows[index].right == (prediction[wanted, index] == record.labels[index]) and rows[index].column >= 5
    pixels = dict.fromkeys(sample.tolist(), np.zeros((28, 28, 3), np.uint8))
    assert microscope.picture(cells, 3, 36, pixels).startswith("data:image/png;base64,")


def test_answers_of_both_settings_are_shown_and_wrong_ones_coloured(methods):
    explorer = Explorer(Subject(methods["FLOAT"].record), lambda_n=0.0)  # pinned at λ_n = 1
    pictures = next(t for t in view.drawn(explorer).data if t.name == "pictures")
    which = np.array(pictures.customdata)[:view.WIDE]
    right = [which < round(share * IMAGES) for share in (0.6, 0.6, 0.9, 0.1)]  # as `accuracy` says
    assert [c == style.INK for c in pictures.textfont.color] == np.concatenate(right).tolist()


def test_pixels_of_grey_and_colour_images():
    grey = microscope.as_pixels(torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]]))
    assert grey.shape == (1, 2, 2, 3) and grey[0, 0, 1].tolist() == [255] * 3
    assert microscope.as_pixels(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)).shape == (2, 4, 5, 3)


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25).eval()


def test_the_microscope_asks_every_exit_about_both_images(tiny):
    split = data.load("digits").test
    seen = microscope.look(tiny, split[4], 4, "max_average", Threat(0.15, 0.05, 3))
    assert np.abs(seen.attacked - seen.clean).max() <= 0.15 + 1e-6
    np.testing.assert_allclose(seen.probabilities.sum(-1), 1, rtol=1e-5)
    expected = tiny(split.floats(slice(4, 5))[0]).softmax(-1)[:, 0]
    np.testing.assert_allclose(seen.probabilities[0], expected.detach(), rtol=1e-4, atol=1e-6)
    drawn = microscope.svg(seen, (5.0, 5.0), tuple("0123456789"))
    assert seen.leaves((5.0, 5.0)) == [0, 0] and seen.leaves((-math.inf, -math.inf)) == [2, 2]
    assert drawn.startswith("<svg") and drawn.count("● leaves") == 2


def test_the_microscope_takes_attacks_of_the_strong_suite_at_the_gates_it_is_given(tiny):
    image, threat = data.load("digits").test[4], Threat(0.3, 0.05, 3)
    seen = microscope.look(tiny, image, 4, "reroute 2", threat, thresholds=(0.5, 0.5))
    assert 0.2 < np.abs(seen.attacked - seen.clean).max() <= 0.3 + 1e-6
    with pytest.raises(WorkbookError, match="unknown attack form 'reroute 2'"):  # all of one exit: nothing to push past
        microscope.look(tiny, image, 4, "reroute 2", threat, thresholds=(-math.inf, -math.inf))


def test_a_chooser_draws_what_is_chosen_and_says_what_cannot_be(monkeypatch):
    def draw(name, size):
        if size == 2:
            raise WorkbookError("too large")
        return go.Figure(layout_title_text=f"{name} {size}")

    found = Chooser(draw, {"name": ["a", "b"], "size": [0, 1, 2]})
    assert found.canvas.children[0].layout.title.text == "a 0"
    found.chosen["name"].value, found.chosen["size"].value = "b", 1
    assert found.canvas.children[0].layout.title.text == "b 1" and not found.errors.value
    found.chosen["size"].value = 2
    assert "too large" in found.errors.value
    shown = []
    monkeypatch.setattr(live, "is_live", lambda: False)
    monkeypatch.setattr(live, "show", lambda figure: shown.append(figure.layout.title.text))
    choose(draw, name=["a", "b"], size=[0, 1])
    assert shown == ["a 0"]


def test_the_microscope_shows_a_clean_image_without_an_attack(tiny):
    seen = microscope.look(tiny, data.load("digits").test[0], 0, "clean", Threat(0.15, 0.05, 3))
    assert (seen.attacked == seen.clean).all()


def test_images_that_came_along_stand_for_the_dataset(tiny, tmp_path, monkeypatch):
    """The same look and computation as with it; images that did not come, or are others than recorded: a sentence."""
    digits, record = data.load("digits").test, recorded(images=200)
    record = replace(record, labels=digits.labels[:200].numpy())
    record = replace(record, meta={**record.meta, "dataset": "photos", "data_variant": "mine"})
    monkeypatch.setattr(lib, "IMAGES", tmp_path)
    about = {"data_variant": "mine", "classes": list("0123456789")}
    checkpoints.write(tmp_path / "photos.safetensors", "images",
                      {"images": digits.images[:200], "labels": digits.labels[:200]}, about)
    with_dataset, without = (Subject(record, images, lambda: tiny) for images in (digits, None))
    view, at = record.views[-1], record.points[0]
    seen, expected = (subject.examine(5, view, at, (1.0, 1.0)) for subject in (without, with_dataset))
    assert np.array_equal(seen.attacked, expected.attacked) and (seen.label, seen.index) == (expected.label, 5)
    assert np.array_equal(*(subject.compute(at, (1.0, 1.0), 20).right for subject in (without, with_dataset)))
    live = Panel(Explorer(without, tmp_path))
    live.clicked(shown(live, "pictures"), type("Points", (), {"point_inds": [2]}), None)
    assert "<svg" in live.picture.value and not live.errors.value
    with pytest.raises(WorkbookError, match="image 200 is not here: .*photos"):
        without.examine(200, view, at, (1.0, 1.0))
    other = replace(record, labels=np.roll(record.labels, 1))
    with pytest.raises(WorkbookError, match="computing here needs the images: .*photos"):
        Subject(other, None, lambda: tiny).compute(at, (1.0, 1.0), 20)


def test_images_go_where_the_network_is(tiny, monkeypatch):
    subject = Subject(recorded(images=20), data.load("digits").test, lambda: copy.deepcopy(tiny).to("meta"))
    monkeypatch.setattr(microscope, "look", lambda network, image, *asked, **how: image.images.device.type)
    assert subject.examine(0, subject.record.views[-1], subject.record.points[0], (1.0, 1.0)) == "meta"


def test_clicking_a_picture_looks_at_its_image(tiny, tmp_path):
    subject = Subject(recorded(images=60), data.load("digits").test, lambda: tiny)
    live = Panel(Explorer(subject, tmp_path))
    pictures = shown(live, "pictures")
    live.clicked(pictures, type("Points", (), {"point_inds": [3]}), None)
    assert live.number.value == pictures.customdata[3] and "<svg" in live.picture.value


def test_looking_without_the_network_is_a_sentence(exits):
    live = Panel(exits)
    live.number.value = 3
    assert "need" in live.errors.value and "Traceback" not in live.errors.value and live.picture.value == ""


def test_headless_the_same_cell_leaves_a_figure_a_table_and_a_look(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(panel, "display", seen.append)
    monkeypatch.setattr(panel.live, "show", seen.append)
    monkeypatch.setenv("WORKBOOK_LIVE", "0")
    panel.show(Explorer(Subject(recorded(), data.load("digits").test, lambda: tiny), tmp_path))
    figure, look, table = sorted(seen, key=lambda shown: not isinstance(shown, go.Figure))
    assert len(figure.layout.images) == 1 and look.layout.images and ("thresholds", "paper") in table.index


def test_a_view_stands_for_an_attack_where_there_is_no_noise(methods):
    record = methods["FLOAT"].record
    quiet = read(record, OperatingPoint(noise=0.0, batch_norm=1.0))
    assert view_for(quiet, "EOT") == "main" == view_for(quiet, "noise-free transfer")
    noisy = read(record, OperatingPoint(noise=1.0, batch_norm=1.0))
    assert view_for(noisy, "EOT") == "EOT"
    with pytest.raises(WorkbookError, match="was not met by 'average'"):
        noisy.right(view_for(noisy, "average"))
    assert THREAT in Subject(record).threats.values()
