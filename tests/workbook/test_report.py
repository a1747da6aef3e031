"""What page 90 makes of run folders: means over trainings, the frontier, the paper's panels, and two runs compared."""

import json

import pytest

from lib import WorkbookError
from lib.evaluation import rows
from lib.evaluation.stats import student
from lib.operating_point import OperatingPoint
from tests.helpers import notebook_cells as pages

CLEAN, ROBUST = (0.80, 0.82, 0.84), (0.30, 0.36, 0.33)


def line(metric, value, point, checkpoint, **more):
    return dict(experiment="20_x", model="resnet20 float", defence="float", dataset="digits", data_variant="embedded",
                images=100, metric=metric, value=value, low=value - 0.1, high=value + 0.1, exit="main", preset="quick",
                evaluated_at=json.dumps(point.to_json()), checkpoint=checkpoint, seed=0) | more


def run(folder, clean=CLEAN):
    """FLOAT, trained three times, at two points of which one is worse in everything."""
    for n, (accurate, robust) in enumerate(zip(clean, ROBUST, strict=True)):
        path = folder / f"20_x{n}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        for point, less in ((OperatingPoint.from_lambda(1.0), 0.0), (OperatingPoint.from_lambda(0.2), 0.1)):
            rows.append(path, [
                line("clean_accuracy", accurate - less, point, f"c{n}", attack="clean"),
                line("cumulative_macs", 1e6, point, f"c{n}", attack="clean", cost_inputs="clean"),
                line("robust_accuracy", robust - less, point, f"c{n}", attack="main", steps=7),
                line("union_accuracy", robust - less - 0.05, point, f"c{n}", suite="clean + main", steps=20)])
        (path.parent / "status.json").write_text(json.dumps({"digest": f"code{n}", "parameters": {"images": 100}}))
    return folder


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.workbook.live.show", lambda figure: None)
    return lambda **given: pages.run("90", run_dir=str(tmp_path / "made" / "90_report"), **given)


def test_trainings_become_a_mean_with_its_interval_and_say_where_they_came_from(tmp_path, report):
    found = report(folder=str(run(tmp_path / "one")))
    table = found["report"]
    full = table[(table.metric == "union_accuracy") & table.evaluated_at.str.contains('"noise": 1.0')].iloc[0]
    half = student(2) * 0.03 / 3**0.5
    assert full.value == pytest.approx(0.28) and full.trainings == 3
    assert (full.low, full.high) == (pytest.approx(0.28 - half), pytest.approx(0.28 + half))
    assert full.run == "one/20_x0, one/20_x1, one/20_x2" and full.digest == "code0, code1, code2"
    assert found["sources"].asked.tolist() == ['{"images": 100}'] * 3
    assert (tmp_path / "made" / "90_report" / "report.csv").is_file()
    (only,) = found["told"].index.get_level_values("evaluated_at")  # the other point is worse in both and costs as much
    assert only == "s 1, BN_A" and found["told"]["clean, %"].iloc[0].startswith("82.0")
    (panel,) = found["panels"].values()
    assert panel["FLOAT, λ_th 0"]["λ 1"][0].value == pytest.approx(0.33)  # PGD-7, not the suite
    assert list(panel) == ["FLOAT, λ_th 0", "FLOAT, λ_th 0.5"] and "λ 0.2" not in panel["FLOAT, λ_th 0.5"]


def test_two_runs_are_compared_number_by_number(tmp_path, report, capsys):
    found = report(folder=str(run(tmp_path / "one")), other=str(run(tmp_path / "two", (0.50, 0.52, 0.54))))
    said = capsys.readouterr().out
    assert "8 numbers in both: 6 equal, 0 within the intervals, 2 apart; 0 only here, 0 only there" in said
    assert set(found["compared"]["metric"]) == {"clean_accuracy"} and len(found["compared"]) == 2


def test_a_folder_without_rows_is_refused(tmp_path, report):
    with pytest.raises(WorkbookError, match="holds no metrics.csv of a page; name a run folder"):
        report(folder=str(tmp_path))


def test_without_a_run_the_shipped_records_are_reported(report):
    found = report()
    assert not found["own"] and found["every"]["checkpoint"].nunique() > 30
    assert {"CIFAR-10, lossless", "digits, embedded"} <= set(found["report"]["dataset"])
