"""Measured time tables, and the notebook that shows them and exits tuned against them."""

import itertools
import math

import numpy as np
import pytest
import torch

import lib
from lib import WorkbookError
from lib.evaluation import speeds
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.models.view import AttackView
from lib.workbook import engine_speed, exit_speed
from lib.workbook.parameters import Settings
from tests.evaluation.made_record import made
from tests.networks import images, small

INF = math.inf


def test_a_time_table_has_a_positive_time_for_every_part():
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    for subject, count in itertools.product((network, AttackView(network)), (1, 6)):
        found = speeds.time_table(subject, images(network, count), passes=3, warm_up=1)
        assert found.trunk.shape == found.heads.shape == (7,)
        assert (np.diff(found.trunk, prepend=0) > 0).all() and (found.heads > 0).all()
        assert found.cumulative([-INF] * 6)[-1] == pytest.approx(found.trunk[-1] + found.heads[-1])
        assert found.cumulative([1.0] * 6)[-1] == pytest.approx(found.trunk[-1] + found.heads.sum())


def test_a_time_table_runs_every_part_once_a_pass_and_tells_nothing_to_the_network():
    network, calls = small("smallcnn", exits="rdi"), []
    for kind, modules in (("stage", network.stages), ("head", network.heads)):
        for module in modules:
            module.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    speeds.time_table(network, images(network, 2), passes=4, warm_up=1)
    assert calls.count("head") == 5 * 3 and calls.count("stage") == 5 * len(network.stages)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- the notebook on cost and speed ----------------------------------------------------------------------------------


def step_rows(label, ratio, counted, passes):
    common = {"defence": label, "images": 32, "steps": 4, "device": "cpu", "threads": 1}
    return [common | {"metric": "step_seconds", "value": ratio / 10, "low": ratio / 11, "high": ratio / 9},
            common | {"metric": "step_ratio", "value": ratio, "low": 0.95 * ratio, "high": 1.05 * ratio},
            common | {"metric": "step_ratio_predicted", "value": counted}, common | {"metric": "step_passes",
                                                                                   "value": passes}]


def test_steps_are_told_beside_their_passes():
    methods = [step_rows(label, ratio, counted, 3 * counted) for label, ratio, counted in zip(
        engine_speed.DEFENCES, (1, 4, 5, 20), (1, 4.1, 8, 19), strict=True)]
    ways = [step_rows(label, ratio, 1, 60) for label, ratio in zip(
        engine_speed.WAYS, (1, 0.7, 0.97, 0.5, 1.4), strict=True)]
    found = {"methods": sum(methods, []), "ways": sum(ways, [])}
    table = engine_speed.step_table(found["methods"])
    assert table.loc["max-average", "times the first"] == "20.00 (19.00–21.00)"
    assert table.loc["standard", "ms per image and pass"] == "1.042"  # 100 ms / 3 passes / 32 images
    said = [line["verdict"] for line in engine_speed.verdicts(found)]
    assert said == ["held", "too small to tell", "held", "did not hold", "held", "did not hold", "held"]
    assert len(engine_speed.step_figure(found, "made").data) == 4


def test_exits_are_told_beside_the_plain_network():
    clean, worst = np.array([[True] * 4, [False] * 4]), np.array([[True, True, False, False], [False] * 4])
    took = [{"metric": "speed_up", "exit": "plain", "value": 1.25, "low": 1.0, "high": 2.0, "images": 96}]
    one = exit_speed.Routed(3, np.array([0, 0, 1, 2]), clean, worst, 0.7, took)
    assert one.time() == pytest.approx((20, 0, 50)) and one.gain(False) == (100, 100, 100)
    assert one.gain(True)[0] == 50
    table = exit_speed.routed_table({("tuned by measured time", 32): one})
    assert table.loc[("batch 32", "tuned by measured time")].tolist() == [
        "50 25 25", "30.0", "+20.0 (+0.0 to +50.0)", "+100.0 (+100.0 to +100.0)",
        exit_speed.interval(*one.gain(True))]
    assert [line["verdict"] for line in exit_speed.verdicts({("tuned by measured time", 32): one})] == ["held"] * 3
    assert exit_speed.saved({("a", 1): one}) == {"a": {"MACs, batch 1": (pytest.approx(30), None, None),
                                                       "time, batch 1": pytest.approx((20, 0, 50))}}


def test_parts_are_rated_by_their_multiplications():
    record = made(["clean"], np.zeros((1, 3, 4)), np.zeros((1, 3, 4)), [0] * 4, {
        "trunk": [4_000_000, 10_000_000, 10_001_000], "cumulative": [6_000_000, 12_001_000, 12_003_000],
        "paper": [1, 2, 3]}, dataset="digits", data_variant="embedded")
    clocked = exit_speed.Clock(None, None, None, {1: ExitCosts(np.array([2.0, 3.0, 3.5]), np.array([1.0, 0.5, 0.1]))})
    table = exit_speed.stages(record, clocked)
    assert table["µs per M MAC, batch 1"].tolist() == ["500", "167", "–", "500", "–", "–"]
    assert exit_speed.stage_figure(record, clocked, "made").data[0].y.tolist() == pytest.approx([500, 1000 / 6])


def test_an_attack_on_the_tuned_gates_joins_the_others():
    """Image by image: right under the nine forms and under the one that follows the gates; refused for other gates."""
    record = exit_speed.record(Settings(weights="shipped", seed=0))
    found = Record.load(lib.ATLASES / "repeats" / "rdi_resnet38_released-gates.safetensors")
    assert np.array_equal(found.labels, record.labels[1::2])
    thresholds, survivors, before = found.views[0].thresholds_used, 0, 0
    for n in range(len(found.labels)):
        views = [(record.entropy[v, :, 2 * n + 1], record.prediction[v, :, 2 * n + 1])
                 for v in range(len(record.views))]
        views.append((found.entropy[0, :, n], found.prediction[0, :, n]))
        left = [p[next((k for k, t in enumerate(thresholds) if e[k] < np.float32(t)), 6)] for e, p in views]
        survivors += all(p == found.labels[n] for p in left)
        before += all(p[-1] == found.labels[n] for _, p in views[:-1])
    (line,) = exit_speed.gated(Settings(weights="shipped", seed=0), record)
    assert line["difference"] == f"{100 * (survivors - before) / 508:+.1f} points" and line["images"] == 508
    assert exit_speed.gated(Settings(weights="train"), record) == []
    record.meta["checkpoint"] = "another"
    with pytest.raises(WorkbookError, match="other weights"):
        exit_speed.gated(Settings(weights="shipped", seed=0), record)
