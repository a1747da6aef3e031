"""The parameters cell: what a notebook was asked to do, checked before anything is computed.

A notebook writes flat, typed, commented names in one cell and calls `resolve(globals(), "<notebook>")` in the next.
Papermill changes types silently and lets misspelt names pass; everything it can do wrong is put right or refused here.
"""

import ast
import json
import math
import os
import typing
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch

from lib import ROOT, RUNS, WorkbookError, place, writable

PRESETS = ("quick", "laptop", "paper")  # the size: CPU seconds, CPU minutes, the published schedule on CUDA
WEIGHTS = ("shipped", "train")  # where networks come from
COMMON = ("preset", "weights", "seed", "run_dir")
EMPTY = ("auto", "", 0)  # what a cell holds of a parameter that is left open


class Settings(SimpleNamespace):
    """The checked parameters as attributes: preset, weights, seed, run_dir (Path), device, notebook, and its own.

    named: those of its own that somebody gave a value; the others were filled in.
    """

    named: frozenset[str] = frozenset()

    @property
    def networks(self) -> Path:
        """Where trained networks are kept: one place for all notebooks of a run, so that each is trained once."""
        return self.run_dir.parent / "networks"

    @property
    def table(self) -> Path:
        """Where this notebook's rows go; the run's table is made of those of all its notebooks."""
        return self.run_dir / "metrics.csv"

    def __str__(self):
        folder = self.run_dir.relative_to(ROOT) if self.run_dir.is_relative_to(ROOT) else self.run_dir
        own = "".join(f" · {name} {value}" for name, value in vars(self).items()
                      if name not in (*COMMON, "device", "notebook", "named") and value not in ("", None)
                      and (name != "images" or self.weights == "train" or name in self.named))  # a record has its own
        return f"preset {self.preset} · weights {self.weights} · seed {self.seed} · {self.device}{own} · {folder}"


def resolve(namespace: dict, notebook: str, **by_preset) -> Settings:
    """Check the annotated names of `namespace` (a notebook's globals) and fill what is left open.

    by_preset: for a parameter of the notebook its values (quick, laptop, paper), taken where the cell holds the empty
    value of its type: "auto" or "" for text, 0 for a number; None for all there are.
    Raises WorkbookError for a notebook of another checkout, a wrong type, an unknown name, a number below 0, an unknown
    preset, or `paper` without a CUDA device.
    """
    types = annotations(namespace)
    if missing := [name for name in COMMON if name not in types]:
        raise WorkbookError(f"the parameters cell of {notebook} lacks {', '.join(missing)}; annotate them, "
                            "e.g. preset: str = \"auto\"")
    check_checkout(Path.cwd())
    if unknown := sorted(injected(namespace) - types.keys()):
        raise WorkbookError(f"{notebook} has no parameter {', '.join(unknown)}; it has {', '.join(types)}")
    values = {name: coerce(name, namespace[name], kind) for name, kind in types.items()}
    named = frozenset(name for name, value in values.items() if name not in COMMON and value not in EMPTY)
    preset = values["preset"] = choose(values["preset"], "preset", PRESETS, "laptop")
    values["weights"] = choose(values["weights"], "weights", WEIGHTS, "shipped")
    for name, options in by_preset.items():
        if values[name] in EMPTY:
            values[name] = options[PRESETS.index(preset)]
    values["run_dir"] = writable(place(values["run_dir"], RUNS / "interactive" / notebook),
                                 "name another folder with run_dir or WORKBOOK_RUNS")
    device = pick_device()
    refuse_paper_on_cpu(preset, values["weights"], device)
    return Settings(**values, device=device, notebook=notebook, named=named)


def check_checkout(here: Path) -> None:
    """A copied clone easily imports the library of the one it was copied from; then no result is what it says."""
    beside = here.parent / "lib" / "workbook"
    if beside.is_dir() and beside.resolve() != Path(__file__).resolve().parent:
        raise WorkbookError(f"this notebook lies in {here.parent}, but lib was imported from {ROOT}; start it with "
                            f"`python3 -m lib lab` in {here.parent}")


def annotations(namespace: dict) -> dict[str, type]:
    """Annotated names of a module namespace (Python 3.14 keeps them behind a function)."""
    if "__annotations__" not in namespace and "__annotate__" in namespace:
        return namespace["__annotate__"](1)
    return dict(namespace.get("__annotations__", {}))


def injected(namespace: dict) -> set[str]:
    """Names that papermill wrote into the cell it adds behind the parameters cell (its first line says so)."""
    cells = [source for source in namespace.get("In", ()) if source.startswith("# Parameters\n")]
    return {target.id for source in cells[-1:] for line in ast.parse(source).body if isinstance(line, ast.Assign)
            for target in line.targets}


def choose(value: str, name: str, options: tuple, default: str) -> str:
    """`auto` means the environment's WORKBOOK_<NAME>, else the default for a reader."""
    if value == "auto":
        value = os.environ.get(f"WORKBOOK_{name.upper()}") or default
    if value not in options:
        raise WorkbookError(f"{name} {value!r} is unknown; choose auto, {' or '.join(options)}")
    return value


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def refuse_paper_on_cpu(preset: str, weights: str, device: str):
    """The published schedules take days on a CPU: refused there, unless the caller insists."""
    if preset == "paper" and weights == "train" and device == "cpu" and not os.environ.get("WORKBOOK_ALLOW_CPU"):
        raise WorkbookError("preset paper trains by the published schedule and needs a CUDA device, which this machine "
                            "lacks; use laptop, or insist with `run --allow-cpu` (WORKBOOK_ALLOW_CPU=1)")


def coerce(name: str, value, kind: type):
    """`value` as `kind` (str, int, float, bool, list or list[...]), where that is beyond doubt.

    Text that spells a value is read ("1e-4", "8/255", "false", "[0.5, 1]"); a value of another type is refused with
    WorkbookError, since papermill may have changed it on the way (007 arrives as 7).
    """
    wanted = typing.get_origin(kind) or kind
    if isinstance(value, str) and wanted is not str:
        value = from_text(name, value, wanted)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool) or (
            wanted is float and not math.isfinite(value)):
        raise mistyped(name, value, wanted)
    if wanted in (int, float) and value < 0:
        raise WorkbookError(f"parameter {name} is {value}; it has to be 0 or more")
    if wanted is list and typing.get_args(kind):
        return [coerce(f"{name}[{i}]", item, typing.get_args(kind)[0]) for i, item in enumerate(value)]
    return value


def from_text(name: str, text: str, wanted: type):
    """What a command line's text means for a parameter of type `wanted`; raises WorkbookError when it means nothing."""
    try:
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        if wanted is int:
            return int(text)
        if wanted is float:
            return float(Fraction(text)) if "/" in text else float(text)
        return json.loads(text)
    except (KeyError, ValueError, ZeroDivisionError):
        raise mistyped(name, text, wanted) from None


EXAMPLES = {str: "text", int: "a whole number", float: "a number such as 0.3, 1e-4 or 8/255", bool: "true or false",
            list: "a list such as [0.5, 1.0]"}


def mistyped(name: str, value, wanted: type) -> WorkbookError:
    return WorkbookError(f"parameter {name} is {value!r} ({type(value).__name__}); it needs {EXAMPLES[wanted]}")
