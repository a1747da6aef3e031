"""The trade-off workbook: accuracy, adversarial robustness and computation, traded at inference time.

Importing `lib` stays cheap: only the standard library is touched here.
"""

import difflib
import os
from numbers import Integral
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"  # committed, small
ATLASES = DATA / "atlases"  # committed, small
IMAGES = DATA / "images"  # committed: the first test images of datasets that a reader may lack


def place(named, default):
    """The folder that a variable or parameter names: ~ is home, and a relative one counts from the checkout, so that
    commands and kernels, which start in different folders, mean the same."""
    return ROOT / os.path.expanduser(named) if named else default


DATASETS = place(os.environ.get("WORKBOOK_DATA"), DATA / "datasets")  # ignored: downloads and unpacked archives
RUNS = place(os.environ.get("WORKBOOK_RUNS"), DATA / "runs")  # ignored: everything a run writes


def candidates(name):
    """Where a file or folder that a person named may be: in the current folder, the checkout, among the datasets."""
    return [folder / os.path.expanduser(name) for folder in (Path(), ROOT, DATASETS)]


class WorkbookError(Exception):
    """Something the user can mend: one sentence that says what was wrong and what to do."""


def unknown(kind, name, known, listed="choose from"):
    """The error for a name that is none of `known`, with the nearest of them."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return WorkbookError(f"unknown {kind} '{name}'{hint}; {listed} {', '.join(known)}")


def writable(path, remedy="choose another folder"):
    """`path`, a file or folder that can be written or made. Raises WorkbookError where it cannot."""
    there = next(one for one in (path.absolute(), *path.absolute().parents) if os.path.exists(one))
    if not os.access(there, os.W_OK) or not (there.is_dir() or there == path.absolute()):
        raise WorkbookError(f"{path} may not be written; {remedy}")
    return path


def check_counts(**counts) -> None:
    """Raises WorkbookError unless every value is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise WorkbookError(f"{name} {value} is not a whole number of at least 1")
