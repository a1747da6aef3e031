"""Grids of operating points: against records of the atlas and hand-made answers."""

import numpy as np
import pytest
import torch

from lib import WorkbookError
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import atlas, grid, points
from lib.evaluation.grid import Attack, Cell, Grid
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from tests.networks import images, small

THREAT = Threat(0.1, 0.05, 3)
ROBUST, QUIET = OperatingPoint(noise=1.0, batch_norm=1.0), OperatingPoint(noise=0.0, batch_norm=1.0)


@pytest.fixture(scope="module")
def network():
    return small("resnet20", conditioning="float", input_shape=(3, 8, 8))


@pytest.fixture(scope="module")
def split(network):
    return Split((images(network, 8) * 255).byte(), torch.arange(8) % 10)


def test_cells_equal_the_atlas_recorded_at_the_same_points(network, split):
    found = grid.record(network, split, [Attack((ROBUST, QUIET), THREAT, QUIET)], draws=3, batch_size=5)
    drawn = [ROBUST.replace(draw=d) for d in range(3)]
    truth = atlas.record(AttackView(network), split, forms=("main",), threat=THREAT, point=QUIET, batch_size=5,
                         evaluated_at=[*drawn, QUIET])
    right = truth.prediction[:, 0] == truth.labels
    assert np.array_equal(found.right, [right[:3].sum(0), right[3]])
    assert np.array_equal(found.first, truth.prediction[[0, 3], 0])
    assert [c.draws for c in found.cells] == [3, 1]


def test_saved_joined_and_resumed_grids_are_the_same(network, split, tmp_path):
    todo = points.attacks(network, THREAT, noises=(0.0, 1.0), mixes=(0.0, 1.0), draws=2, lambdas=(0.0, 1.0))
    whole = grid.record(network, split, todo, draws=2, batch_size=4, folder=tmp_path / "parts")
    (tmp_path / "parts" / "images-000004.safetensors").unlink()
    again = grid.record(network, split, todo, draws=2, batch_size=4, folder=tmp_path / "parts")
    whole.save(tmp_path / "grid.safetensors")
    for other in (again, Grid.load(tmp_path / "grid.safetensors")):
        assert other.cells == whole.cells and np.array_equal(other.right, whole.right)
        assert np.array_equal(other.first, whole.first) and other.meta["images"] == [0, 8]
    with pytest.raises(WorkbookError, match="another recording"):
        grid.record(network, split, todo[:1], draws=2, batch_size=4, folder=tmp_path / "parts")


def test_another_restart_starts_elsewhere(network, split):
    weak = Threat(0.3, 1e-9, 1)  # the random start is all of it
    found = grid.record(network, split, [Attack((QUIET,), weak, QUIET, r) for r in (0, 0, 1)])
    assert np.array_equal(found.first[0], found.first[1]) and [c.restart for c in found.cells] == [0, 0, 1]
    assert points.relation(found.cells[2]) == "restart 2"


def test_published_points_of_every_kind():
    float_ = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    at = [(p.noise, p.batch_norm) for p in points.published(float_)]
    assert at == [(0, 0), (0.2, 1), (0.7, 1), (1, 1), (0.4, 0), (0.4, 1), (0, 1)]
    control = small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8))
    assert [p.batch_norm for p in points.published(control)] == [0, 1]
    oat = small("resnet20", conditioning="oat", input_shape=(3, 8, 8))
    assert [p.code for p in points.published(oat)] == [0.0, 0.2, 0.7, 1.0]
    plain = small("resnet20", input_shape=(3, 8, 8))
    assert points.published(plain) == (OperatingPoint(),)
    slim = small("resnet20", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))
    assert len(points.published(slim, widths=(1.0, 0.5))) == 14


def test_every_point_meets_a_suite_of_three(network):
    todo = points.attacks(network, THREAT)
    for point in points.nodes(network, (0.0, 0.2, 0.4, 0.7, 1.0), (0.0, 0.5, 1.0)):
        cells = [Cell(point, a.threat, a.crafted_at, 1, a.restart) for a in todo if point in a.evaluated_at]
        assert sum(points.relation(c) in points.SUITE for c in cells) == 3
        assert sum(points.relation(c) == "clean" for c in cells) == 1


def made():
    """Two images, 4 draws: clean (4, 4) right, white-box (2, 4), EOT (3, 1), transfer (4, 4), crafted afar (0, 0)."""
    eot = Threat(0.1, 0.05, 3, draws=5)
    afar = OperatingPoint(noise=0.2, batch_norm=0.0)
    cells = (Cell(ROBUST, None, None, 4), Cell(ROBUST, THREAT, ROBUST, 4), Cell(ROBUST, eot, ROBUST, 4),
             Cell(ROBUST, THREAT, QUIET, 4), Cell(ROBUST, THREAT, afar, 4),
             Cell(ROBUST.replace(draw=0), THREAT, ROBUST.replace(draw=0), 1))
    right = np.array([[4, 4], [2, 4], [3, 1], [4, 4], [0, 0], [1, 0]], np.uint8)
    meta = {"model": {"name": "resnet20"}, "macs": {"1": 7}, "seed": 0}
    return Grid(cells, right, right.astype(np.int16), np.array([1, 2]), meta)


def test_worst_cases_of_a_reading():
    found = points.read(made(), ROBUST)
    assert list(found.cells) == ["clean", "white-box", "EOT", "noise-free transfer", "crafted at s 0.2, BN_C",
                                 "draw known"]
    assert found.union.tolist() == [0.5, 0.25] and found.worst.tolist() == [0, 0] and found.draws == 4
    assert found.share("draw known").tolist() == [1, 0]
    with pytest.raises(WorkbookError, match="was not met by"):
        found.share("crafted at λ 1")
    with pytest.raises(WorkbookError, match="not recorded"):
        made().at(QUIET)


def test_rows_say_who_attacked_where():
    found = points.rows(made(), experiment="x")
    values = {(r["metric"], r.get("attack")): r["value"] for r in found}
    assert values["clean_accuracy", "clean"] == 1 and values["robust_accuracy", "pgd EOT"] == 0.5
    assert values["union_accuracy", None] == 0.375 and values["cumulative_macs", None] == 7
    assert all(r["low"] <= r["value"] <= r["high"] for r in found if "low" in r)


def test_several_threats_are_read_apart(network, split):
    fgsm, cw = Threat(0.1, algorithm="fgsm"), Threat(0.1, 0.05, 2, loss="margin")
    found = grid.record(network, split, points.under((fgsm, cw), (QUIET, ROBUST)), draws=2)
    assert len(found.cells) == 6 and set(points.read(found, ROBUST, cw).cells) == {"clean", "white-box"}
    assert np.array_equal(points.read(found, QUIET, fgsm).share("white-box"), found.share(2))
    named = [r["attack"] for r in points.rows(found) if r["metric"] == "robust_accuracy"]
    assert named == ["fgsm white-box"] * 2 + ["pgd cw white-box"] * 2
    assert {r["steps"] for r in points.rows(found) if r["metric"] == "union_accuracy"} == {1, 2}


def test_nothing_to_record_is_refused(network, split):
    with pytest.raises(WorkbookError, match="nothing to record"):
        grid.record(network, split[:0], [Attack((QUIET,))])
    with pytest.raises(WorkbookError, match="no knob"):
        grid.record(network, split, [Attack((OperatingPoint(code=0.2),))])
