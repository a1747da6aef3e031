"""What pages on once-for-all networks compute in their cells, on rows and records made by hand, and on shipped ones."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import data
from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.training import methods
from lib.workbook import figures, live, once_for_all, style, tables
from lib.workbook.published import STEP_RATIOS
from tests.helpers import notebook_cells as pages
from tests.helpers.made_members import recorded
from tests.helpers.networks import small

METHODS = {"float": "FLOAT", "dual_bn": "control", "oat": "OAT", "pgd_at0.7": "PGD-AT, full batch",
           "pgd_at_half0.7": "PGD-AT, half batches", "float_slim": "FLOAT-slim", "oats": "OATS"}


def step_rows(method, ratio, predicted, spread=0.02):
    common = {"defence": method}
    return [common | {"metric": "step_seconds", "value": ratio / 10, "low": ratio / 11, "high": ratio / 9},
            common | {"metric": "step_ratio", "value": ratio, "low": ratio - spread, "high": ratio + spread},
            common | {"metric": "step_ratio_predicted", "value": predicted}]


def test_23_sets_steps_beside_what_attacked_images_predict(capsys, monkeypatch):
    made = {"float": (1.0, 1.0, 0), "dual_bn": (0.9, 1.0), "oat": (1.6, 1.5), "pgd_at0.7": (1.9, 2.0),
            "pgd_at_half0.7": (1.0, 1.0), "float_slim": (1.2, 1.25), "oats": (2.4, 2.0)}
    steps = [row for method, how in made.items() for row in step_rows(method, *how)]
    names = dict(methods=METHODS, steps=steps, tables=tables, pd=pd, STEP_RATIOS=STEP_RATIOS, figures=figures,
                 about="resnet20, batch 8, 7 attack steps · 5 rounds · seed 0 · cpu, 1 threads", live=live)
    table = pages.value("23", "timed, ratio, predicted", names)
    assert table.loc["OAT", "share explained"] == "83 %" and table.loc["FLOAT", "share explained"] == "–"
    assert table.loc["PGD-AT, full batch", "share explained"] == "all" and table.loc["OATS", "paper (up to)"] == "–"
    assert "2.00 times FLOAT-slim's (predicted by attacked images 1.60, paper 1.90)" in capsys.readouterr().out
    assert table.loc["OAT", "paper (up to)"] == "1.43" and table.loc["PGD-AT, full batch", "paper (up to)"] == "1.37"
    names["latencies"] = [{"metric": "time_ratio", "defence": "FLOAT, fresh noise", "suite": "batch 1", "value": 1.4,
                           "low": 1.3, "high": 1.5, "images": 100}]
    said = pages.value("23", "def spans(", names)["verdict"].tolist()
    assert said == ["held", "held", "too small to tell", "held", "did not hold"]
    monkeypatch.setattr(live, "show", lambda figure: names.update(figure=figure))
    pages.value("23", "measured = {", names)
    assert len(names["figure"].data[0].x) == 7


@pytest.mark.parametrize("stem", ("20", "21", "22", "23", "24", "30"))
def test_at_paper_size_all_test_images_are_attacked_as_many_as_a_dataset_has(stem, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_ALLOW_CPU", "1")
    how = dict(preset="paper", weights="train", dataset="svhn", run_dir=str(tmp_path / "x"))
    wb = pages.run(stem, next(cell for cell in pages.code(stem)[2:]), **how)["wb"]
    test = data.Split(torch.zeros(26_032, 3, 1, 1, dtype=torch.uint8), torch.zeros(26_032, dtype=torch.int64))
    assert len(wb.first(SimpleNamespace(test=test))) == 26_032
    assert " images " not in str(wb)


def attackers(preset: str) -> dict[str, Threat]:
    colour = SimpleNamespace(threat=Threat(8 / 255, 2 / 255, 7))
    wb = SimpleNamespace(recipe=lambda *asked: colour, network="resnet20", preset=preset, weights="train",
                         quick=preset == "quick")
    names = dict(wb=wb, Threat=Threat)
    exec(next(cell for cell in pages.code("24") if "threats = {" in cell), names)
    return names["threats"]


def test_24_attacks_as_the_paper_does_in_both_readings():
    found = attackers("paper")
    assert found["PGD-7"].step_size * 255 == pytest.approx(10 / 7)
    assert found["PGD-20, step by formula"].step_size * 255 == pytest.approx(0.5)
    assert found["PGD-20, step of training"].step_size == found["PGD-7"].step_size
    assert found["PGD-20, step ε/4"].step_size * 255 == pytest.approx(2)
    assert found["CW∞, PGD-20"].loss == "margin" and found["FGSM"].algorithm == "fgsm"
    assert {t.steps for t in attackers("quick").values()} == {1, 7, 10}


def test_the_worst_of_several_attackers_is_per_image():
    network, threats = small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8)), attackers("quick")
    views = points.under(list(threats.values()), points.published(network))
    shares = {None: 1.0} | {threat: 0.9 - n / 10 for n, threat in enumerate(threats.values())}
    member = recorded("dual_bn", network, views, lambda view: shares[view.threat])
    each = [member.read(1.0, threat=threat).right("main") for threat in threats.values()]
    assert np.array_equal(member.read(1.0).right("union"), np.min(each, 0))
    assert [e.mean() for e in each] == pytest.approx(list(shares.values())[1:])


@pytest.mark.parametrize("stem", ["20", "21", "22", "30"])
def test_a_page_of_shipped_records_opens_no_dataset(stem, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_PRESET", "laptop")
    monkeypatch.setenv("WORKBOOK_WEIGHTS", "shipped")
    monkeypatch.setattr("lib.data.load", lambda *asked, **how: pytest.fail("a dataset was opened"))
    monkeypatch.setattr(live, "show", lambda figure: None)
    found = pages.run(stem, "panel.show" if stem != "30" else None, run_dir=str(tmp_path / "run" / "x"))
    assert "test images of" in found["caption"] and (tmp_path / "run" / "x" / "metrics.csv").is_file()
    if stem == "30":
        lines = pages.value("30", "own, claim = ", found)
        assert len(lines) == 30 and set(lines["over"]) == {"3 trainings, 5 draws", "3 trainings"}
    else:
        lines = pages.value(stem, "claim = partial(", found)
        assert len(lines) == {"20": 24, "21": 11, "22": 8}[stem]


def test_names_and_colours_are_of_the_methods_that_train():
    named = {method for method in methods.METHODS if not method.startswith("pgd_at")}
    assert all(style.label(method) != method and method in style.DEFENCES for method in named)
    assert once_for_all.FAMILIES.keys() <= style.DEFENCES.keys() and once_for_all.COLUMNS
