"""Trainings that are stopped, killed and resumed end at the same bits; folders are kept from mix-ups."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from lib import WorkbookError, checkpoints, commands
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.training import loop, recipes
from lib.training import training as trainings

TINY = dataclasses.replace(recipes.find("rdi_smallcnn-digits-max_average-quick"), iterations=12, batch_size=8,
                           validate_every=5, validation_images=20, validation=Threat(0.15, 0.1, 1))
CHILD = """
import json, sys, torch
from lib.training import loop, recipes
torch.set_num_threads(1)
recipe = recipes.Recipe.from_json(json.loads(sys.argv[2]))
advance = loop.Training.advance
def told(self):
    print("at", self.step, flush=True)
    advance(self)
loop.Training.advance = told
result = loop.fit(recipe, sys.argv[1], save_seconds=0)
print("result", result.finished, result.reason, result.step, flush=True)
"""


def contents(folder: Path) -> dict:
    """Everything a training leaves that may not depend on interruptions: tensors of both networks, and the history."""
    last, best = (checkpoints.load(folder / f"{name}.safetensors") for name in ("last", "best"))
    history = [line.rsplit(",", 1)[0] for line in (folder / "history.csv").read_text().splitlines()]  # but for seconds
    return {"last": last.digest, "best": best.digest, "best step": best.metadata["step"], "history": history}


def child(folder: Path, recipe) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), json.dumps(recipe.to_json())], text=True,
                            stdout=subprocess.PIPE)


def wait_for(process: subprocess.Popen, line: str) -> str:
    for text in process.stdout:
        if text.startswith(line):
            return text.strip()
    raise AssertionError(f"the child never said '{line}'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    assert loop.fit(TINY, folder).finished
    return contents(folder)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_to_the_same_bits(kills, tmp_path):
    """One training in child processes, each killed in mid-training but the last, beside an undisturbed one."""
    recipe, draw, resumed_at = dataclasses.replace(TINY, iterations=40 * kills), random.Random(kills), []
    for _ in range(kills):
        process = child(tmp_path / "killed", recipe)
        resumed_at.append(int(wait_for(process, "at").split()[1]))
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert resumed_at[0] == 0 and resumed_at[-1] > 0 and resumed_at == sorted(resumed_at)
    last = child(tmp_path / "killed", recipe).communicate()[0].strip().splitlines()[-1]
    assert last.startswith(f"result True finished {recipe.iterations}")
    assert loop.fit(recipe, tmp_path / "undisturbed").finished
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_killed_while_a_file_is_written_loses_nothing(undisturbed, tmp_path, monkeypatch):
    """The machine stops just before, in the middle of and just after each of the last files' writing."""

    class Killed(BaseException):
        pass

    replace, when = checkpoints.replace, {"count": 0, "stop": None}

    def fragile(path, data):
        when["count"] += 1
        if when["count"] == when["stop"]:
            Path(path).with_name(f".{Path(path).name}.1.partial").write_bytes(data[: len(data) // 2])
            raise Killed
        replace(path, data)

    monkeypatch.setattr(checkpoints, "replace", fragile)
    for stop in (2, 3, 4, 5, 6):
        when.update(count=0, stop=stop)
        with pytest.raises(Killed):
            loop.fit(TINY, tmp_path, save_seconds=0)
    when.update(stop=None)
    assert loop.fit(TINY, tmp_path).finished
    assert contents(tmp_path) == undisturbed


def test_time_boxed_pieces_make_the_same_training(undisturbed, tmp_path):
    for piece in range(1, 13):
        result = loop.fit(TINY, tmp_path, minutes=1e-9)
        assert result.step == piece and result.finished == (piece == 12)
        assert result.reason == ("finished" if piece == 12 else "time is up")
        assert checkpoints.load(result.path).metadata["step"] == piece
    assert contents(tmp_path) == undisturbed
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_ends_the_step_saves_and_returns(number, undisturbed, tmp_path):
    process = child(tmp_path, TINY)
    wait_for(process, "at 3")
    process.send_signal(number)
    told = wait_for(process, "result")
    assert process.wait() == 0
    step = int(re.fullmatch(r"result False interrupted (\d+)", told)[1])
    assert 4 <= step < 12
    assert loop.fit(TINY, tmp_path).finished
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (0, 0)])
def test_train_exits_as_shells_say_a_signal(number, code, tmp_path, monkeypatch):
    def advance(self):
        real(self)
        if self.step == 4 and number:
            signal.raise_signal(number)

    real = loop.Training.advance
    monkeypatch.setattr(loop.Training, "advance", advance)
    monkeypatch.setattr(recipes, "find", lambda name: TINY)
    args = Namespace(recipe="tiny", list=False, device="cpu", json=None, seed=None, folder=str(tmp_path), minutes=None)
    assert commands.train(args) == code
    assert (tmp_path / "state.safetensors").exists() == bool(number)


def test_another_number_of_threads_is_said_when_a_training_goes_on(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        for count, said in ((1, 0), (1, 0), (2, 1)):
            torch.set_num_threads(count)
            loop.fit(TINY, tmp_path, minutes=1e-9)
            assert capsys.readouterr().err.count("begun with 1 threads and goes on with 2") == said
    finally:
        torch.set_num_threads(threads)


def test_handlers_are_given_back_and_other_threads_may_train(undisturbed, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=loop.fit, args=(TINY, tmp_path))
    thread.start()
    thread.join()
    loop.fit(TINY, tmp_path)
    assert contents(tmp_path) == undisturbed
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(tmp_path):
    hold = "import fcntl, time; f = open('.lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); "
    process = subprocess.Popen([sys.executable, "-c", hold + "time.sleep(600)"], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE)
    try:
        wait_for(process, "held")
        with pytest.raises(WorkbookError, match="another process trains in"):
            loop.fit(TINY, tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert loop.fit(TINY, tmp_path, minutes=1e-9).step == 1


def test_another_recipe_in_the_folder_is_refused_by_its_difference(tmp_path):
    loop.fit(TINY, tmp_path, minutes=1e-9)
    with pytest.raises(WorkbookError, match=r"another training \(batch_size 8 instead of 4\); choose another folder"):
        loop.fit(dataclasses.replace(TINY, batch_size=4), tmp_path)
    watched = dataclasses.replace(TINY, validate_every=3)  # looks on more often, trains the same
    assert loop.fit(watched, tmp_path, minutes=1e-9).step == 2
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(WorkbookError, match="not what is asked now"):
        loop.fit(dataclasses.replace(TINY, batch_size=4), tmp_path)
    for damaged in (b"{", b"7", b"[1]", b"\xff"):
        (tmp_path / "recipe.json").write_bytes(damaged)
        with pytest.raises(WorkbookError, match="damaged"):
            loop.fit(TINY, tmp_path)


def test_other_data_than_the_state_was_trained_on_is_refused(tmp_path, monkeypatch):
    loop.fit(TINY, tmp_path, minutes=1e-9)
    load = trainings.data.load

    def fewer(*args, **options):
        dataset = load(*args, **options)
        return dataclasses.replace(dataset, train=dataset.train[:100])

    monkeypatch.setattr(trainings.data, "load", fewer)
    with pytest.raises(WorkbookError, match="not what is asked now; choose another folder"):
        loop.fit(TINY, tmp_path)


def test_damaged_state_is_named(tmp_path):
    loop.fit(TINY, tmp_path, minutes=1e-9)
    path = tmp_path / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkbookError, match=r"state\.safetensors is damaged"):
        loop.fit(TINY, tmp_path)


def test_a_finished_network_that_was_damaged_is_named_and_a_foreign_one_not_taken_for_it(tmp_path):
    loop.fit(TINY, tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WorkbookError, match=r"last\.safetensors is cut short or damaged"):
        loop.fit(TINY, tmp_path)
    checkpoints.save(path, zoo.build(**TINY.network))
    assert loop.fit(TINY, tmp_path, minutes=1e-9).step == 1


def test_a_finished_training_is_loaded_and_an_unfinished_one_not_obtained(tmp_path, monkeypatch):
    with pytest.raises(WorkbookError, match="stopped at step 1 of 12 .time is up.; run again to go on"):
        loop.load_or_fit(TINY, tmp_path, minutes=1e-9)
    trained = loop.load_or_fit(TINY, tmp_path)
    monkeypatch.setattr(loop, "Training", None)  # from here on nothing can be trained
    loaded = loop.load_or_fit(TINY, tmp_path)
    assert not loaded.training
    for a, b in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bad_times_and_folders_get_one_sentence(tmp_path):
    for minutes in (0, -1, float("nan")):
        with pytest.raises(WorkbookError, match="give a time above 0"):
            loop.fit(TINY, tmp_path, minutes=minutes)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbookError, match="may not be written"):
        loop.fit(TINY, tmp_path / "file" / "folder")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(WorkbookError, match="may not be written"):
            loop.fit(TINY, tmp_path / "locked")
