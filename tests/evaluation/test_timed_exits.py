"""Measured time tables, and exits tuned against them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

import lib
from lib import WorkbookError
from lib.evaluation import latency, tuning
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.models.view import AttackView
from lib.workbook import released_record
from lib.workbook.session import Session
from tests.helpers.made_record import made
from tests.helpers.networks import images, small

INF = math.inf


def test_a_time_table_has_a_positive_time_for_every_part():
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    for subject, count in itertools.product((network, AttackView(network)), (1, 6)):
        found = latency.time_table(subject, images(network, count), passes=3, warm_up=1)
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
    latency.time_table(network, images(network, 2), passes=4, warm_up=1)
    assert calls.count("head") == 5 * 3 and calls.count("stage") == 5 * len(network.stages)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_setting_of_exits_stands_beside_the_plain_network():
    clean, worst = np.array([[True] * 4, [False] * 4]), np.array([[True, True, False, False], [False] * 4])
    took = [{"metric": "speed_up", "exit": "plain", "suite": "batch 32", "value": 1.25, "low": 1.0, "high": 2.0}]
    one = tuning.Routed(np.array([0.5, 0.25, 0.25]), clean, worst, 30.0, took)
    assert one.time == pytest.approx((20, 0, 50)) and one.gain("clean") == (100, 100, 100)
    assert one.gain("worst")[0] == 50


def test_settings_are_timed_at_one_batch_size_and_judged_on_other_images():
    network = small("smallcnn", exits="rdi")
    sure, draw = np.array([[0.1] * 4 + [2.0] * 4, [0.1] * 8, [1.0] * 8]), np.random.default_rng(0)
    prediction = draw.integers(0, 2, (6, 3, 8))
    record = made(("clean", "single1", "single2", "main", "average", "max_average"), prediction, np.array([sure] * 6),
                  np.zeros(8), model=network.config, validation=(sure, np.ones((3, 8), bool)))
    early, plain = latency.shaped(record)
    asked = {"half": (0.5, 0.5), "the same": (0.5, 0.5), "nobody": (-INF, -INF)}
    found = tuning.routed(record, asked, early, plain, images(network, 8), 2, passes=5, warm_up=0)
    assert found["half"].share.tolist() == [0.5, 0.5, 0] and found["nobody"].share.tolist() == [0, 0, 1]
    assert found["half"].rows is found["the same"].rows is not found["nobody"].rows
    assert {row["suite"] for row in found["half"].rows} == {"batch 2"}
    assert found["half"].macs == pytest.approx(100 - (0.5 * 110 + 0.5 * 220) / 3)  # of 300, by `made`'s costs
    assert found["nobody"].macs == 0 and found["nobody"].clean.shape == (2, 8) and found["half"].worst.shape == (2, 4)


def test_parts_are_rated_by_their_multiplications():
    parts = ExitCosts(np.array([4.0, 10.0, 10.5]), np.array([2.0, 0.5, 0.1])).parts
    assert parts.tolist() == [[4, 6, 0.5], [2, 0.5, 0.1]]


def test_an_attack_on_the_tuned_gates_joins_the_others():
    """Image by image: right under the nine forms and under the one that follows the gates; refused for other gates."""
    record = tuning.of_paper_forms(released_record.shipped(Session(weights="shipped", seed=0)))
    found = Record.load(lib.ATLASES / "repeats" / "rdi_resnet38_released-gates.safetensors")
    assert np.array_equal(found.labels, record.labels[1::2])
    thresholds, survivors = found.views[0].thresholds_used, 0
    for n in range(len(found.labels)):
        views = [(record.entropy[v, :, 2 * n + 1], record.prediction[v, :, 2 * n + 1])
                 for v in range(len(record.views))]
        views.append((found.entropy[0, :, n], found.prediction[0, :, n]))
        left = [p[next((k for k, t in enumerate(thresholds) if e[k] < np.float32(t)), 6)] for e, p in views]
        survivors += all(p == found.labels[n] for p in left)
    met = released_record.gates(record, thresholds)
    assert len(met) == 508 and (met & tuning.judged(record, thresholds)[2][0]).sum() == survivors
    assert released_record.gates(record.select(images=slice(0, 100)), thresholds) is None
    for other, gates in ((record, (0.1,) * 6), (dataclasses.replace(record, meta=record.meta | {"checkpoint": "x"}),
                                                thresholds)):
        with pytest.raises(WorkbookError, match="other weights"):
            released_record.gates(other, gates)
