"""The one training loop: any network, objective and device; stops at any moment and goes on bit for bit (on CPU).

A training's folder is for one recipe and one process at a time:

    recipe.json        what is trained here            last.safetensors   the network as it is now
    history.csv        what the training reported      best.safetensors   the best one on held-out images
    state.safetensors  what a killed training resumes from; gone when it is finished
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lib import WorkbookError, checkpoints, locks
from lib.models.network import Network
from lib.progress import bar
from lib.training.recipe import Recipe
from lib.training.training import FALL, Training

SAVE_SECONDS = 30.0  # of work that a kill may cost


@dataclass(frozen=True)
class Result:
    """What a call of `fit` leaves. network: in eval mode. path: its file. metrics: the last report.

    finished: whether all iterations ran; else `reason` says why not and the next call goes on. signal: what stopped it.
    """

    network: Network
    path: Path
    finished: bool
    metrics: dict
    step: int
    total: int
    reason: str = "finished"
    signal: int = 0


def fit(recipe: Recipe, folder: Path | str, *, start: Network | None = None, device: torch.device | str | None = None,
        minutes: float | None = None, save_seconds: float = SAVE_SECONDS) -> Result:
    """Train `recipe` in `folder`, from the start or from where it stopped, to its end or for `minutes`.

    start: the network whose weights the recipe starts from, where it does (see `constraints.continued`).
    Each call makes at least one step. SIGINT and SIGTERM end the step, save, and return. A finished training is loaded.
    Raises WorkbookError for a folder in use or of another recipe, a loss that is not a number, a full disk, ...
    """
    if minutes is not None and not minutes > 0:
        raise WorkbookError(f"minutes is {minutes}; give a time above 0")
    folder, begun = Path(folder), time.monotonic()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with claimed(folder, recipe):
        if done := _finished(recipe, folder, device):
            return done
        training = Training(recipe, folder, device, start)
        training.resume()
        with stop_signals() as stop, bar(training.total, recipe.name, "step", training.step) as shown:
            while training.step < training.total:
                training.advance()
                report = training.report()
                if means := training.means():
                    shown.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
                shown.update()
                if report and training.fallen:
                    shown.write(f"{recipe.name}: held-out accuracy fell more than {FALL:g} below {training.best:.3f}, "
                                f"a sign of catastrophic overfitting; the network from before is "
                                f"{folder / 'best.safetensors'}", file=sys.stderr)
                if report or time.monotonic() - training.saved_at >= save_seconds:
                    training.save()
                if stop.signal or time.monotonic() - begun >= 60 * (minutes or math.inf):
                    break
        return _close(training, stop.signal)


def load_or_fit(recipe: Recipe, folder: Path | str, **options) -> Network:
    """The trained network of `recipe`: loaded when `folder` holds it, else trained there. Options as for `fit`.

    Raises WorkbookError when the training stopped before its end.
    """
    result = fit(recipe, folder, **options)
    if not result.finished:
        raise WorkbookError(f"the training of {recipe.name} stopped at step {result.step} of {result.total} "
                            f"({result.reason}); run again to go on")
    return result.network


def _finished(recipe: Recipe, folder: Path, device: torch.device) -> Result | None:
    path = folder / "last.safetensors"
    if not path.exists() or (folder / "state.safetensors").exists():
        return None
    loaded = checkpoints.load(path, device)
    told = loaded.metadata
    if not told.get("finished") or told.get("recipe_digest") != recipe.digest():
        return None
    return Result(loaded.network, path, True, told["metrics"], told["step"], told["total"])


def _close(training: Training, stopped_by: int) -> Result:
    """Write the network, and the state unless all is done."""
    training.save()
    metrics = training.history[-1] if training.history else {}
    path = training.write("last.safetensors", metrics)
    result = Result(training.deployed().eval(), path, training.step == training.total, metrics, training.step,
                    training.total)
    if not result.finished:
        return replace(result, reason="interrupted" if stopped_by else "time is up", signal=stopped_by)
    (training.folder / "state.safetensors").unlink()
    return result


@dataclass
class Stop:
    """The signal, SIGINT or SIGTERM, that asked the training to stop after the step it is in; 0 if none did."""

    signal: int = 0


@contextmanager
def claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Hold `folder` for this process and recipe.

    Raises WorkbookError when another process trains there, the folder holds another recipe, or it may not be written.
    """
    note = folder / "recipe.json"
    with locks.held(folder / ".lock", f"another process trains in {folder}; wait for it or choose another folder"):
        if note.exists():
            try:
                other = Recipe.from_json(json.loads(note.read_bytes()))
            except (ValueError, TypeError):
                raise WorkbookError(f"{note} is damaged; remove {folder} or choose another folder") from None
            if other.digest() != recipe.digest():
                raise WorkbookError(f"{folder} holds another training ({other.difference(recipe)}); choose another "
                                    "folder")
        checkpoints.replace(note, (json.dumps(recipe.to_json(), indent=2) + "\n").encode())
        yield


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one interrupts at once. Main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, frame):
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
