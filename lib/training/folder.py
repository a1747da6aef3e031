"""A training's folder: one recipe, one process at a time, and a clean stop when somebody asks for one.

    recipe.json        what is trained here            last.safetensors   the network as it is now
    history.csv        what the training reported      best.safetensors   the best one on held-out images
    state.safetensors  what a killed training resumes from; gone when it is finished
"""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas

from lib import WorkbookError, checkpoints, locks
from lib.training.recipe import WATCHED, Recipe


@dataclass
class Stop:
    """The signal, SIGINT or SIGTERM, that asked the training to stop after the step it is in; 0 if none did."""

    signal: int = 0


@contextmanager
def claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Hold `folder` for this process and recipe.

    Raises WorkbookError when another process trains there, the folder holds another recipe, or it may not be written.
    """
    with locks.held(folder / ".lock", f"another process trains in {folder}; wait for it or choose another folder"):
        _check_recipe(folder, recipe)
        yield


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    note = folder / "recipe.json"
    if note.exists():
        try:
            other = Recipe.from_json(json.loads(note.read_bytes()))
        except (ValueError, TypeError):
            raise WorkbookError(f"{note} is damaged; remove {folder} or choose another folder") from None
        if other.digest() != recipe.digest():
            raise WorkbookError(f"{folder} holds another training ({difference(other, recipe)}); choose another folder")
    checkpoints.replace(note, (json.dumps(recipe.to_json(), indent=2) + "\n").encode())


def difference(there: Recipe, here: Recipe) -> str:
    """The fields in which two recipes would train different networks, in words."""
    a, b = there.to_json(), here.to_json()
    names = [name for name in a if name not in WATCHED and a[name] != b[name]]
    return ", ".join(f"{name} {a[name]} instead of {b[name]}" for name in names)


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


def write_history(folder: Path, rows: list[dict]) -> None:
    """The rows so far as history.csv: one column for everything that any row reports."""
    checkpoints.replace(folder / "history.csv", pandas.DataFrame(rows, dtype=object).to_csv(index=False).encode())
