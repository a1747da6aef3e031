"""What comes with the repository: stored small, and every number computed from what is stored."""

import shutil

import numpy as np
import pytest
import torch

import lib
from lib import checkpoints, data
from lib.attacks.steps import Threat
from lib.evaluation import recording
from lib.evaluation.record import Record
from lib.models import zoo
from lib.operating_point import OperatingPoint
from lib.training import recipes
from lib.workbook import session, shipping
from lib.workbook.once_for_all import Trained
from tests.helpers.networks import small


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "audit", lambda *args, **how: {})  # which takes minutes
    for name in ("CHECKPOINTS", "ATLASES"):
        monkeypatch.setattr(shipping, name, tmp_path / name.lower())
    return tmp_path


def test_a_network_is_stored_in_half_precision_and_recorded_from_that_file(elsewhere):
    name = "rdi_smallcnn-digits-max_average-laptop"
    (elsewhere / "run").mkdir()
    shutil.copy(lib.CHECKPOINTS / f"{name}.safetensors", elsewhere / "run" / "last.safetensors")
    found = Record.load(shipping.ship(name, 8, elsewhere / "run"))
    stored = checkpoints.load(elsewhere / "checkpoints" / f"{name}.safetensors")
    assert found.meta["checkpoint"] == stored.digest and found.prediction.shape == (len(found.views), 3, 8)
    assert found.held().correct.shape == (3, 200) and found.meta["audit"] == {"{}": {}}
    assert found.views[1].threat == session.customary(data.load("digits"))
    raw, _, _ = checkpoints.read(elsewhere / "checkpoints" / f"{name}.safetensors", "network")
    assert all(t.dtype == torch.float16 for t in raw.values() if t.is_floating_point())
    with torch.no_grad():
        again = stored.network.eval()(data.load("digits", shape=(1, 28, 28)).test.floats(slice(0, 8))[0])
    assert np.array_equal(again.argmax(-1).numpy(), found.prediction[0])


def test_a_once_for_all_network_is_recorded_at_its_points(elsewhere):
    name = "resnet20-digits-pgd_at1-laptop"
    (elsewhere / "run").mkdir()
    shutil.copy(lib.CHECKPOINTS / f"{name}.safetensors", elsewhere / "run" / "last.safetensors")
    path = shipping.ship(name, 4, folder=elsewhere / "run")
    assert path.name == f"{name}.safetensors" and Record.load(path).meta["data_variant"] == "embedded"
    apart = Record.load(shipping.ATLASES / "repeats" / f"{name}-pgd7.safetensors")
    assert {view.threat.steps for view in apart.views if view.attacked} == {7} and apart.logits is None


def test_every_knob_is_recorded_under_attacks_on_calibrated_gates(elsewhere, monkeypatch):
    monkeypatch.setattr(shipping, "customary", lambda dataset: Threat(0.1, 0.1, 1))
    name = "cheap_resnet38-digits-float_slim-quick"
    checkpoints.save(elsewhere / "last.safetensors", zoo.build(**recipes.find(name).network, seed=0))
    found = Record.load(shipping.ship(name, 4, folder=elsewhere))
    forms = {view.form for view in found.views}
    assert forms == {"clean", "main", "average", "gate_aware"} and found.num_exits == 7 and found.images == 4
    assert {point.width for point in found.points} == {1.0, 0.5}
    for view in found.views:
        if view.form == "gate_aware":
            assert view.exact_at(found.thresholds_of("calibrated", view.point))
    kept = Record.load(shipping.ATLASES / "repeats" / f"{name}-logits.safetensors")
    assert kept.points == (OperatingPoint(noise=1.0, batch_norm=1.0, width=1.0),) and len(kept.views) == 4
    assert kept.logits.shape == (4, 7, 4, 10) and kept.held_out.logits.shape[1:] == (7, kept.held_out.images, 10)


@pytest.mark.parametrize("path", sorted(lib.ATLASES.rglob("*.safetensors")), ids=lambda path: path.stem)
def test_shipped_records_say_how_they_were_attacked_and_what_they_lack(path):
    found = Record.load(path)
    assert found.meta["attacked_on"].startswith(("the network itself", "its folded copy"))
    assert (found.logits is None) == ("logits" in found.meta.get("missing", ""))
    assert all(view.draws >= 1 for view in found.views) and found.right.max() <= max(v.draws for v in found.views)
    assert (found.prediction is None) == ("answers" in found.meta.get("missing", ""))
    if found.prediction is not None:
        first = (found.prediction == found.labels).astype(np.uint8)
        alone = np.array([view.draws == 1 for view in found.views])
        assert np.array_equal(found.right[alone], first[alone])


def test_the_other_test_images_are_held_out_of_the_released_record(elsewhere, monkeypatch):
    """Images that the record attacked must not choose; the copy stands in with digits here."""
    images = data.load("digits", shape=(3, 16, 16))
    monkeypatch.setattr(shipping.data, "load", lambda path: images)
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    record = Record.load(lib.ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors")
    record = record.select(images=slice(0, 450))
    found = shipping.with_held_out(record, network)
    assert found.held().correct.shape == (7, 50)
    assert found.meta["held_out_variant"] == "JPEG copy, test images 451 to 500"
    with torch.no_grad():
        said = network(images.test.floats(slice(450, 500))[0]).argmax(-1)
    assert np.array_equal(found.held().correct, (said == images.test.labels[450:]).numpy())


def test_records_that_a_page_made_become_what_it_asks_for_by_name(elsewhere, tmp_path):
    source = lib.ATLASES / "resnet20-digits-oat-laptop.safetensors"
    made = tmp_path / "records" / "resnet20-digits-oat-laptop-attackers-500-0a1b2c3d.safetensors"
    made.parent.mkdir()
    shutil.copy(source, made)
    (path,) = shipping.ship_made("attackers", tmp_path / "24_stronger_attacks")
    assert path.name == Trained.load(lib.CHECKPOINTS / source.name).shipped_record("attackers").name
    kept, whole = Record.load(path), Record.load(source)
    assert np.array_equal(kept.right, whole.right) and kept.prediction is None and kept.logits is None
