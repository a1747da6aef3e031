"""The λ study's tables, verdicts and figures on hand-made records whose numbers are known."""

from dataclasses import replace

import pytest

from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_figures, lambda_study
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


def test_tables_and_verdicts_read_the_records(members):
    table = lambda_study.accuracies(members)
    assert table.shape == (7 + 2 + 4 + 1 + 1, len(lambda_study.COLUMNS))
    assert table.loc[("control (dual BN, no noise)", "BN_A"), "PGD"] == "40.0"
    assert "noise in training only" in "".join(at for _, at in table.index)
    crossed = lambda_study.crossing(members["float"])
    assert crossed.shape == (7, 7) and not crossed.isna().any().any()
    assert crossed.loc["s 0, BN_C", "s 1, BN_A"] == pytest.approx(60)
    said = lambda_study.verdicts(members)
    assert said.loc["λ_n = 1 is more robust than λ_n = 0", "verdict"] == "held here"
    assert said.loc["FLOAT is more robust than OAT at λ = 0.2", "difference"].startswith("+")
    gains = lambda_study.gains(members)
    assert gains.loc[("FLOAT instead of PGD-AT", "clean accuracy"), "published"] == "+6.96"


def test_a_network_at_chance_decides_nothing(members):
    reading = members["float"].read(1.0)
    lost = replace(reading, record=replace(reading.record, right=0 * reading.record.right))
    assert lambda_study.compared("x", reading, lost)["verdict"].startswith("too small to tell")
    assert lambda_study.compared("x", reading, members["float"].read(0.0))["verdict"] == "held here"


def test_figures_have_a_mark_for_every_point(members):
    plane = lambda_figures.trade_off(members, "made")
    marks = {t.name: len(t.x) for t in plane.data if t.legendgroup}
    assert marks == {"FLOAT": 7, "control (dual BN, no noise)": 2, "OAT": 4, "PGD-AT": 2}
    assert len(lambda_figures.parts(members, "made").data[0].x) == 5
    assert lambda_figures.crossing(members["float"], "made").data[0].z.shape == (7, 7)
