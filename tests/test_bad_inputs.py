"""What a user gets for a bad input: one clear sentence. The first table of tests/bad_inputs.md is made of these cases:

    python tests/test_bad_inputs.py        writes it anew; a test holds that it is current

The tables below it are written by hand: faults that are no bad input, and the test of each.
"""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import lib
import lib.__main__ as front_door
from lib import WorkbookError, checkpoints, commands, data, locks
from lib.attacks import autoattack, forms
from lib.attacks.decision import Decision
from lib.attacks.steps import Threat
from lib.evaluation import choosing, latency, recording, risk, routing, surviving
from lib.evaluation.record import Record, View
from lib.models import exits, zoo
from lib.models.layers import Chain
from lib.models.network import check_backbone
from lib.models.parts import Backbone, Tap
from lib.operating_point import OperatingPoint
from lib.randomness import generator
from lib.training import loop, recipes
from lib.workbook import notebooks, page, parameters, released_record, runs
from lib.workbook.session import Session

TABLE = Path(__file__).with_name("bad_inputs.md")
BY_HAND = "\n# Faults that are no bad input"
SHIPPED = lib.ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors"
CASES: dict[str, object] = {}


def case(what: str):
    def add(function):
        CASES[what] = function
        return function

    return add


def command(what: str, line: str):
    """A command line; `{tmp}` is a scratch folder."""
    CASES[f"`{line}` ({what})"] = lambda tmp: run(line.format(tmp=tmp).split())


def run(argv: list[str]):
    """The front door in this process; what it says on stderr becomes the sentence."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = front_door.main(argv)
        except SystemExit as stop:  # argparse
            code = stop.code
    assert code == 2, (argv, code, said.getvalue())
    raise WorkbookError(re.sub(r".*error: ", "", said.getvalue().strip().splitlines()[-1]))


def network(**options):
    return zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.1, **options).eval()


def saved(tmp) -> Path:
    path = Path(tmp) / "network.safetensors"
    checkpoints.save(path, network())
    return path


command("unknown verb", "explore")
command("unknown model", "cost resnet83")
command("exits that a model lacks", "cost resnet34 --exits rdi")
command("a width that is none", "cost resnet34 --widths 0.5,2")
command("unknown recipe", "train rdi_smalcnn-mnist-main-laptop")
command("a recipe that no network can be trained by", "train smallcnn-mnist-float-laptop")
command("unknown conditioning", "cost resnet20 --conditioning flaot")
command("unknown method", "train --network resnet20 --dataset digits --method flaot")
command("unknown network", "train --network resnet21 --dataset digits --method float")
command("a module that is not there", "train --network nowhere:mine --dataset digits --method main")
command("half a recipe", "train --network resnet20 --dataset digits")
command("unknown notebook", "run --only 99")
command("unknown parameter", "run --only 11 -p epsilom 0.1")
command("mistyped parameter", "run --only 11 -p images many")
command("no GPU", "train rdi_smallcnn-digits-main-quick --device cuda:7")
command("no time", "train rdi_smallcnn-digits-main-quick --minutes 0 --folder {tmp}/t")
command("a missing file", "evaluate {tmp}/nothing.safetensors --dataset digits")
command("a number that is none", "evaluate x.safetensors --dataset digits --epsilon 8/0")
command("an empty range", "evaluate x.safetensors --dataset digits --images 500:400")
command("unknown measurement", "bench --only warp_drive")
command("no MACs", "choose x.safetensors --max-macs 0")
command("a share above 1", "choose x.safetensors --min-robust 35")
command("a missing record", "choose {tmp}/nothing.safetensors --max-macs 30e6")
command("no notebook", "lab 99")
command("a port that is none", "lab --port 99999")
command("a device", "cost smallcnn --json /dev/null")
command("a device that never ends", "evaluate /dev/zero --dataset digits")
command("a seed below 0", "train rdi_smallcnn-digits-main-quick --seed -1")
command("no patience", "run --only 11 --patience 0")
command("a parameter given twice", "run --only 11 -p images 5 -p images 7")


@case("evaluate: an output that is the checkpoint itself")
def _(tmp):
    path = str(saved(tmp))
    run(["evaluate", path, "--dataset", "digits", "--save-record", path])


@case("a notebook whose run folder cannot be made")
def _(tmp):
    text = dict(preset="quick", weights="shipped", run_dir=f"{saved(tmp)}/x")
    parameters.resolve(text | {"seed": 0, "__annotations__": dict.fromkeys(text, str) | {"seed": int}}, "00_start_here")


@case("evaluate: unknown dataset")
def _(tmp):
    run(["evaluate", str(saved(tmp)), "--dataset", "minst"])


@case("evaluate: images outside the test set")
def _(tmp):
    run(["evaluate", str(saved(tmp)), "--dataset", "digits", "--images", "900:1200"])


@case("evaluate: a flag that changes nothing")
def _(tmp):
    run(["evaluate", str(saved(tmp)), "--dataset", "digits", "--attack", "clean", "--epsilon", "0.3"])


@case("evaluate: unknown attack form")
def _(tmp):
    run(["evaluate", str(saved(tmp)), "--dataset", "digits", "--attack", "clean,maxaverage"])


@case("evaluate: too few thresholds")
def _(tmp):
    run(["evaluate", str(saved(tmp)), "--dataset", "digits", "--thresholds", "0.5", "--images", "0:4"])


@case("evaluate: a dataset of another shape")
def _(tmp):
    path = Path(tmp) / "colour.safetensors"
    checkpoints.save(path, zoo.build("resnet20", width_multiplier=0.25))
    run(["evaluate", str(path), "--dataset", "mnist"])


@case("a checkpoint cut short")
def _(tmp):
    path = saved(tmp)
    path.write_bytes(path.read_bytes()[:-100])
    checkpoints.load(path)


@case("a checkpoint with a flipped bit")
def _(tmp):
    path = saved(tmp)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)
    checkpoints.load(path)


@case("a safetensors file of another program")
def _(tmp):
    save_file({"w": torch.zeros(2)}, Path(tmp) / "foreign.safetensors")
    checkpoints.load(Path(tmp) / "foreign.safetensors")


@case("a pickled checkpoint")
def _(tmp):
    torch.save({"w": torch.zeros(2)}, Path(tmp) / "old.pth")
    checkpoints.load(Path(tmp) / "old.pth")


@case("a record where a network is expected")
def _(tmp):
    checkpoints.save_state(Path(tmp) / "state.safetensors", {"w": torch.zeros(2)}, {})
    checkpoints.load(Path(tmp) / "state.safetensors")


@case("choose: a network that no record came with")
def _(tmp):
    commands.recorded(str(saved(tmp)))


@case("choose: a record without attacks")
def _(tmp):
    choosing.choose(Record.load(SHIPPED).select(forms=("clean",)))


@case("page: a record that makes too large a page")
def _(tmp):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "LARGEST", 2**16)
        page.write(Record.load(SHIPPED), Path(tmp) / "page.html")


@case("a dataset that is not there, without network")
def _(tmp):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lib, "DATASETS", Path(tmp) / "data" / "datasets")
        data.load("svhn", download=False)


@case("an image folder that is not there")
def _(tmp):
    data.load(Path(tmp) / "pictures")


@case("lambda_n below its range")
def _(tmp):
    OperatingPoint.from_lambda(-0.1)


@case("lambda_th outside its range")
def _(tmp):
    OperatingPoint.from_lambda(0.5, 1.0)


@case("a knob that the network lacks")
def _(tmp):
    network()(torch.zeros(1, 1, 28, 28), OperatingPoint(noise=0.5))


@case("a width that was not trained")
def _(tmp):
    zoo.build("resnet20", widths=(0.5, 1.0), width_multiplier=0.25).conditions(OperatingPoint(width=0.75))


@case("a lambda that OAT has no code for")
def _(tmp):
    zoo.build("resnet20", conditioning="oat", width_multiplier=0.25).conditions(OperatingPoint(code=0.5))


@case("thresholds of the wrong length")
def _(tmp):
    exits.route(network(), torch.zeros(1, 1, 28, 28), OperatingPoint(thresholds=(0.1,)))


@case("images of the wrong shape")
def _(tmp):
    network()(torch.zeros(1, 3, 28, 28))


@case("images in 0 ... 255")
def _(tmp):
    forms.craft("main", network(), torch.full((1, 1, 28, 28), 255.0), torch.zeros(1, dtype=torch.int64),
                Threat(0.1, 0.01, 1), generator=generator(0))


@case("an epsilon above 1")
def _(tmp):
    Threat(8, 2, 10)


@case("fresh noise without a generator")
def _(tmp):
    zoo.build("resnet20", conditioning="float", width_multiplier=0.25)(torch.zeros(1, 3, 32, 32),
                                                                       OperatingPoint(noise=1.0))


@case("a risk that is none")
def _(tmp):
    risk.stated("risk 1 %")


@case("a risk that so few held-out images cannot show")
def _(tmp):
    risk.at_most(0.01, np.zeros((3, 200), np.float32), np.ones((3, 200), bool))


@case("no held-out images to calibrate on")
def _(tmp):
    routing.calibrate(np.zeros((3, 1)))


@case("an attack without budget")
def _(tmp):
    recording.suite(network())


@case("a training folder that holds another recipe")
def _(tmp):
    recipe = recipes.find("rdi_smallcnn-digits-standard-quick")
    loop.fit(replace(recipe, iterations=1), tmp)
    loop.fit(recipe, tmp)


@case("a recipe with an unknown objective")
def _(tmp):
    replace(recipes.find("resnet20-digits-float-quick"), objective="flaot")


@case("a changed recipe under the name of the unchanged one")
def _(tmp):
    shipped(tmp).train(replace(recipes.find("resnet20-digits-float-quick"), iterations=7))


@case("a network whose exits are out of order")
def _(tmp):
    check_backbone(Backbone([Chain(), Chain()], [Tap(1, Chain()), Tap(0, Chain())]), "mine")


@case("a network of plain torch layers")
def _(tmp):
    check_backbone(Backbone([torch.nn.Conv2d(3, 8, 3)], [Tap(0, Chain())]), "mine")


@case("a network that cannot be told how to run")
def _(tmp):
    zoo.register("mine", lambda parts, classes: None)


@case("one class")
def _(tmp):
    zoo.build("resnet20", classes=1)


@case("preset paper on a CPU")
def _(tmp):
    parameters.refuse_paper_on_cpu("paper", "train", "cpu")


# Given but not used; attacks that could not.

def shipped(tmp, **named) -> Session:
    usual = dict(preset="laptop", weights="shipped", seed=0, run_dir=Path(tmp), device="cpu", file="", images=500)
    return Session(**usual | named, named=frozenset(named))


@case("notebook 17: a named file that is not there")
def _(tmp):
    released_record.load_or_attack(shipped(tmp, file="mine.pth.tar"))


@case("a seed that no shipped record has")
def _(tmp):
    released_record.load_or_attack(shipped(tmp, seed=7))


@case("more images than a shipped record has")
def _(tmp):
    released_record.load_or_attack(shipped(tmp, images=5000))


@case("shipped trainings of a seed that did not come along")
def _(tmp):
    shipped(tmp, seed=7).trainings(lambda seed: [Path(__file__) if seed < 3 else Path(tmp, "none")])


@case("a number of images below 0")
def _(tmp):
    parameters.coerce("images", -5, int)


@case("AutoAttack on an exit, with thresholds")
def _(tmp):
    Decision(network(), OperatingPoint(thresholds=(0.1, 0.1)), 2)


@case("AutoAttack on exits without thresholds")
def _(tmp):
    Decision(network(), OperatingPoint(exits=(2,)))


@case("AutoAttack on the mean over draws of a network without noise")
def _(tmp):
    Decision(network(), draws=5)


@case("the strong suite for the record of other weights")
def _(tmp):
    record = Record.load(lib.ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors")
    surviving.add(record, network(), data.load("digits", shape=(1, 28, 28)).test[:4], Threat(0.1, 0.05, 2), [])


@case("a slowdown attack on gates that are not said")
def _(tmp):
    forms.craft("slow_keep", network(), torch.rand(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64),
                Threat(0.1, 0.05, 2), generator=generator(0, "x"))


@case("a run whose name has 300 letters")
def _(tmp):
    runs.checked_name("x" * 300)


@case("a run under the name of one with other settings")
def _(tmp):
    for seed in (0, 1):
        runs.note_request(Path(tmp) / "mine", dict(preset="quick", weights="train", seed=seed), None)


@case("a run whose folder another process holds")
def _(tmp):
    usual, runs.RUNS = runs.RUNS, Path(tmp)
    try:
        with locks.held(Path(tmp) / "mine" / ".lock"):
            run("run --only 00 --name mine".split())
    finally:
        runs.RUNS = usual


@case("a notebook cut short")
def _(tmp):
    (path := Path(tmp) / "11_x.ipynb").write_bytes(b'{"cells": [')
    notebooks.declared(path)


PIXELS, LABELS = torch.rand(4, 1, 28, 28, generator=generator(0)), torch.arange(4)


def attack(model=None, images=PIXELS, labels=LABELS):
    forms.craft("main", model or network(), images, labels, Threat(0.1, 0.05, 1), generator=generator(0))


def auto(model=None, epsilon=0.1):
    autoattack.run(model or network(), PIXELS, LABELS % 2, epsilon)


def folder(tmp, *files: str, pages=0):
    """An image folder of two classes, three images each, and these images more; read."""
    given = [f"{part}/{name}/{n}.png" for part in ("train", "test") for name in ("cat", "dog") for n in range(3)]
    for name in (*given, *files):
        (Path(tmp) / name).parent.mkdir(parents=True, exist_ok=True)
        more = [Image.new("L", (8, 8))] * pages
        Image.new("L", (8, 8)).save(Path(tmp) / name, **({"save_all": True, "append_images": more} if pages else {}))
    data.load(tmp)


def deeper(tmp):
    folder(tmp / "x")
    for part in ("train", "test"):
        (tmp / part).mkdir()
        (tmp / "x" / part).rename(tmp / part / "images")
    data.load(tmp)


def loaded(tmp, **config):
    """A checkpoint whose description asks for more than its tensors hold, or whose weights are not finite."""
    net = network()
    if config:
        net.config.update(config)
    else:
        net.heads[0][-1].bias.data.fill_(torch.nan)
    checkpoints.save(Path(tmp) / "x", net)
    checkpoints.load(Path(tmp) / "x")


def pickled(tmp):
    state = {"fc.weight": torch.zeros(10, 64)}
    torch.save({"net": state, "ema": state}, Path(tmp) / "two.ckpt")
    checkpoints.load(Path(tmp) / "two.ckpt")


def kept(tmp):
    split = data.load("digits", shape=(1, 28, 28)).test[:2]
    for seed in (0, 1):
        recording.record(network(seed=seed), split, [View()], folder=tmp)


def hollow(path):
    checkpoints.write(path, "record", {"labels": torch.arange(3)}, {"about": {"views": [], "meta": {}}})
    Record.load(path)


CASES |= {
    "attack: a DataParallel": lambda tmp: attack(torch.nn.DataParallel(network())),
    "attack: numpy images": lambda tmp: attack(images=PIXELS.numpy()),
    "attack: float64 images": lambda tmp: attack(images=PIXELS.double()),
    "attack: normalised images": lambda tmp: attack(images=(PIXELS - 0.5) / 0.5),
    "attack: labels that are a list": lambda tmp: attack(labels=[0, 1, 2, 3]),
    "attack: labels of other classes": lambda tmp: attack(labels=LABELS + 7),
    "AutoAttack: epsilon 8": lambda tmp: auto(epsilon=8),
    "AutoAttack: two classes": lambda tmp: auto(network(classes=2)),
    "network: images in bytes": lambda tmp: network()(PIXELS.mul(255).byte()),
    "network: images in 0 ... 255": lambda tmp: network()(PIXELS * 255),
    "latency: batches of -1": lambda tmp: latency.measure(network(), PIXELS, (0.5, 0.5), batch_sizes=[-1]),
    "a split of floats": lambda tmp: data.Split(PIXELS, LABELS),
    "a split: images below 0": lambda tmp: data.load("digits").test[:-5],
    "a recording kept of another network": kept,
    "classes of which the network knows some": lambda tmp: data.match(
        data.load("digits").test[:2], ("one", "two", "cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant"), 10),
    "a sealed record that lacks what it should hold": lambda tmp: hollow(Path(tmp) / "x"),
    "a checkpoint of weights that are not finite": loaded,
    "a checkpoint that describes a huge network": lambda tmp: loaded(tmp, width_multiplier=1e6),
    "a pickle of two networks": pickled,
    "images: one in no class folder": lambda tmp: folder(tmp, "train/loose.png"),
    "images: class folders one level deeper": lambda tmp: deeper(Path(tmp)),
    "images: several in one file": lambda tmp: folder(tmp, "train/cat/9.tif", pages=2),
}


def sentence(function, tmp) -> str:
    """What the user reads, without the scratch folder's name."""
    with pytest.raises(WorkbookError) as caught:
        function(str(tmp))
    said = str(caught.value).replace(str(tmp), "…")
    return re.sub(r"(?<![\w:/])/[^\s)]*?(?=/data/)", "…", said)


def table(tmp_of) -> str:
    lines = ["# Bad inputs, and the sentence the user gets", "", "Made by `python tests/test_bad_inputs.py`.", "",
             "| bad input | sentence |", "|---|---|"]
    for what, function in CASES.items():
        shown = sentence(function, tmp_of()).replace("|", "\\|")
        lines.append(f"| {what.replace('{tmp}', '…').replace('|', chr(92) + '|')} | {shown} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("what", CASES)
def test_a_bad_input_gets_one_sentence_that_says_what_to_do(what, tmp_path):
    said = sentence(CASES[what], tmp_path)
    assert "\n" not in said and "Traceback" not in said and 20 < len(said) < 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="the table was made where there is no GPU")
def test_the_table_is_current(tmp_path_factory):
    assert TABLE.read_text().partition(BY_HAND)[0] == table(lambda: tmp_path_factory.mktemp("bad"))


def test_every_fault_names_a_test_that_is_there():
    tests = {f"{path.name}::{name}" for path in TABLE.parent.rglob("test_*.py")
             for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)}
    lines = [line.split(" | ") for line in TABLE.read_text("utf-8").partition(BY_HAND)[2].splitlines() if "::" in line]
    assert len(lines) > 80 and all(len(cells) == 3 for cells in lines)
    assert {cells[-1].removesuffix(" |") for cells in lines} <= tests


if __name__ == "__main__":
    import tempfile

    TABLE.write_text(table(lambda: Path(tempfile.mkdtemp())) + "".join(TABLE.read_text().partition(BY_HAND)[1:]))
