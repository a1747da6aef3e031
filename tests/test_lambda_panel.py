"""The λ explorer and its panel, without a browser, on hand-made records whose numbers are known."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lib import WorkbookError
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import points
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_explorer, lambda_figures, lambda_study, style
from lib.workbook.lambda_explorer import LambdaExplorer
from lib.workbook.lambda_panel import LambdaPanel
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from tests.evaluation.made_record import hit
from tests.networks import small

THREAT, IMAGES, DRAWS = Threat(0.1, 0.05, 2), 40, 2


def accuracy(point: OperatingPoint, attacked: bool) -> float:
    """Bilinear in noise and batch norm, so that interpolation has to give it exactly."""
    noise, bank = point.noise or 0.0, point.batch_norm or 0.0
    return 0.9 - 0.2 * noise - 0.1 * bank if not attacked else 0.1 + 0.3 * bank + 0.2 * noise * bank


def member(method: str, conditioning: str = "none", **options) -> Member:
    """A network with a record in which the first images of each view are right, as many as `accuracy` says."""
    network = small("resnet20", conditioning=conditioning, input_shape=(3, 8, 8), **options)
    views = [replace(v, draws=DRAWS if network.conditions(v.point).noisy and v.evaluated_at.draw is None else 1)
             for v in points.views(network, THREAT, draws=3)]
    share = [accuracy(v.evaluated_at, v.attacked) for v in views]
    return Member(method, Trained(f"resnet20-made-{method}-quick", network, "0" * 8),
                  hit(network, views, share, IMAGES, defence=method))


@pytest.fixture(scope="module")
def members():
    return {"float": member("float", "float"), "dual_bn": member("dual_bn", "dual_bn"),
            "oat": member("oat", "oat", code_size=8), "pgd_at0": member("pgd_at0"), "pgd_at1": member("pgd_at1")}


@pytest.fixture
def explorer(members):
    pictures = Split(torch.zeros(IMAGES, 3, 8, 8, dtype=torch.uint8), torch.arange(IMAGES) % 10)
    return LambdaExplorer(members, SimpleNamespace(test=pictures), "made by hand", images_to_compute=4)


def test_between_nodes_the_numbers_are_interpolated(explorer):
    explorer.set(0.55, 0.25)
    found = explorer.spot()
    assert not found.exact and found.clean["low"] < found.clean["value"] < found.clean["high"]
    assert found.clean["value"] == pytest.approx(accuracy(explorer.point, False), abs=0.5 / IMAGES)
    assert found.robust["value"] == pytest.approx(accuracy(explorer.point, True), abs=0.5 / IMAGES)
    weights = [w for w, _ in lambda_explorer.corners(explorer.member.record, explorer.point)]
    assert sum(weights) == pytest.approx(1) and len(weights) == 4


def test_the_knob_moves_every_method_as_it_can(explorer):
    explorer.turn(0.7, 0.5)
    assert explorer.point == OperatingPoint(noise=0.4, batch_norm=1.0) and explorer.spot().exact
    explorer.choose("dual_bn")
    explorer.turn(0.7, 0.5)
    assert explorer.point == OperatingPoint(batch_norm=1.0)
    explorer.choose("oat")
    explorer.turn(0.65, 0.0)
    assert explorer.point == OperatingPoint(code=0.7)
    explorer.choose("pgd_at")
    explorer.turn(0.8, 0.0)
    assert explorer.member.method == "pgd_at1" and explorer.point == OperatingPoint()


def test_a_point_outside_the_record_asks_to_be_computed(members):
    clean = members["float"].record
    with pytest.raises(WorkbookError, match="compute this point"):
        lambda_explorer.corners(clean, OperatingPoint(noise=0.2, batch_norm=0.5, width=0.5))


def test_computing_makes_the_present_point_exact(explorer):
    explorer.set(0.3, 1.0)
    seen = []
    found = explorer.compute(lambda done, total: seen.append((done, total)))
    assert found.exact and found.images == 4 and seen[-1] == (4, 4)
    assert explorer.spot() is not None and explorer.spot().images == 4
    explorer.images = None
    with pytest.raises(WorkbookError, match="needs the dataset"):
        explorer.compute()


def test_the_panel_moves_the_figure_in_place(explorer):
    panel = LambdaPanel(explorer)
    figure = panel.figure
    here = next(t for t in figure.data if t.name == "here")
    assert isinstance(figure, go.FigureWidget) and here.y[0] == pytest.approx(60)
    panel.lambda_n.value = 0.0
    assert explorer.point == OperatingPoint(noise=0.0, batch_norm=0.0)
    assert (here.x[0], here.y[0]) == (pytest.approx(10), pytest.approx(90)) and panel.figure is figure
    assert panel.noise.value == 0 and panel.mix.value == 0 and "≈" not in panel.tiles.value
    panel.mix.value = 0.25
    assert explorer.point.batch_norm == 0.25 and "≈" in panel.tiles.value
    panel.method.value = "oat"
    assert panel.noise.disabled and panel.mix.disabled and panel.width.layout.display == "none"
    assert not panel.errors.value


def test_a_computation_can_be_cancelled_and_an_error_is_a_sentence_without_markup(explorer):
    panel = LambdaPanel(explorer)
    panel.mix.value = 0.25

    def computed():
        panel.compute.click()
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and thread.name.startswith("compute"):
                thread.join(60)
        assert not panel.compute.disabled and panel.working.layout.visibility == "hidden"

    panel.progress.observe(lambda change: panel.cancel.click(), "max")
    explorer.most = 30  # two pieces: the first one's bar is where the hand cancels
    computed()
    assert "cancelled" in panel.errors.value and not explorer.spot().exact
    panel.progress.unobserve_all()
    computed()
    assert panel.errors.value == "" and explorer.spot().exact and "≈" not in panel.tiles.value
    explorer.choose = lambda family: (_ for _ in ()).throw(WorkbookError("<img src=x>"))
    panel.method.value = "oat"
    assert "&lt;img src=x&gt;" in panel.errors.value and "<img" not in panel.errors.value


def test_answers_of_both_points_are_shown_and_wrong_ones_coloured(members):
    explorer = LambdaExplorer(members, None, "made by hand")  # pinned at λ_n = 0, here at λ_n = 1
    answers = next(t for t in explorer.drawn().data if t.name == "answers")
    shown = np.unique(np.linspace(0, IMAGES - 1, lambda_explorer.PICTURES).round().astype(int))
    right = [shown < round(share * IMAGES) for share in (0.9, 0.1, 0.6, 0.6)]  # as `accuracy` says
    assert [c == style.INK for c in answers.textfont.color] == np.concatenate(right).tolist()
    assert answers.text[:3] == tuple(str(v % 10) for v in shown[:3])


def test_still_face_has_a_line_per_stop(explorer):
    table = explorer.stops()
    assert table.shape == (10, 4) and table.loc[(0.5, 0.0), "clean, %"].startswith("≈")
    assert table.loc[(1.0, 0.0), "clean, %"] == "60.0"


def test_tables_and_verdicts_read_the_records(members):
    table = lambda_study.accuracies(members)
    assert table.shape == (7 + 2 + 4 + 1 + 1, len(lambda_study.COLUMNS))
    assert table.loc[("control (dual BN, no noise)", "BN_A"), "PGD"] == "40.0"
    assert "noise in training only" in "".join(at for _, at in table.index)
    crossed = lambda_study.crossing(members["float"])
    assert crossed.shape == (7, 7) and not crossed.isna().any().any()
    assert crossed.loc["s 0, BN_C", "s 1, BN_A"] == pytest.approx(60)
    said = lambda_study.verdicts(members)
    assert said.loc["λ_n = 1 is more robust than λ_n = 0", "verdict"] == "held"
    assert said.loc["FLOAT is more robust than OAT at λ = 0.2", "difference"].startswith("+")
    gains = lambda_study.gains(members)
    assert gains.loc[("FLOAT instead of PGD-AT", "clean accuracy"), "published"] == "+6.96"


def test_a_network_at_chance_decides_nothing(members):
    reading = members["float"].read(1.0)
    lost = replace(reading, record=replace(reading.record, right=0 * reading.record.right))
    assert lambda_study.compared("x", reading, lost)["verdict"].startswith("too small to tell")
    assert lambda_study.compared("x", reading, members["float"].read(0.0))["verdict"] == "held"


def test_figures_have_a_mark_for_every_point(members):
    plane = lambda_figures.trade_off(members, "made")
    marks = {t.name: len(t.x) for t in plane.data if t.legendgroup}
    assert marks == {"FLOAT": 7, "control (dual BN, no noise)": 2, "OAT": 4, "PGD-AT": 2}
    assert len(lambda_figures.parts(members, "made").data[0].x) == 5
    assert lambda_figures.crossing(members["float"], "made").data[0].z.shape == (7, 7)
