"""Do network and images mean the same by a class number? Names decide; where they cannot, it is said or refused."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

import lib
import lib.__main__ as front_door
from lib import WorkbookError, checkpoints, data
from lib.data import CLASSES, Split
from lib.data.splits import natural
from lib.evaluation.record import View
from lib.evaluation.recording import record
from lib.models import zoo
from lib.models.mixture import mixture
from lib.models.view import AttackView
from lib.training import loop, recipes

DIGITS = lib.CHECKPOINTS / "rdi_smallcnn-digits-max_average-laptop.safetensors"
WORDS = "zero one two three four five six seven eight nine".split()
IMAGES = 40


def folder_of(path, names):
    """The first test images of digits as an image folder; names: what the folder of each digit is called."""
    split = data.load("digits").test[:IMAGES]
    for part in ("train", "test"):
        for name in names:
            (path / part / name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            Image.fromarray(image[0].numpy()).save(path / part / names[label] / f"{number}.png")
    return path


def evaluated(dataset, tmp_path, capsys):
    """(right of 40 clean images, what was printed, remarks)."""
    out = tmp_path / "out.json"
    line = f"evaluate {DIGITS} --dataset {dataset} --attack clean --images 0:{IMAGES} --json {out}"
    assert front_door.main(line.split()) in (0, None)
    told = json.loads(out.read_text())
    return told["forms"]["clean"]["correct"], capsys.readouterr().out, told["remarks"]


def test_folders_are_ordered_by_value():
    names = ["d10", "d9", "d1"]
    assert sorted(names, key=natural) == ["d1", "d9", "d10"]
    assert sorted(WORDS[::-1], key=natural) == WORDS and sorted(["Ten", "TWO"], key=natural) == ["TWO", "Ten"]


@pytest.mark.parametrize("names, remark", [
    ([str(d) for d in range(10)], None), (WORDS, None), ([word.upper() for word in WORDS], None),
    ([f"d{d + 1}" for d in range(10)], "classes d1, d2, … d10 taken in this order (the network's are 0, 1, … 9)"),
    ([f"{d:02}_" for d in range(10)], "taken in this order")])
def test_a_digits_network_reads_digits_under_any_spelling(names, remark, tmp_path, capsys):
    right, _, remarks = evaluated("digits", tmp_path, capsys)
    assert right > 0.9 * IMAGES and remarks == []
    found, printed, remarks = evaluated(folder_of(tmp_path / "mine", names), tmp_path, capsys)
    assert found == right and "trained on digits" in printed
    assert remarks[0] == "trained on digits" and len(remarks) == 1 + (remark is not None)
    if remark:
        assert remark in remarks[1] and remark in printed


def test_some_classes_of_another_set_are_refused_and_a_part_of_the_own_ones_is_read(tmp_path, capsys):
    names = [*WORDS[:9], "ten thousand"]
    with pytest.raises(WorkbookError, match="knows no class 'ten thousand'"):
        raise_of(f"evaluate {DIGITS} --dataset {folder_of(tmp_path / 'mixed', names)} --attack clean", capsys)
    whole = data.load(folder_of(tmp_path / "all", WORDS))
    few = whole.test.labels < 2
    part = Split(whole.test.images[few], whole.test.labels[few], ("one", "zero"))
    network = checkpoints.load(DIGITS).network
    found = record(network, dataclasses.replace(part, labels=1 - part.labels), [View()])
    assert found.labels.tolist() == part.labels.tolist() and found.meta["remark"] == "classes matched by name"
    assert found.meta["classes"] == list(CLASSES["digits"])


def raise_of(line, capsys):
    assert front_door.main(line.split()) == 2
    raise WorkbookError(capsys.readouterr().err)


def test_labels_follow_the_names():
    """CIFAR-10 under the names that many copies have, whose order is another."""
    theirs = ("bird", "car", "cat", "deer", "dog", "frog", "horse", "plane", "ship", "truck")
    pixels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
    matched, remark = data.match(Split(pixels, torch.arange(10), theirs), CLASSES["cifar10"], 10)
    assert matched.labels.tolist() == [2, 1, 3, 4, 5, 6, 7, 0, 8, 9] and remark == "classes matched by name"
    assert matched.classes == CLASSES["cifar10"]
    assert data.match(matched, CLASSES["cifar10"], 10) == (matched, "")
    unnamed = Split(pixels, torch.arange(10))
    assert data.match(unnamed, CLASSES["cifar10"], 10) == (unnamed, "")
    assert "does not name its own" in data.match(matched, None, 10)[1]
    with pytest.raises(WorkbookError, match="of 10 classes .* but the network knows 7"):
        data.match(matched, None, 7)
    signs = Split(pixels, torch.arange(10) % 2, ("a+", "a-"))  # names that differ in signs alone are not one class
    assert data.match(signs, ("a-", "a+"), 2)[0].labels.tolist() == [1, 0] * 5


def test_every_checkpoint_and_record_holds_its_classes(tmp_path):
    recipe = dataclasses.replace(recipes.find("rdi_smallcnn-digits-standard-quick"), iterations=1, batch_size=8)
    result = loop.fit(recipe, tmp_path / "t")
    loaded = checkpoints.load(result.path)
    assert loaded.metadata["classes"] == list("0123456789") and loaded.metadata["dataset"] == "digits"
    assert result.network.class_names == loaded.network.class_names == CLASSES["digits"]
    found = record(loaded.network, data.load("digits").test[:4], [View()])
    assert found.meta["classes"] == list(CLASSES["digits"]) and found.meta["remark"] == ""


def test_files_from_before_classes_were_stored_have_those_of_their_dataset(tmp_path):
    network = checkpoints.load(DIGITS).network
    assert network.class_names == CLASSES["digits"] == AttackView(network).class_names
    checkpoints.save(tmp_path / "x", zoo.build("resnet20", width_multiplier=0.25), dataset="pictures of mine")
    assert checkpoints.load(tmp_path / "x").network.class_names is None
    checkpoints.save(tmp_path / "x", zoo.build("resnet20", width_multiplier=0.25), classes=["cat", "dog"])
    with pytest.raises(WorkbookError, match="2 names for 10 classes"):
        checkpoints.load(tmp_path / "x")


def test_networks_of_other_classes_are_not_mixed():
    one, other = (zoo.build("resnet20", width_multiplier=0.25) for _ in range(2))
    one.class_names, other.class_names = CLASSES["cifar10"], CLASSES["stl10"]
    with pytest.raises(WorkbookError, match="number their classes differently"):
        mixture(one, other, 0.5)
    other.class_names = None
    assert mixture(one, other, 0.5).class_names == CLASSES["cifar10"]


def test_a_training_on_other_classes_than_the_network_has_is_refused(tmp_path):
    recipe = recipes.find("rdi_smallcnn-digits-standard-quick")
    with pytest.raises(WorkbookError, match="digits has 10 classes, but the network of .* has 7"):
        loop.fit(dataclasses.replace(recipe, network={**recipe.network, "classes": 7}), tmp_path)
