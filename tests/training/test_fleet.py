"""The fleet: declared trainings that a killed or stopped run goes on with, to the same weights."""

import csv
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from lib import ROOT, WorkbookError, checkpoints
from lib.__main__ import main
from lib.attacks import forms
from lib.models import zoo
from lib.training import fleet, loop, recipes

NAMES = [("resnet20-digits-float-quick", 0), ("resnet20-digits-dual_bn-quick", 0), ("resnet20-digits-float-quick", 1)]
RUN = ("import sys; from pathlib import Path; from lib.training import fleet; "
       f"sys.exit(fleet.run(fleet.members({NAMES}, Path(sys.argv[1])), jobs=2, show_seconds=1e9))")


def driver(folder):
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def trainers(folder):
    """Processes that train below `folder`."""
    found = subprocess.run(["pgrep", "-f", f"lib train .*{folder}"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def test_every_comparison_is_complete_and_on_one_schedule():
    names = fleet.names()
    assert len(set(names)) == len(names)
    composed = {name: recipes.find(name) for name, _ in names}
    assert len({recipe.epochs for recipe in composed.values()}) == 1
    for name, seed in names:
        control = name.replace("-float_slim-", "-dual_bn_slim-").replace("-max_average-", "-main-")
        assert (control, seed) in names
        if "rdi_" in name:
            assert (f"{name.removeprefix('rdi_').split('-')[0]}-cifar10_jpeg-main-laptop", seed) in names


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in fleet.names()))
def test_every_member_is_validated_by_an_attack_that_its_network_has(name):
    recipe = recipes.find(name)
    assert (recipe.validation is None) == (recipe.threat is None)
    if recipe.validation is not None:
        with torch.device("meta"):
            assert forms.find(recipe.attack_form, zoo.build(**recipe.network, seed=None).num_exits)


def test_the_table_says_how_far_each_is(tmp_path):
    done, begun, waiting = fleet.members(NAMES, tmp_path)
    loop.fit(done.recipe, done.folder)
    loop.fit(begun.recipe, begun.folder, minutes=1e-6)
    lines = fleet.table([done, begun, waiting], [begun]).splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["done", "running", "waiting"]
    last = list(csv.DictReader((done.folder / "history.csv").open()))[-1]
    assert f"{float(last['validation_robust']):.1%}" in lines[0] and lines[2].split()[-1] == "-"


def test_what_is_done_is_not_done_again_and_a_failure_does_not_stop_the_others(tmp_path):
    fit, broken, other = fleet.members(NAMES, tmp_path)
    loop.fit(fit.recipe, fit.folder)
    before = fit.folder.stat().st_mtime_ns
    broken.folder.mkdir()
    (broken.folder / "recipe.json").write_text("{")
    with pytest.raises(WorkbookError, match="1 of the fleet failed.*log.txt"):
        fleet.run([fit, broken, other], show=lambda text: None)
    assert other.finished() and not broken.finished() and fit.folder.stat().st_mtime_ns == before
    assert "damaged" in (broken.folder / "log.txt").read_text()


@pytest.mark.slow
def test_killed_five_times_it_goes_on_to_the_same_weights(tmp_path):
    draw = random.Random(0)
    for _ in range(5):
        process = driver(tmp_path / "killed")
        time.sleep(draw.uniform(6, 12))
        process.kill()
        process.communicate()
        until = time.monotonic() + 60
        while (left := trainers(tmp_path / "killed")) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == []  # they died with it
    assert driver(tmp_path / "killed").wait() == 0
    for member, whole in zip(fleet.members(NAMES, tmp_path / "killed"), fleet.members(NAMES, tmp_path / "whole"),
                             strict=True):
        loop.fit(whole.recipe, whole.folder)
        digests = {checkpoints.load(m.folder / "last.safetensors").digest for m in (member, whole)}
        assert member.finished() and len(digests) == 1


@pytest.mark.slow
def test_sigterm_saves_every_member_and_says_so_in_the_exit_code(tmp_path):
    process = driver(tmp_path)
    while not list(tmp_path.glob("*/history.csv")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (signal.SIGTERM, 1) and trainers(tmp_path) == []
    assert list(tmp_path.glob("*/state.safetensors"))


def test_a_word_that_no_training_has_is_refused(capsys):
    assert main(["fleet", "--only", "resnet99"]) == 2
    assert "no training of the fleet has resnet99" in capsys.readouterr().err
