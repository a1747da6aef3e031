"""What a user adds, as README's "Add your own" says: each at one place, in at most 40 lines, and then it has all verbs.

Conditionings of one's own are in test_conditioning.py.
"""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lib
from lib import ROOT, WorkbookError, checkpoints, data
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models import conditioning, zoo
from lib.models.layers import Chain
from lib.models.parts import Backbone, Tap
from lib.training import loop, methods, recipes
from tests.helpers.linear_oracle import linear_network
from tests.test_commands import run, written

README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = README[README.index("## Add your own"):]
BLOCKS = re.findall(r"```python\n(.*?)```", OWN[:OWN.index("\n## ", 3)], re.DOTALL)


def block(word: str) -> str:
    """README's one example that holds `word`."""
    (found,) = [text for text in BLOCKS if word in text]
    assert len(found.splitlines()) <= 40
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user's folder: README's network in mine.py, and images of three colours in photos/."""
    (tmp_path / "mine.py").write_text(block("zoo.register"))
    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 5)):
        for label, name in enumerate(("red", "green", "blue")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 60, (12, 16, 3), dtype=np.uint8)
                image[..., label] += 150
                Image.fromarray(image).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(zoo, "BACKBONES", dict(zoo.BACKBONES))
    yield tmp_path
    sys.modules.pop("mine", None)


def fresh(command: str) -> subprocess.CompletedProcess:
    """The command in a process that knows nothing of this one."""
    return subprocess.run([sys.executable, "-m", "lib", *command.split()], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})


@pytest.mark.slow
def test_a_network_and_images_of_your_own_from_a_file_and_a_folder_to_numbers(place):
    run(f"train --network mine:mine --dataset photos --method pgd_at1 --preset quick --folder {place / 'run'} "
        f"--device cpu --json {place / 'train.json'}")
    told = written(place / "train.json")
    assert told["finished"] and told["recipe"] == "mine-photos-pgd_at1-quick"
    loaded = checkpoints.load(told["path"])
    assert loaded.network.config["name"] == "mine:mine" and loaded.network.class_names == ("blue", "green", "red")
    later = fresh(f"evaluate {told['path']} --dataset photos --attack clean,main --steps 2 --device cpu --json x.json")
    assert later.returncode == 0, later.stderr
    assert json.loads((place / "x.json").read_text())["forms"]["clean"]["correct"] >= 12  # of 15; chance is 5
    (place / "mine.py").unlink()
    gone = fresh(f"evaluate {told['path']} --dataset photos")
    assert gone.returncode == 2 and gone.stderr.startswith(f"error: {told['path']}: there is no module mine, which")


def test_it_composes_with_every_method_exits_and_named_dataset(place):
    for method in ("float", "oats_heads", "pni", "pgd_at1", "standard", "main"):
        recipe = recipes.compose("mine:mine", place / "photos", method, "quick")
        assert recipe.name == f"mine-photos-{method}-quick" and recipe.batch_size == 32
        assert recipe.network["input_shape"] == [3, 12, 16] and recipe.network["classes"] == 3
        assert recipes.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))).digest() == recipe.digest()
    early = recipes.compose("mine:rdi_mine", "svhn", "float_slim", "laptop")
    assert early.network["exits"] == "rdi" and early.form == "average" and zoo.build(**early.network).num_exits == 2
    assert recipes.find("rdi_mine-cifar10-max_average-laptop").attack_form == "max_average"
    assert recipes.find("mine-tiny_imagenet-oat-paper").network["classes"] == 200


@pytest.mark.parametrize("parts, sentence", [
    (("nine:mine", "digits", "main"), "there is no module nine, which"),
    (("mine:nine", "digits", "main"), "unknown network 'mine:nine'"),
    (("resnet21", "digits", "main"), r"unknown network 'resnet21' \(did you mean resnet2"),
    (("mine:mine", "fotos", "main"), "no dataset 'fotos'"),
    (("mine:mine", "photos", "flaot"), r"unknown method 'flaot' \(did you mean float\?\)"),
    (("mine:mine", "digits", "max_average"), "unknown attack form"),
    (("resnet20", "digits", "single2"), "unknown attack form"), (("rdi_resnet20", "digits", "main"), "side exits"),
    (("smallcnn", "digits", "float"), "no batch norm"),
])
def test_what_does_not_compose_is_one_sentence(place, parts, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        recipes.compose(*parts, "quick")


def test_a_recipe_checks_what_it_names():
    recipe = recipes.find("resnet20-digits-float-quick").to_json()
    for change, sentence in ((dict(objective="flaot"), r"unknown objective 'flaot' \(did you mean float\?\)"),
                             (dict(schedule="cosinus"), r"unknown schedule 'cosinus' \(did you mean cosine\?\)"),
                             (dict(network={"name": "resnet20", "conditioning": "ota"}), "unknown conditioning 'ota'")):
        with pytest.raises(WorkbookError, match=sentence):
            recipes.Recipe.from_json(recipe | change)


def backbone(stages, taps):
    return lambda parts, *, exits, classes, input_shape, depth: Backbone(stages, [
        Tap(stage, Chain(parts.classifier(3, classes))) for stage in taps])


@pytest.mark.parametrize("make, sentence", [
    (backbone([Chain(), Chain()], [1, 0]), r"tap stages \[1, 0\] of 2"), (backbone([Chain()], []), r"tap stages \[\]"),
    (backbone([Chain()], [1]), r"tap stages \[1\] of 1"), (backbone([Chain(), Chain()], [0]), r"tap stages \[0\] of 2"),
    (backbone([nn.Conv2d(3, 3, 1)], [0]), "holds a Conv2d that takes no second argument"),
    (backbone([Chain(Chain(nn.ReLU()))], [0]), "holds a ReLU that takes no second argument"),
    (lambda parts, exits: None, "has to be a function"),
])
def test_a_backbone_that_cannot_work_is_one_sentence(make, sentence, monkeypatch):
    monkeypatch.setattr(zoo, "BACKBONES", dict(zoo.BACKBONES))
    with pytest.raises(WorkbookError, match=sentence):
        zoo.register("strange", make)
        zoo.build("strange")


def test_one_class_is_too_few(place):
    for name in ("green", "blue"):
        (place / "photos" / "train" / name).rename(place / f"train_{name}")
        (place / "photos" / "test" / name).rename(place / f"test_{name}")
    with pytest.raises(WorkbookError, match="cannot tell 1 class apart"):
        recipes.compose("mine:mine", "photos", "main", "quick")


def test_a_folder_with_fewer_images_than_a_batch_trains_whole(place):
    for path in sorted((place / "photos" / "train").rglob("*.png")):
        if int(path.stem) > 3:
            path.unlink()
    recipe = recipes.compose("mine:mine", "photos", "main", "quick")
    assert recipe.batch_size == len(data.load("photos").train) == 11


def test_a_conditioning_of_your_own_as_in_the_readme(monkeypatch):
    monkeypatch.setitem(conditioning.CONDITIONINGS, "noise_only", None)  # put back as they were, whatever is added
    monkeypatch.setitem(methods.METHODS, "noise_only", None)
    exec(block("CONDITIONINGS"), {})
    recipe = recipes.compose("resnet20", "digits", "noise_only", "quick")
    assert zoo.build(**recipe.network).knobs == {"noise", "draw"}
    assert torch.isfinite(zoo.build(**recipe.network).eval()(torch.rand(1, *recipe.network["input_shape"]))).all()


def test_a_dataset_of_your_own_as_in_the_readme(place, monkeypatch):
    monkeypatch.setattr(lib, "DATASETS", place / "datasets")
    monkeypatch.setitem(data.official.SOURCES, "shapes", None)
    exec(block("SOURCES"), {})
    with pytest.raises(WorkbookError, match=r"shapes is not in .*: put shapes.npz into "):
        data.load("shapes")
    folder = place / "datasets" / "shapes"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    np.savez(folder / "shapes.npz", **{f"{part}_{what}": array for part in ("train", "test") for what, array in (
        ("images", random.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)), ("labels", np.arange(40) % 2))})
    assert data.load("shapes").classes == ("disc", "square")
    recipe = dataclasses.replace(recipes.compose("mine:mine", "shapes", "pgd_at1", "quick"), iterations=2, batch_size=8)
    assert loop.fit(recipe, place / "run").finished


def test_an_attack_form_of_your_own_as_in_the_readme(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "surest", None)
    exec(block("FORMS"), {})
    weights = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]], [[0.0, 0, 0, 0], [0, 0, 0, 8]]])  # exits see pixels 0, 3
    network, images = linear_network(weights), torch.full((2, 1, 2, 2), 0.5)
    labels = torch.tensor([0, 1])  # the first image's surest exit is the first, the second's the last
    attacked = forms.craft("surest", network, images, labels, Threat(0.1, 0.1, 1, random_start=False),
                           generator=torch.Generator().manual_seed(0))
    moved = (attacked - images).flatten(1)
    torch.testing.assert_close(moved[:, [0, 3]], torch.tensor([[-0.1, 0.0], [0.0, -0.1]]))
    assert "surest" in forms.names(2) and "surest" not in forms.names(1)
    assert recipes.compose("rdi_smallcnn", "digits", "surest", "quick").attack_form == "surest"
