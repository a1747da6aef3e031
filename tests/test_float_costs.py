"""Costs beside the paper: counts against the fact sheet's, times against hand-made rows and slow layers."""

import time

import pytest
import torch

from lib import WorkbookError
from lib.evaluation import rows, speeds
from lib.operating_point import OperatingPoint
from lib.workbook import float_costs
from tests.networks import images, small


def test_wrn40_2_is_counted_as_in_the_literature():
    table = float_costs.counted(["wrn40_2"]).loc["wrn40_2"]
    assert table.loc["OAT, d = 128", "parameters, M"] == "3.886" and table.loc["OAT, d = 1", "parameters, M"] == "3.232"
    assert table.loc["OAT, d = 1", "with one batch-norm set"] == "3.227"
    assert table.loc["plain", "parameters, M"] == "2.244" and table.loc["FLOAT", "with one batch-norm set"] == "2.244"
    assert table.loc["FLOAT", "G MACs"] == "2.948" and table.loc["FLOAT", "paper, M"] == "2.25"
    assert table.loc["FLOAT", "noise draws a pass, M"] == "2.24" and table.loc["plain", "noise draws a pass, M"] == "–"


def test_a_network_that_sleeps_is_measured_as_slower():
    quick, slow = (small("resnet20", conditioning="float", input_shape=(3, 8, 8)) for _ in range(2))
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    x = images(quick, 4)
    found = speeds.side_by_side({"quick": (quick, None), "slow": (slow, OperatingPoint(noise=1.0))}, x,
                                batch_sizes=(1, 4), passes=5, warm_up=1)
    assert len(rows.frame(found)) == 2 * 2 * 2
    ratio = {(r["defence"], r["suite"]): r for r in found if r["metric"] == "time_ratio"}
    assert ratio["quick", "batch 1"]["value"] == 1 and ratio["slow", "batch 4"]["low"] > 1.2
    each = {(r["defence"], r["suite"]): r["value"] for r in found if r["metric"] == "latency_ms"}
    assert each["slow", "batch 1"] >= 50 and each["slow", "batch 4"] >= 12.5
    with pytest.raises(WorkbookError, match="do not fill"):
        speeds.side_by_side({"quick": (quick, None)}, torch.zeros(1, 3, 8, 8), batch_sizes=(2,))
    with pytest.raises(WorkbookError, match="no knob"):
        speeds.side_by_side({"quick": (quick, OperatingPoint(code=0.2))}, x, batch_sizes=(1,))


def step_rows(method, ratio, predicted, spread=0.02):
    common = {"defence": method}
    return [common | {"metric": "step_seconds", "value": ratio / 10, "low": ratio / 11, "high": ratio / 9},
            common | {"metric": "step_ratio", "value": ratio, "low": ratio - spread, "high": ratio + spread},
            common | {"metric": "step_ratio_predicted", "value": predicted}]


def test_steps_beside_what_attacked_images_predict():
    made = (step_rows("float", 1.0, 1.0, 0) + step_rows("dual_bn", 0.9, 1.0) + step_rows("oat", 1.6, 1.5)
            + step_rows("pgd_at0.7", 1.9, 2.0) + step_rows("pgd_at_half0.7", 1.0, 1.0)
            + step_rows("float_slim", 1.2, 1.25) + step_rows("oats", 2.4, 2.0))
    table = float_costs.step_table(made)
    assert table.loc["OAT", "share explained"] == "83 %" and table.loc["FLOAT", "share explained"] == "–"
    assert table.loc["PGD-AT, full batch", "share explained"] == "all" and table.loc["OATS", "paper (up to)"] == "–"
    assert "2.00 times FLOAT-slim's (predicted by attacked images 1.60, paper 1.90)" in float_costs.slim_ratio(made)
    assert table.loc["OAT", "paper (up to)"] == "1.43" and table.loc["PGD-AT, full batch", "paper (up to)"] == "1.37"
    fast = [{"metric": "time_ratio", "defence": "FLOAT, fresh noise", "suite": "batch 1", "value": 1.4, "low": 1.3,
             "high": 1.5}]
    said = float_costs.verdicts(made, fast)["verdict"].tolist()
    assert said == ["held", "held", "too small to tell", "held", "did not hold"]
    assert len(float_costs.step_figure(made, "made").data[0].x) == 7
