"""The first page: what this machine can do, and which notebook answers which question."""

import os
import platform
from pathlib import Path

import torch
from IPython.display import Markdown, display

import lib
from lib import ROOT, WorkbookError
from lib.workbook import notebooks as files


def machine() -> None:
    """Say on what this kernel computes. Raises WorkbookError when `lib` is another checkout's than the notebook's."""
    check_checkout(Path.cwd())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: everything runs on the CPU"
    print(f"{device}; {torch.get_num_threads()} of {os.cpu_count()} CPU cores; torch {torch.__version__}, "
          f"Python {platform.python_version()}, workbook {lib.__version__}")


def check_checkout(here: Path) -> None:
    """A copied clone easily imports the library of the one it was copied from; then no result is what it says."""
    beside = here.parent / "lib" / "workbook"
    if beside.is_dir() and beside.resolve() != Path(__file__).resolve().parent:
        raise WorkbookError(f"this notebook lies in {here.parent}, but lib was imported from {ROOT}; start it with "
                            f"`python3 -m lib lab` in {here.parent}")


def notebooks() -> None:
    """A table of all notebooks with their questions, linked."""
    lines = ["| notebook | question |", "|---|---|"]
    for path in files.paths():
        number, _, question = files.title(path).partition(" ")
        lines.append(f"| [{number}]({path.name}) | {question} |")
    display(Markdown("\n".join(lines)))
