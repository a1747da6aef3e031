"""The fleet: trainings in order of priority, as processes that resume, until all are done or the time is up.

Complete comparisons come before new ones: every method stands beside its control, on one schedule.
"""

import csv
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from lib import ROOT, WorkbookError
from lib.training import recipes
from lib.training.loop import stop_signals
from lib.training.recipe import Recipe

DATASET, PRESET, LOOK_SECONDS, DEATH_SIGNAL = "cifar10_jpeg", "laptop", 1.0, 1
EVERY_KNOB = (("cheap_resnet38", ("float_slim", "dual_bn_slim")),)  # exits, noise and widths in one; without noise
EXITS = (("rdi_resnet38", ("max_average", "main")), ("resnet38", ("main",)), ("rdi_resnet38", ("average", "standard")))
ONCE_FOR_ALL = (("resnet20", ("oat", "pgd_at1", "pgd_at0", "pni", "float", "dual_bn")),)
LIGHT = (("rdi_mobilenet_v2", ("max_average", "main")), ("mobilenet_v2", ("main",)))
PRUNED = f"resnet38-{DATASET}-main-{PRESET}-r007"  # the published shape that Table 5 and Fig. 6 quote


@dataclass(frozen=True, eq=False)
class Member:
    """One training of the fleet, and the folder that it is made in."""

    recipe: Recipe
    folder: Path

    def finished(self) -> bool:
        return (self.folder / "last.safetensors").is_file() and not (self.folder / "state.safetensors").exists()

    def row(self, running: bool) -> dict:
        """How far it is: what its history last said, and the minutes that are left at the pace so far."""
        last, path = {}, self.folder / "history.csv"
        if path.is_file():
            with open(path, encoding="utf-8") as file:
                last = (list(csv.DictReader(file)) or [{}])[-1]
        recipe, done = self.recipe, float(last.get("epoch") or 0)
        share = done / recipe.epochs if recipe.epochs else int(last.get("step") or 0) / recipe.iterations
        minutes = float(last.get("seconds") or 0) / 60
        return {"network": recipe.name, "seed": recipe.seed,
                "state": "done" if self.finished() else "running" if running else "stopped" if last else "waiting",
                "epoch": f"{done:g}" + (f" of {recipe.epochs:g}" if recipe.epochs else ""), "loss": last.get("loss"),
                "clean": last.get("validation_clean"), "robust": last.get("validation_robust"), "minutes": minutes,
                "minutes left": None if not share else minutes * (1 / share - 1)}


def members(names: Sequence[tuple[str, int]], folder: Path) -> list[Member]:
    """The trainings of these (recipe, seed) below `folder`, where `train` keeps them, too."""
    found = [dataclasses.replace(recipes.find(name), seed=seed) for name, seed in names]
    return [Member(recipe, folder / recipe.label) for recipe in found]


def names() -> list[tuple[str, int]]:
    """(recipe, seed) of the whole fleet, the most wanted first."""
    def composed(families: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        return [f"{network}-{DATASET}-{method}-{PRESET}" for network, methods in families for method in methods]

    first = composed((*EVERY_KNOB, *EXITS))
    return [(name, 0) for name in (*first, *composed(ONCE_FOR_ALL), PRUNED, *composed(LIGHT))] + [(n, 1) for n in first]


def table(fleet: Sequence[Member], running: Sequence[Member] = ()) -> str:
    """How far every member is, as text. clean and robust: of held-out images, see `Training.validate`."""
    frame = pandas.DataFrame([member.row(member in running) for member in fleet])
    numbers = ["loss", "clean", "robust", "minutes", "minutes left"]
    frame[numbers] = frame[numbers].apply(pandas.to_numeric)
    formats = {"loss": "{:.3f}".format, "clean": "{:.1%}".format, "robust": "{:.1%}".format,
               "minutes": "{:.0f}".format, "minutes left": "{:.0f}".format}
    return frame.to_string(index=False, formatters=formats, na_rep="-")


def run(fleet: Sequence[Member], *, minutes: float | None = None, jobs: int = 1, device: str | None = None,
        show: Callable[[str], None] = print, show_seconds: float = 60.0) -> int:
    """Train what is not finished, `jobs` at a time, each in a process on one CPU thread.

    A killed fleet costs each member at most `loop.SAVE_SECONDS`; the same call goes on. SIGINT and SIGTERM stop all
    members cleanly; returns the signal, or 0. A member that fails is left and the others go on; at the end
    WorkbookError says which failed.
    """
    end = time.monotonic() + 60 * (float("inf") if minutes is None else minutes)
    waiting, running, failed, shown = [m for m in fleet if not m.finished()], {}, [], -float("inf")
    with stop_signals() as stop:
        while running or waiting:
            on = not stop.signal and time.monotonic() < end
            while on and waiting and len(running) < jobs:
                member = waiting.pop(0)
                running[member] = start(member, end, device)
            for member, process in list(running.items()):
                if stop.signal:
                    process.terminate()  # a clean stop: it saves first
                if process.poll() is not None:
                    del running[member]
                    failed += [str(member.folder / "log.txt")] if process.returncode > 0 and not stop.signal else []
            if not running and not on:
                break
            if on and time.monotonic() - shown >= show_seconds:
                show(table(fleet, list(running)))
                shown = time.monotonic()
            time.sleep(LOOK_SECONDS)
    show(table(fleet))
    if failed:
        raise WorkbookError(f"{len(failed)} of the fleet failed; see {', '.join(failed)}; the same command tries again")
    return stop.signal


def start(member: Member, end: float, device: str | None) -> subprocess.Popen:
    """`train` in a process that dies with this one: what it had saved is gone on with."""
    recipe, threads = member.recipe, dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "lib", "train", recipe.name, "--seed", str(recipe.seed), "--folder",
               str(member.folder), *(("--device", device) if device else ()),
               *(("--minutes", f"{(end - time.monotonic()) / 60 + 0.01:.2f}") if end < float("inf") else ())]
    member.folder.mkdir(parents=True, exist_ok=True)
    with open(member.folder / "log.txt", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                env={**os.environ, **threads}, start_new_session=True,
                                preexec_fn=lambda: ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL))
