"""Faults of a whole run: after each, the same command ends with what an undisturbed run has, and no process is left.

Notebooks of a second each go through the real runner, kernels and all; only the driver is forked from here, so that it
need not load PyTorch again.
"""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import time
import uuid
from pathlib import Path

import nbconvert  # noqa: F401 - here once, not in each forked driver
import nbformat
import psutil
import pytest

from lib import WorkbookError
from lib.evaluation import rows
from lib.workbook import headless, runs
from tests.workbook.test_runs import arguments, notebook

MEASURE = """
import os, time
os.write(2, b"\\xff is no UTF-8\\n")
with open(f"{run_dir}/metrics.csv", "x") as file:
    print(HEADER, file=file)
    for value in range(6):
        print("STEM" + "," * 7 + f"value {value},{value / 3}" + "," * 21, file=file, flush=True)
        time.sleep(0.15)
""".replace("HEADER", repr(",".join(rows.COLUMNS)))
STEMS = ("01_one", "02_two")
pytestmark = pytest.mark.slow


class Place:
    """Two notebooks, a folder for runs, and a mark in the environment that all processes of a run carry."""

    def __init__(self, folder: Path):
        self.folder, self.mark = folder, uuid.uuid4().hex
        (folder / "notebooks").mkdir()
        for stem in STEMS:
            notebook(folder / "notebooks", stem, "", MEASURE.replace("STEM", stem))

    def start(self, name: str, prepare=lambda: None, only=("01",), **changes) -> multiprocessing.Process:
        """`lib run` as a process at the head of a group, as a terminal starts it."""

        def drive():
            os.setsid()
            os.environ["WORKBOOK_TEST_MARK"] = self.mark
            runs.NOTEBOOKS, runs.RUNS = self.folder / "notebooks", self.folder
            prepare()
            try:
                code = runs.run(arguments(name=name, only=only, jobs=2, **changes))
            except KeyboardInterrupt:
                code = 130
            except WorkbookError as error:
                print("refused:", error)
                code = 2
            os._exit(code)

        process = multiprocessing.get_context("fork").Process(target=drive)
        process.start()
        return process

    def run(self, name: str, **changes) -> int:
        process = self.start(name, **changes)
        process.join(300)
        return process.exitcode

    def processes(self) -> list[psutil.Process]:
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get("WORKBOOK_TEST_MARK") == self.mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
            except psutil.Error:
                continue
        return found

    def kernels(self, word: str = "ipykernel_launcher") -> list[psutil.Process]:
        found = []
        for one in self.processes():
            with contextlib.suppress(psutil.Error):  # it has ended since
                found += [one] if word in " ".join(one.cmdline()) else []
        return found

    def rows(self, name: str) -> bytes:
        return (self.folder / name / "metrics.csv").read_bytes()

    def gone(self, seconds: float = 60) -> bool:
        """Whether no process is left after so long."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        return not left


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("odd {place}"))
    assert place.run("undisturbed") == 0
    assert place.rows("undisturbed").count(b"value") == 1 + 6  # one of them in the header
    return place


@pytest.fixture(scope="module")
def finished(place):
    assert place.run("finished", only=None) == 0
    return place.folder / "finished"


def wait_for(condition, seconds: float = 300):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def interrupt(process):
    os.killpg(process.pid, signal.SIGINT)


MOMENTS = {"begins": 0.0, "computes": 1.2}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", ["kill", "term", "ctrl-c"])
def test_a_driver_that_ends_takes_all_along_and_the_next_one_goes_on(place, finished, fault, moment):
    name, several = f"{fault}-{moment}", {"only": None} if moment == "computes" else {}
    process = place.start(name, **several)
    wait_for(place.kernels)
    time.sleep(MOMENTS[moment] * random.uniform(0.8, 1.2))
    {"kill": process.kill, "term": process.terminate, "ctrl-c": lambda: interrupt(process)}[fault]()
    process.join(headless.FAREWELL + 60)
    assert process.exitcode == {"kill": -9, "term": -15, "ctrl-c": 130}[fault]
    assert place.gone()
    assert place.run(name, **several) == 0 and place.gone()
    assert place.rows(name) == place.rows("finished" if several else "undisturbed")


def test_a_second_ctrl_c_ends_at_once(place):
    process = place.start("twice")
    kernel = wait_for(place.kernels)[0]
    kernel.suspend()  # it cannot answer the first
    interrupt(process)
    time.sleep(0.5)
    assert process.is_alive()
    begun = time.monotonic()
    interrupt(process)
    process.join(30)
    assert process.exitcode == 130 and time.monotonic() - begun < headless.FAREWELL - 1 and place.gone()
    assert place.run("twice") == 0
    assert place.rows("twice") == place.rows("undisturbed")


@pytest.mark.parametrize("victim", ["ipykernel_launcher", "lib.workbook.headless"])
@pytest.mark.parametrize("delay", [0.0, 1.2])
def test_a_killed_kernel_is_tried_again_within_the_run(place, victim, delay):
    name = f"{victim[:5]}-{delay}"
    process = place.start(name)
    one = wait_for(lambda: place.kernels(victim))[0]
    time.sleep(delay)
    one.kill()
    process.join(300)
    assert process.exitcode == 0 and place.gone()
    assert place.rows(name) == place.rows("undisturbed")


def test_a_kernel_killed_each_time_fails_the_run_and_the_same_command_mends_it(place):
    process = place.start("again")
    for _ in range(2):
        kernel = wait_for(place.kernels)[0]
        kernel.kill()
        kernel.wait(10)
    process.join(300)
    assert process.exitcode == 1 and place.gone()
    assert "killed" in runs.read_json(place.folder / "again" / "01_one" / "status.json")["message"]
    assert place.run("again") == 0
    assert place.rows("again") == place.rows("undisturbed")


def test_a_full_disk_fails_the_run_and_the_same_command_mends_it(place, capfd):
    """Files of more than a few hundred bytes cannot be written, which is what a full disk looks like."""

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))

    assert place.run("full", prepare=small) in (1, 2) and place.gone()
    assert "Traceback" not in capfd.readouterr().err
    assert place.run("full") == 0
    assert place.rows("full") == place.rows("undisturbed")


def test_two_runs_of_one_name_make_one(place, capfd):
    first = place.start("both")
    wait_for(place.kernels)
    assert place.run("both") == 2 and "another run goes on in" in capfd.readouterr().out
    first.join(300)
    assert first.exitcode == 0 and place.gone()
    assert place.rows("both") == place.rows("undisturbed")


@pytest.mark.parametrize("broken", ["01_one/status.json", "01_one/metrics.csv", "01_one/01_one.ipynb"])
def test_a_broken_file_of_a_finished_run_is_made_again(place, finished, broken):
    before, kept = place.rows("finished"), (finished / "02_two/02_two.ipynb").stat().st_mtime_ns
    (finished / broken).write_bytes(b"" if "status" in broken else b'{"cells": [\xff')
    assert place.run("finished", only=None) == 0
    assert place.rows("finished") == before
    assert (finished / "02_two/02_two.ipynb").stat().st_mtime_ns == kept


def test_a_notebook_that_does_nothing_is_ended_and_the_others_go_on(place, tmp_path):
    other = Place(tmp_path)
    path = tmp_path / "notebooks" / "01_one.ipynb"
    stuck = nbformat.read(path, as_version=4)
    stuck.cells[-1].source = "import time\ntime.sleep(100000)"
    nbformat.write(stuck, path)
    assert other.run("stuck", only=None, patience=8 / 60) == 1 and other.gone()
    statuses = [runs.read_json(tmp_path / "stuck" / stem / "status.json") for stem in STEMS]
    assert [status["outcome"] for status in statuses] == ["failed", "done"]
    assert statuses[0]["message"].startswith("stuck: it used no CPU and wrote nothing for 0.133 minutes")
    assert other.rows("stuck").count(b"02_two") == 6


@pytest.mark.parametrize("variables", [{"TMPDIR": "/nowhere/" + "x" * 90}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_odd_environments_change_nothing(place, variables):
    name = next(iter(variables)).lower()
    assert place.run(name, prepare=lambda: os.environ.update(variables)) == 0
    assert place.rows(name) == place.rows("undisturbed")
