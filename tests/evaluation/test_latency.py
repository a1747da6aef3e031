"""Measured latency: the right things are timed, in the right number, and stated."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import WorkbookError, randomness
from lib.evaluation import latency, rows
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small

IMAGES = torch.rand(16, 1, 28, 28, generator=randomness.generator(0, "test"))


@pytest.fixture(scope="module")
def network():
    return zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.5).eval()


def test_every_way_and_batch_size_has_its_rows(network):
    found = latency.measure(network, IMAGES, (0.0, 9.0), batch_sizes=(1, 16), passes=7, warm_up=1, experiment="x")
    table = rows.frame(found)  # the fixed columns, nothing else
    assert set(table.suite) == {"batch 1", "batch 16"} and (table.experiment == "x").all()
    for size in (1, 16):
        part = table[table.suite == f"batch {size}"]
        assert sorted(part[part.metric == "latency_ms"].exit) == ["all", "plain", "routed"]
        assert sorted(part[part.metric == "speed_up"].exit) == ["all", "plain"]
        assert (part.images == 7 * size).all() and (part.value > 0).all()
        medians = part[part.metric == "latency_ms"]
        assert (medians.low <= medians.value).all() and (medians.value <= medians.high).all()
    assert (table.threads == torch.get_num_threads()).all() and (table.device == "cpu").all()


def test_leaving_early_is_faster_than_computing_everything():
    network = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28)).eval()
    found = latency.measure(network, IMAGES, (float("inf"), 0.0), batch_sizes=(16,), passes=9, warm_up=2)
    gain = {row["exit"]: row["value"] for row in found if row["metric"] == "speed_up"}
    assert gain["all"] > 2  # all leave at exit 1, a ninth of the work


def test_a_short_allowance_still_times_five_passes(network):
    found = latency.measure(network, IMAGES, (0.0, 0.0), batch_sizes=(4,), passes=200, warm_up=50, seconds=0.0)
    assert {row["images"] for row in found} == {5 * 4}


def test_a_plain_network_can_be_timed_too():
    plain = zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25).eval()
    found = latency.measure(plain, IMAGES, (), batch_sizes=(2,), passes=5, warm_up=0)
    assert len([row for row in found if row["metric"] == "latency_ms"]) == 3


@pytest.mark.parametrize("change, sentence", [
    (dict(batch_sizes=(1, 32)), "16 images do not fill a batch of 32"),
    (dict(thresholds=(0.1,)), "1 thresholds given"),
])
def test_what_does_not_fit_is_refused(network, change, sentence):
    settings = {"thresholds": (0.1, 0.1), "batch_sizes": (1,), **change}
    with pytest.raises(WorkbookError, match=sentence):
        latency.measure(network, IMAGES, **settings)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=50))
def test_the_median_lies_in_its_interval(values):
    low, median, high = latency.median_interval(np.array(values))
    assert min(values) <= low <= median <= high <= max(values) and median == np.median(values)


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        low, _, high = latency.median_interval(source.exponential(size=100))
        hits += low <= np.log(2) <= high
    assert 0.93 <= hits / 500 <= 0.99


def test_a_device_is_called_by_its_product_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"product {device}")
    assert latency.device_name(torch.device("cuda:0")) == "product cuda:0"
    assert latency.device_name(torch.device("cpu")) == "cpu"


def test_time_saved_follows_from_the_speed_up():
    measured = [{"metric": "speed_up", "exit": "plain", "suite": "batch 1", "value": 2.0, "low": 0.5, "high": 4.0},
                {"metric": "speed_up", "exit": "all", "suite": "batch 1", "value": 3.0, "low": 3.0, "high": 3.0}]
    assert latency.saved(measured) == {"batch 1": (50.0, -100.0, 75.0)}


def busy(*_):
    """0.05 s of this thread's time: waiting costs no CPU."""
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass


def test_a_network_that_takes_longer_is_measured_as_slower():
    quick, slow = (small("resnet20", conditioning="float", input_shape=(3, 8, 8)) for _ in range(2))
    slow.register_forward_pre_hook(busy)
    x = images(quick, 4)
    found = latency.side_by_side({"quick": (quick, None), "slow": (slow, OperatingPoint(noise=1.0))}, x,
                                batch_sizes=(1, 4), passes=5, warm_up=1)
    assert len(rows.frame(found)) == 2 * 2 * 2
    ratio = {(r["defence"], r["suite"]): r for r in found if r["metric"] == "time_ratio"}
    assert ratio["quick", "batch 1"]["value"] == 1 and ratio["slow", "batch 4"]["low"] > 1.2
    each = {(r["defence"], r["suite"]): r["value"] for r in found if r["metric"] == "latency_ms"}
    assert each["slow", "batch 1"] >= 50 and each["slow", "batch 4"] >= 12.5
    with pytest.raises(WorkbookError, match="do not fill"):
        latency.side_by_side({"quick": (quick, None)}, torch.zeros(1, 3, 8, 8), batch_sizes=(2,))
    with pytest.raises(WorkbookError, match="no knob"):
        latency.side_by_side({"quick": (quick, OperatingPoint(code=0.2))}, x, batch_sizes=(1,))
