"""A study's tables, claims and figures on hand-made records whose numbers are known; several trainings at once."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import lib
from lib import WorkbookError
from lib.data import Split
from lib.evaluation import points, recording
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.evaluation.stats import interval
from lib.operating_point import OperatingPoint
from lib.training import methods
from lib.workbook import figures, once_for_all, session, style, subject, tables
from lib.workbook.once_for_all import SIZES, Member, Trained
from lib.workbook.published import suited
from lib.workbook.session import Session
from tests.helpers import notebook_cells as pages
from tests.helpers.made_members import IMAGES, THREAT, recorded, repeated, study
from tests.helpers.networks import images, small

FULL, QUIET = OperatingPoint(noise=1.0, batch_norm=1.0), OperatingPoint(noise=0.0, batch_norm=1.0)


@pytest.fixture(scope="module")
def members():
    return study()


@pytest.fixture(scope="module")
def trainings():
    return {"float": repeated("float", 0.3, 0.2, 0.1), "dual_bn": repeated("dual_bn", 0.1, 0.0, 0.1)}


@pytest.fixture
def wb(tmp_path):
    return Session(preset="laptop", weights="shipped", seed=0, run_dir=tmp_path / "20", device="cpu", images=500,
                   notebook="20_lambda_tradeoff", dataset="digits", network="resnet20")


def test_tables_and_claims_read_the_records(members):
    table = once_for_all.accuracies(members)
    assert table.shape == (7 + 2 + 4 + 1 + 1, len(once_for_all.COLUMNS) - 1)  # nobody met the strong suite
    assert table.loc[("control (dual BN, no noise)", "BN_A"), "PGD"] == "40.0"
    assert "noise in training only" in "".join(at for _, at in table.index)
    names = dict(members=members, lambdas=points.LAMBDAS, switches=points.SWITCHES, points=points, pd=pd, caption="c",
                 figures=figures, live=SimpleNamespace(show=lambda figure: names.update(figure=figure)))
    pages.value("20", "crossed = ", names)
    crossed = names["crossed"]
    assert crossed.shape == (7, 7) == names["figure"].data[0].z.shape and not crossed.isna().any().any()
    assert crossed.loc["s 0, BN_C", "s 1, BN_A"] == pytest.approx(60)
    said = once_for_all.claim(members, "more robust", ("float", 1.0), ("float", 0.0))
    assert (said["verdict"], said["over"]) == ("held here", "1 training, 2 draws")
    assert said["difference"] == "+50.0 points"
    assert once_for_all.claim(members, "x", ("float", 0.2), ("oat", 0.2))["difference"].startswith("+")
    gains = once_for_all.gains(members, {
        "FLOAT instead of PGD-AT": [(("float", n), (f"pgd_at{n:g}", n)) for n in (0.0, 0.2, 1.0)],
        "FLOAT instead of OAT": [(("float", n), ("nowhere", n)) for n in (0.0, 1.0)]})
    assert gains.loc[("FLOAT instead of PGD-AT", "clean accuracy"), "published"] == "+6.96"
    assert gains.loc[("FLOAT instead of PGD-AT", "robust accuracy")].tolist()[1:2] == ["+50.0"]
    assert gains.loc[("FLOAT instead of OAT", "robust accuracy")].tolist() == ["+14.50", "–", "–", "–"]  # no OAT here


def test_what_is_not_there_is_a_dash_or_no_line(members):
    assert once_for_all.claim(members, "x", ("float", 1.0), ("pni", 1.0)) is None
    assert once_for_all.claim(members, "x", ("float", 0.3), ("float", 1.0)) is None  # was not recorded
    assert once_for_all.claim(members, "x", ("float", 1.0), ("float", 0.0), "strong") is None  # did not meet it
    line = tables.verdict("a", np.ones(4), np.zeros(4))
    assert len(tables.claims(line, None)) == 1
    assert once_for_all.accuracies({"dual_bn": members["dual_bn"]})["draw known"].tolist() == ["–", "–"]
    without = members["float"].record
    fewer = replace(members["float"], record=without.take([
        v for v, view in enumerate(without.views) if view.threat is None or view.threat.draws == 1]))
    table = once_for_all.accuracies({"float": fewer})["EOT-PGD"]  # not run: where there is noise, nobody knows
    assert [cell == "–" for cell in table] == ["s 0," not in at for _, at in table.index]


def test_a_network_at_chance_decides_nothing(members):
    reading = members["float"].read(1.0)
    lost = replace(reading, record=replace(reading.record, right=0 * reading.record.right))
    assert tables.compared("x", reading, lost)["verdict"].startswith("too small to tell")
    assert tables.compared("x", reading, members["float"].read(0.0))["verdict"] == "held here"


def test_under_the_strong_suite_two_networks_are_compared_on_the_images_that_both_met():
    exits, dense = (read(record, thresholds=suited(record)) for record in (
        Record.load(lib.ATLASES / f"{name}-laptop{more}.safetensors") for name, more in (
            ("rdi_resnet38-cifar10_jpeg-max_average", ""), ("resnet38-cifar10_jpeg-main", "-atmc_365838_8bit"))))
    line, (value, *_) = tables.compared("x", dense, exits, "strong"), tables.gain(dense, exits, "strong")
    kept = dense.right("strong").mean() - exits.right("strong")[:100].mean()
    assert line["images"] == 100 and abs(value - 100 * kept) < 1e-9
    with pytest.raises(WorkbookError, match="same images twice"):
        tables.gain(dense, replace(exits, record=exits.record.select(images=slice(0, 90))))


def test_figures_have_a_mark_for_every_point(members):
    plane = figures.plane({"": once_for_all.trade_off(members)}, "t", "c", "x", "y").data
    assert {t.name: len(t.x) for t in plane} == {"FLOAT": 7, "control (dual BN, no noise)": 2, "OAT": 4, "PGD-AT": 2}
    assert plane[0].marker.color == style.DEFENCES["float"] and list(plane[3].text) == ["PGD-AT λ 0", "PGD-AT λ 1"]
    robust = plane[1].x[1], plane[1].error_x.arrayminus[1]
    assert robust[0] == pytest.approx(40) and 40 - robust[1] == pytest.approx(100 * interval(
        np.arange(IMAGES) < 16).low)
    pairs = {"noise": (("float", 1.0), ("float", QUIET)), "not there": (("float", 1.0), ("pni", 1.0))}
    added = once_for_all.differences(members, pairs, "union")
    assert list(added) == ["noise"] and added["noise"][0] == pytest.approx(20)
    lines = figures.differences({"clean": added, "robust": added}, "t", "c").data
    assert [len(line.x) for line in lines] == [1, 1]
    ones = {0.0: members["float"].read(0.0).measured("clean"), 1.0: members["float"].read(1.0).measured("clean")}
    curve = figures.curves({"a": {"one": ones}, "b": {"one": ones}}, "t", "c", "x", "y", {"one": {"dash": "dot"}}).data
    assert [list(c.y) for c in curve] == [[90.0, 60.0]] * 2 and [c.line.dash for c in curve] == ["dot"] * 2


def test_a_member_whose_weights_did_not_come_is_explored_by_its_record_alone(members):
    """Its network has shapes, but no numbers: nothing can be attacked with it."""
    one = members["float"]
    bare = replace(one, trained=replace(one.trained, weights="record"))
    [shown] = session.subjects({"float": bare}).values()
    with pytest.raises(WorkbookError, match="needs the network"):
        shown.examine(0, one.record.views[-1], FULL, ())


def test_the_explorer_reads_images_when_it_looks_for_them(members, monkeypatch):
    asked = []
    monkeypatch.setattr(subject, "at_hand", lambda name, **options: asked.append(name))
    shown = session.subjects(members)
    assert list(shown) == ["FLOAT", "control (dual BN, no noise)", "OAT", "PGD-AT"] and list(shown["PGD-AT"]) == [0, 1]
    assert not asked
    assert shown["FLOAT"].images is None and len(asked) == 1


def test_shipped_networks_are_read_without_their_dataset(wb, monkeypatch):
    monkeypatch.setattr(session.data, "load", lambda *args, **options: pytest.fail("read a dataset"))
    found = wb.members(wb.load_all(("float", "dual_bn", "pni")))
    assert wb.write(found).is_file()
    assert "500 test images of digits, embedded · PGD-20, ε 0.15, step 0.03" in wb.caption(found)


def test_floats_own_attack_stands_beside_and_changes_nothing(members):
    """PGD-7 in a record of its own: a column more, and every other number as without it."""
    network = members["float"].network
    views = once_for_all.seven(network, THREAT)
    assert {v.threat for v in views if v.attacked} == {methods.attack(THREAT.epsilon, 7)}
    assert methods.attack(8 / 255, 7).step_size == pytest.approx(10 / 255 / 7)
    assert {v.point for v in views} == set(points.published(network)) and all(
        v.crafted_at in (None, v.evaluated_at) for v in views)
    papers = {"float": recorded("float", network, views, lambda view: 0.5 if view.attacked else 0.9)}
    alone, beside = once_for_all.accuracies(members), once_for_all.accuracies(members, seven=papers)
    shown = beside.pop("PGD-7, the paper's")
    assert beside.equals(alone) and set(shown[members["float"].label]) == {"50.0"}
    assert set(shown[members["oat"].label]) == {tables.DASH}
    plane = once_for_all.trade_off(papers, robust="white-box")["float"]
    assert {robust.value for robust, _ in plane.values()} == {0.5}


@pytest.mark.parametrize("path", sorted((lib.ATLASES / "repeats").glob("*-pgd7.safetensors")), ids=lambda p: p.stem)
def test_shipped_records_of_pgd_7_are_of_the_same_weights_and_images(path):
    found = Record.load(path)
    folder, name = path.parent, path.stem.removesuffix("-pgd7")
    one = next(p for p in (folder.parent / f"{name}.safetensors", folder / f"{name}-suite.safetensors") if p.is_file())
    other = Record.load(one)
    assert [found.meta[key] for key in ("checkpoint", "dataset", "data_variant", "seed")] == [
        other.meta[key] for key in ("checkpoint", "dataset", "data_variant", "seed")]
    for v, view in enumerate(found.views):
        if not view.attacked:  # clean answers are the same bit by bit
            same = next(u for u, known in enumerate(other.views) if known == view)
            assert np.array_equal(found.right[v], other.right[same])
        else:
            assert view.threat == methods.attack(view.threat.epsilon, 7) and view.crafted_at == view.point


def test_a_shipped_network_without_that_record_has_a_dash(wb, tmp_path, monkeypatch):
    monkeypatch.setattr(once_for_all.lib, "ATLASES", tmp_path)
    trained = {"oat": Trained("resnet20-digits-oat-laptop", small("resnet20", input_shape=(3, 8, 8)), "0", "shipped")}
    assert wb.members(trained, **once_for_all.PGD7) == {}


PARAMETERS = dict(preset="auto", weights="auto", seed=0, run_dir="", dataset="auto", network="auto",
                  __annotations__=dict(preset=str, weights=str, seed=int, run_dir=str, dataset=str, network=str))


def test_the_network_is_one_that_came_along_on_the_dataset(tmp_path, monkeypatch, capsys):
    for name in ("resnet20-digits-float", "resnet20-digits-oat", "cheap_resnet38-cifar10_jpeg-float"):
        (tmp_path / f"{name}-laptop.safetensors").touch()
    for name in ("CHECKPOINTS", "ATLASES"):
        monkeypatch.setattr(once_for_all.lib, name, tmp_path)
    monkeypatch.setenv("WORKBOOK_PRESET", "")
    monkeypatch.setenv("WORKBOOK_WEIGHTS", "")
    monkeypatch.setattr("lib.workbook.parameters.RUNS", tmp_path)

    def resolved(*methods, **given):
        found = session.open(PARAMETERS | given, "20_x", methods)
        return found.network, found.dataset, found.weights

    assert resolved("float", "oat") == ("resnet20", "digits", "shipped")
    assert resolved("float") == ("cheap_resnet38", "cifar10_jpeg", "shipped")
    assert resolved("float", dataset="digits") == ("resnet20", "digits", "shipped")
    assert resolved("float", network="cheap_resnet38", dataset="cifar10_jpeg")[0] == "cheap_resnet38"
    assert "trained right" not in capsys.readouterr().out
    assert resolved("float", "oat", dataset="cifar10_jpeg") == ("resnet20", "cifar10_jpeg", "train")
    assert "did not come with the repository" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["quick", "laptop", "paper"])
def test_every_record_holds_both_batch_norms_and_the_point_half_way(preset):
    assert {0.0, 0.5, 1.0} <= set(SIZES[preset]["mixes"])


def test_slim_networks_are_read_at_every_width():
    network = small("resnet20", conditioning="dual_bn", widths=(1.0, 0.5), input_shape=(3, 8, 8))
    pictures = Split((images(network, 4) * 255).byte(), torch.arange(4))
    made = recording.record(network, pictures, points.views(network, THREAT, widths=(1.0, 0.5)))
    slim = {"dual_bn_slim": Member("dual_bn_slim", Trained("resnet20-made-dual_bn_slim-quick", network, ""), made)}
    at = [once_for_all.accuracies(slim, width=w).index.get_level_values("operating point").tolist() for w in (1, 0.5)]
    assert at == [["BN_C, width 1", "BN_A, width 1"], ["BN_C, width 0.5", "BN_A, width 0.5"]]
    assert len(once_for_all.trade_off(slim, width=0.5)["dual_bn_slim"]) == 2
    assert 3 < made.macs() / made.macs(OperatingPoint(width=0.5)) < 4.2
    assert not [c for c in made.views if c.attacked and c.crafted_at.width != c.evaluated_at.width]


def test_the_lambdas_of_a_record_are_those_that_were_attacked(members):
    assert members["float"].lambdas == (0, 0.2, 0.7, 1)
    network = small("resnet20", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))
    quarters = points.every_knob(network, THREAT, [], draws=0, lambdas=(0.0, 0.5, 1.0), switches=(0.0,))
    assert recorded("float_slim", network, quarters, lambda view: 1.0).lambdas == (0, 0.5, 1)


# Several trainings.


def test_every_point_meets_three_attacks_and_transfer_only_where_there_is_noise():
    network = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    at = (*points.published(network), points.halfway(network))
    asked = points.suite(network, THREAT, at, 7)
    clean = [view.point for view in asked if not view.attacked]
    assert QUIET in clean and OperatingPoint(noise=0.0, batch_norm=0.5) in clean
    for point in clean:
        met = [view for view in asked if view.attacked and view.point == point]
        assert len(met) == 3
        if network.conditions(point).noisy:
            assert sorted(a.threat.draws for a in met) == [1, 1, 7]
            assert {a.crafted_at for a in met} == {point, points.quiet(point)}
        else:
            assert [a.restart for a in met] == [0, 1, 2] and all(a.crafted_at == point for a in met)
    fewer = points.suite(network, THREAT, at)
    assert set(fewer) < set(asked) and all(sum(v.attacked and v.point == p for v in fewer) == 2 for p in clean)


def test_what_is_read_has_a_row_per_training(trainings):
    reading = trainings["float"].read(FULL)
    assert reading.right("clean").shape == (3, 60) == reading.right("union").shape
    assert reading.right("clean").mean(1) == pytest.approx([0.9, 0.8, 0.7], abs=0.01)
    assert reading.right("EOT").mean() == pytest.approx(0.4, abs=0.01)
    assert trainings["float"].read(1.0).point == FULL  # by λ_n, as a single training is read
    noise = [once_for_all.differences({m: t.runs[n] for m, t in trainings.items()}, {
        "noise": (("float", 1.0), ("dual_bn", 1.0))}, "union")["noise"][0] for n in range(3)]
    assert noise == pytest.approx([20, 20, 0])


def test_intervals_draw_the_trainings_too(trainings):
    over, second = trainings["float"].read(FULL).measured("clean"), trainings["float"].runs[1]
    one = second.read(FULL).measured("clean")
    assert over.value == pytest.approx(0.8, abs=0.01) and over.low < one.value < over.high
    alike = interval(np.stack([second.read(FULL).right("clean")] * 3))
    assert over.high - over.low > alike.high - alike.low


def test_shipped_repeats_are_those_of_the_seeds_asked_for(wb):
    vars(wb).update(dataset="fashion_mnist", named=frozenset())
    found = wb.repeats(("float", "dual_bn"), "pgd")
    assert [run.trained.name[-1] for run in found["dual_bn"].runs] == ["0", "1", "2"]
    assert wb.caption(found).startswith(
        "3 trainings each · 5,000 test images of Fashion-MNIST, official")
    vars(wb).update(seed=2)
    assert len(wb.repeats(("float", "dual_bn"), "suite")["float"].runs) == 1
    vars(wb).update(dataset="digits")
    with pytest.raises(WorkbookError, match="not enough came"):
        wb.repeats(("float",), "pgd")


def test_shipped_repeats_whose_weights_stayed_away_are_read_from_their_records(wb):
    vars(wb).update(dataset="cifar10_jpeg", named=frozenset())
    found = wb.repeats(("float", "dual_bn"), "pgd")
    assert {run.trained.weights for member in found.values() for run in member.runs} == {"record"}
    assert [run.trained.name for run in found["float"].runs] == [
        f"resnet20-cifar10_jpeg-float-laptop-seed{seed}" for seed in range(3)]
    clean = found["float"].read(1.0).measured("clean")
    assert 0.5 < clean.low < clean.value < clean.high < 0.8
    with pytest.raises(WorkbookError, match="its weights did not"):
        wb.record(found["float"].trained, draws=3)
