"""The strong suite in a record: made at the gates shown, kept there, and nothing else in the record touched."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import ATLASES, CHECKPOINTS, WorkbookError, checkpoints, data
from lib.attacks import strong
from lib.evaluation import rows, surviving
from lib.evaluation.reading import read
from lib.evaluation.record import ARRAYS, Record
from lib.models import zoo
from lib.models.exits import route
from lib.operating_point import OperatingPoint
from lib.workbook import shipping

torch.set_num_threads(1)
EXITS, KNOB = "rdi_smallcnn-digits-max_average-laptop", "resnet20-digits-float-laptop"
CLOSED = (-math.inf, -math.inf)


def load(name):
    network = checkpoints.load(CHECKPOINTS / f"{name}.safetensors").network
    return Record.load(ATLASES / f"{name}.safetensors"), network, data.load("digits", shape=network.input_shape).test


@pytest.fixture(autouse=True)
def few(monkeypatch):
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(strong, "names", lambda *_: ("gate_aware", "margin"))
    monkeypatch.setattr(strong, "STEPS", 5)


@pytest.fixture(scope="module")
def shipped():
    record, network, images = load(EXITS)
    return replace(record, strong=None), network, images


@pytest.fixture
def added(shipped):
    record, network, images = shipped
    threat = next(view.threat for view in record.views if view.attacked)
    return surviving.add(record, network, images[:20], threat, [(None, "calibrated"), (None, CLOSED)])


def test_it_is_kept_at_its_gates_and_the_rest_is_untouched(added, shipped, tmp_path):
    added.save(tmp_path / "r.safetensors")
    record, again = shipped[0], Record.load(tmp_path / "r.safetensors")
    assert all(np.array_equal(getattr(record, a), getattr(again, a)) for a in ARRAYS if a != "logits")
    assert again.views == record.views and again.meta == record.meta and record.strong is None
    meta = again.strong.meta
    assert meta["suite"] == strong.SUITE and meta["images"] == [0, 20] and again.strong.right.shape == (4, 1, 20)
    used = read(record, thresholds="calibrated").thresholds
    assert {v.thresholds_used for v in again.strong.views} == {used, CLOSED}
    assert all(v.crafted_at == v.evaluated_at == OperatingPoint() for v in again.strong.views)


@pytest.mark.parametrize("gates", ["calibrated", CLOSED])
def test_where_it_was_made_the_worst_case_holds_it_elsewhere_that_is_only_a_bound(gates, added, shipped):
    """The suite's images, crafted again and routed one by one by the network, are right where the reading says."""
    record, network, images = shipped
    found, elsewhere = read(added, thresholds=gates), read(added, thresholds=(0.3, 0.3))
    x, y = images[:20].floats()
    at, survived = OperatingPoint(thresholds=found.thresholds), torch.ones(20, dtype=torch.bool)
    for name, made, _ in strong.attacked(network, x, y, record.views[1].threat, point=at,
                                         crafted_on=surviving.folded(network, x[:4], OperatingPoint())):
        survived &= torch.cat([route(network, one[None], at)[0] for one in made]) == y
        assert np.array_equal(found.survived[name], survived.numpy())
    union = found.right("union")
    assert np.array_equal(found.right("strong"), union[:20] & survived.numpy()) and found.robust == "strong"
    assert union.shape == (500,) and 0 < survived.sum() < 20
    assert found.measured("strong").low is not None
    assert rows.of(found)[-1] | {"metric": "strong_accuracy", "images": 20, "suite": strong.SUITE} == rows.of(found)[-1]
    assert elsewhere.robust == "union" and elsewhere.survived == {}
    with pytest.raises(WorkbookError, match="not met by 'strong'"):
        elsewhere.right("strong")
    assert np.array_equal(elsewhere.right("union"), read(record, thresholds=(0.3, 0.3)).right("union"))


def test_parts_of_the_record_keep_what_they_hold_of_it(added):
    whole = read(added, thresholds="calibrated").right("strong")
    for cut in (slice(0, 8), slice(5, 100), slice(12, 16)):
        part = read(added.select(images=cut), thresholds="calibrated").right("strong")
        assert np.array_equal(part, whole[cut])
    assert read(added.select(images=slice(20, 30)), thresholds="calibrated").robust == "union"


def test_trainings_met_it_where_all_of_them_did(added, shipped):
    assert read([added, added], thresholds="calibrated").robust == "strong"
    assert read([added, added], thresholds="calibrated").right("strong").shape == (2, 20)
    assert read([added, shipped[0]], thresholds="calibrated").robust == "union"


def test_another_setting_joins_and_foreign_weights_images_and_counts_are_refused(added, shipped):
    record, network, images = shipped
    threat = next(view.threat for view in record.views if view.attacked)
    more = surviving.add(added, network, images[:20], threat, [(None, "paper"), (None, CLOSED)])
    assert len(more.strong.views) == 6 and read(more, thresholds="paper").robust == "strong"
    assert np.array_equal(read(more, thresholds="calibrated").right("strong"),
                          read(added, thresholds="calibrated").right("strong"))
    with pytest.raises(WorkbookError, match="on images .0, 20. already"):
        surviving.add(added, network, images[:10], threat, [(None, "paper")])
    other = zoo.build(**network.config).eval()
    bare = replace(record, prediction=None, entropy=None, logits=None, held_out=None,
                   meta={k: v for k, v in record.meta.items() if k != "weights"})
    for held, wrong, shown in ((record, network, images[1:21]), (record, other, images[:20]),
                               (bare, other, images[:20])):
        with pytest.raises(WorkbookError, match="does not answer as the record says"):
            surviving.add(held, wrong, shown, threat, [(None, CLOSED)])
    assert surviving.add(bare, network, images[:20], threat, [(None, CLOSED)]).strong.images == 20


@pytest.mark.parametrize("name, weights", [(KNOB, KNOB), (f"repeats/{KNOB}-seed0-suite", f"repeats/{KNOB}-seed0")])
def test_the_command_adds_it_to_a_shipped_record_at_both_ends_of_lambda(name, weights, tmp_path, monkeypatch, capsys):
    """With fresh noise: shares of draws, at noise 1 alone."""
    for place in ("CHECKPOINTS", "ATLASES"):
        monkeypatch.setattr(shipping, place, tmp_path / place.lower())
        (tmp_path / place.lower() / "repeats").mkdir(parents=True)
    record, file = tmp_path / f"atlases/{name}.safetensors", tmp_path / f"checkpoints/{weights}.safetensors"
    before = load(KNOB)[0]
    before.save(record)
    file.symlink_to(CHECKPOINTS / f"{KNOB}.safetensors")
    shipping.main([name, "--strong", "6", "--folder", str(tmp_path / "run")])
    after = Record.load(record)
    assert np.array_equal(after.right, before.right) and after.strong.images == 6
    assert {(v.point.noise, v.point.batch_norm, v.draws) for v in after.strong.views} == {
        (0.0, 0.0, 1), (1.0, 1.0, strong.DRAWS)}
    assert read(after, OperatingPoint(noise=1.0, batch_norm=1.0)).right("strong").shape == (6,)
    file.unlink()
    file.symlink_to(CHECKPOINTS / f"{EXITS}.safetensors")
    with pytest.raises(WorkbookError, match="was recorded from weights"):
        shipping.main([name, "--strong", "6"])


def test_what_the_record_holds_of_a_setting_is_gone_on_with(added, shipped, monkeypatch):
    """More attacks at one setting: the first ones are not made again, and their outcome is as if made in one go."""
    record, network, images = shipped
    threat, crafted = next(view.threat for view in record.views if view.attacked), []
    monkeypatch.setattr(strong, "names", lambda *_: ("gate_aware", "margin", "dlr"))
    whole = surviving.add(record, network, images[:20], threat, [(None, "calibrated")])
    craft = strong.craft
    monkeypatch.setattr(strong, "craft", lambda name, *rest: (crafted.append(name), craft(name, *rest))[1])
    more = surviving.add(added, network, images[:20], threat, [(None, "calibrated")])
    assert crafted == ["dlr"] and [v.form for v in more.strong.views][-3:] == ["gate_aware", "margin", "dlr"]
    at = read(more, thresholds="calibrated")
    assert all(np.array_equal(at.survived[n], read(whole, thresholds="calibrated").survived[n]) for n in at.survived)
    assert len(more.strong.views) == 5  # the other setting keeps its own
    surviving.add(added, network, images[:20], threat, [(None, "calibrated")], seed=1)
    assert crafted == ["dlr", "gate_aware", "margin", "dlr"]


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(added, shipped):
    record, network, images = shipped[0], copy.deepcopy(shipped[1]).cuda(), shipped[2][:20].to("cuda")
    threat = next(view.threat for view in record.views if view.attacked)
    there = surviving.add(record, network, images, threat, [(None, "calibrated"), (None, CLOSED)])
    assert (there.strong.right != added.strong.right).mean() <= 0.1
