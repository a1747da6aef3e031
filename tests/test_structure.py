"""How `lib` is laid out: seven floors with a budget each, arrows only downwards, no module for one notebook alone."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from lib import ROOT
from lib.workbook import notebooks

LIB = ROOT / "lib"
DOOR = ("__main__", "commands", "evaluating", "exporting", "flags", "environment", "packages", "doctor")
GROUND = ("__init__", "randomness", "progress", "locks")

# floor: (what it holds, lines it may have: as many as it has, to the next 50). What they shall come to: 6,400
# for floors 1 to 5 together, 2,800 for floor 6, 1,000 for floor 7.
FLOORS = {1: (GROUND, 200), 2: (("data", "operating_point"), 850), 3: (("models",), 2050),
          4: (("attacks", "checkpoints"), 1400), 5: (("training", "evaluation"), 4350), 6: (("workbook",), 4550),
          7: (DOOR, 1400)}
FILES = 22  # of floor 6; they shall come to 16
LARGEST = 300  # lines of a file
TOO_LARGE: set[str] = set()  # not yet shortened: this list only gets shorter
# Not yet general helpers, or cells of the one notebook that they serve: this list as well.
FOR_ONE_NOTEBOOK: set[str] = set()


@cache
def modules() -> dict[str, Path]:
    """{"models.zoo": its file}; a package goes by its own name."""
    files = {path.relative_to(LIB).with_suffix("").as_posix().replace("/", "."): path for path in LIB.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def imported(source: str, inside_functions: bool = True) -> set[str]:
    """Modules of `lib` that a source imports."""
    tree, names = ast.parse(source), set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lib":
            package = node.module.removeprefix("lib").lstrip(".")
            parts = {".".join(filter(None, (package, alias.name))) for alias in node.names}
            names |= parts if parts <= modules().keys() else parts | {package or "__init__"}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("lib.") for alias in node.names if alias.name.startswith("lib.")}
    return names & modules().keys()


def floor(module: str) -> int:
    return next(number for number, (holds, _) in FLOORS.items() if module.partition(".")[0] in holds)


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


@pytest.mark.parametrize("number", FLOORS)
def test_a_floor_keeps_its_budget(number):
    holds, budget = FLOORS[number]
    held = sum(lines(path) for name, path in modules().items() if name.partition(".")[0] in holds)
    assert held <= budget, f"floor {number} has {held} lines, more than its {budget}: leave something out"


def test_the_workbook_has_no_more_files_than_it_had():
    assert sum(floor(name) == 6 for name in modules()) <= FILES


def test_no_file_is_too_long_to_read():
    assert {name for name, path in modules().items() if lines(path) > LARGEST} <= TOO_LARGE


def test_imports_go_down_and_never_round():
    below = {name: imported(path.read_text("utf-8"), inside_functions=False) - {name}
             for name, path in modules().items()}
    up = {(name, other) for name, others in below.items() for other in others if floor(other) > floor(name)}
    assert not up
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, "these import one another in a circle"


def test_the_core_needs_no_package_of_the_workbook():
    """Floors 1 to 5 run where only the packages marked core are installed."""
    core = [path.read_text("utf-8") for name, path in modules().items() if floor(name) < 6]
    heads = {alias.name.partition(".")[0] for source in core for node in ast.parse(source).body
             if isinstance(node, ast.Import) for alias in node.names}
    heads |= {(node.module or "").partition(".")[0] for source in core for node in ast.parse(source).body
              if isinstance(node, ast.ImportFrom)}
    assert not heads & {"plotly", "ipywidgets", "papermill", "scipy", "sklearn", "jinja2", "IPython", "matplotlib"}


def test_a_module_of_the_workbook_serves_several_notebooks():
    """Or the machinery of all of them: one that only a single page can reach belongs into its cells."""
    reach = {name: {other for other in imported(path.read_text("utf-8")) if other.startswith("workbook.")}
             for name, path in modules().items()}
    pages: dict[str, set[str]] = {}
    starts = {path.stem: imported("\n".join("".join(cell["source"]) for cell in json.loads(path.read_bytes())["cells"]
                                            if cell["cell_type"] == "code")) for path in notebooks.paths()}
    machinery = {"workbook.runs", "workbook.page", "workbook.shipping", "workbook.readme", "workbook.notebooks",
                 "workbook.headless"}
    starts |= {name: {name} for name in machinery}
    for page, todo in starts.items():
        todo = set(todo)
        while todo:
            name = todo.pop()
            if page not in pages.setdefault(name, set()):
                pages[name].add(page)
                todo |= reach[name]
    served = {name: {page for page in found if page not in machinery} for name, found in pages.items()}
    alone = {name.removeprefix("workbook.") for name in modules() if name.startswith("workbook.")
             and len(served.get(name, ())) == 1 and not pages[name] & machinery}
    assert alone <= FOR_ONE_NOTEBOOK
    unreached = {name for name in modules() if name.startswith("workbook.") and name not in pages}
    assert not unreached, "nothing uses these"


def test_the_layout_in_the_readme_is_the_trees():
    rows = re.search(r"## How it is laid out\n\n\|.*\n\|.*\n((?:\|.*\n)+)", (ROOT / "README.md").read_text("utf-8"))[1]
    assert rows.count("\n") == 12
    names = re.findall(r"`([\w./]+)`", rows)
    places = (ROOT, LIB, LIB / "workbook")
    assert [name for name in names if not any((place / end).exists() for place in places
                                              for end in (name, f"{name}.py"))] == []
    named = {Path(name).stem for name in names}
    assert {path.name for path in LIB.iterdir() if path.is_dir() and path.name != "__pycache__"} <= named
