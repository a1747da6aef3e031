"""Notebooks as files: what a committed one must look like, and how it is made so.

    python -m lib.workbook.notebooks [NAME …]          clean outputs, links to neighbours
    python -m lib.workbook.notebooks --run [NAME …]    execute first: shipped weights, laptop size, figures as pictures;
                                                       how long it took goes to opening.json, and from there to its head
    python -m lib.workbook.notebooks --time [NAME …]   only that, the outputs stay
"""

import argparse
import contextlib
import json
import math
import os
import re
import tempfile
import threading
from pathlib import Path

import nbformat
import psutil

from lib import ATLASES, CHECKPOINTS, DATA, ROOT, WorkbookError, checkpoints
from lib.workbook import headless

FOLDER = ROOT / "notebooks"
PATIENCE = 120  # seconds that a picture may take
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {  # as JupyterLab writes it: opening such a notebook changes nothing
    "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
    "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"}}
TRACKED = (ATLASES.name, CHECKPOINTS.name)  # what the outputs rest on: a page names these files, see `shown`
WIDGET = "application/vnd.jupyter.widget-view+json"
OPENING = Path(__file__).with_name("opening.json")  # {notebook: {"cpu_seconds", "trains": how many networks}}


def paths(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def cells(path: Path) -> list[dict]:
    """The cells of a notebook. Raises WorkbookError for a file that is none, or not a whole one."""
    try:
        return json.loads(path.read_bytes())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkbookError(f"{path} is not a whole notebook; fetch it again or run it again") from None


def title(path: Path) -> str:
    """The first heading: "11 RDI-SmallCNN: which defence survives?"; where there is none, the file's name."""
    lines = (line for cell in cells(path) if cell["cell_type"] == "markdown"
             for line in "".join(cell["source"]).splitlines() if line.startswith("# "))
    return next(lines, path.stem).removeprefix("# ").strip()


def question(path: Path) -> str:
    """`title` without the number."""
    return title(path).lstrip("0123456789 ")


def clean(path: Path) -> None:
    """Take out what a run leaves in a notebook besides its outputs, and link the neighbours."""
    nb = nbformat.read(path, as_version=4)
    nb.metadata = nbformat.from_dict(METADATA | {name: nb.metadata[name] for name in ("shows",) if name in nb.metadata})
    nb.cells[0].source = re.sub(r"\n\n\*Opens in [^*]*\*", "", nb.cells[0].source) + opens(path.stem)
    nb.cells = [cell for cell in nb.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in nb.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.NotebookNode({"tags": tags} if tags else {})
        if "navigation" in (tags or ()):
            cell.source = navigation(path)
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if _stays(output)]
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
                for output in cell.outputs:
                    if "execution_count" in output:
                        output.execution_count = count
    checkpoints.replace(path, (nbformat.writes(nb) + "\n").encode())


def _stays(output) -> bool:
    """Whether an output is for the next reader: no warnings, no controls without a kernel, nothing without a word."""
    data = output.get("data", {"text/plain": "said"})
    return output.get("name") != "stderr" and WIDGET not in data and data.get("text/plain") != ""


def _plain(output):
    """Without the interactive twin of a picture that stands beside it, and without absolute paths."""
    data = output.get("data", {})
    if "image/png" in data:
        data.pop("application/vnd.plotly.v1+json", None)
    output.get("metadata", {}).clear()
    return output


def opens(name: str) -> str:
    """The last line of a notebook's head, from `opening.json`: how long all its cells take, and what they train.

    Its kernel's CPU time is what two idle cores need at most.
    """
    measured = json.loads(OPENING.read_bytes()).get(name)
    if measured is None:
        return ""
    trains = {0: "nothing", 1: "one small network"}.get(measured["trains"], f"{measured['trains']} small networks")
    return f"\n\n*Opens in about {5 * math.ceil(measured['cpu_seconds'] / 5)} s on two idle cores, trains {trains}.*"


def navigation(path: Path) -> str:
    """Links to the notebooks before and after this one."""
    every = paths(path.parent)
    here = every.index(path)
    links = []
    if here:
        links.append(f"← [{title(every[here - 1])}]({every[here - 1].name})")
    if here + 1 < len(every):
        links.append(f"[{title(every[here + 1])}]({every[here + 1].name}) →")
    return " · ".join(links)


def run(path: Path, keep: bool = True) -> None:
    """Execute a notebook in place (keep) as it is to be committed, and note what that takes in `opening.json`: nothing
    that an earlier run made is there. Raises WorkbookError when a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        executed, runs, read = (Path(folder) / name for name in (path.name, "runs", "read"))
        before = os.environ.copy()
        os.environ.update(WORKBOOK_LIVE="0", WORKBOOK_PNG=str(PATIENCE * keep), WORKBOOK_PRESET="laptop",
                          WORKBOOK_WEIGHTS="shipped", WORKBOOK_RUNS=str(runs), WORKBOOK_READ=str(read),
                          PYTHONPATH=str(ROOT))
        try:
            with cpu_time() as spent:
                if headless.run(path, executed, {}):
                    raise WorkbookError(f"{path.name} failed; its message stands above")
        finally:
            os.environ.clear()
            os.environ.update(before)
        trained = len(list(runs.glob("*/networks/*/last.safetensors")))
        known = json.loads(OPENING.read_bytes()) | {path.stem: {"cpu_seconds": round(max(spent)), "trains": trained}}
        checkpoints.replace(OPENING, (json.dumps(dict(sorted(known.items())), indent=1) + "\n").encode())
        if keep:
            nb = json.loads(executed.read_bytes().replace(str(runs).encode(), b"data/runs"))  # as a reader's
            nb["metadata"]["shows"] = shown(read)
            checkpoints.replace(path, json.dumps(nb).encode())


def shown(read: Path) -> dict[str, str]:
    """{a record or network that came along, below data/: its seal}, of all that a process noted in `read`."""
    noted = (line.split(" ", 1) for line in sorted(set(read.read_text("utf-8").splitlines() if read.is_file() else ())))
    inside = {Path(path).relative_to(DATA): seal for seal, path in noted if Path(path).is_relative_to(DATA)}
    return {name.as_posix(): seal for name, seal in sorted(inside.items()) if name.parts[0] in TRACKED}


@contextlib.contextmanager
def cpu_time():
    """A list that grows by the CPU seconds which this process's child, a kernel, has used: without its own children,
    which draw pictures."""
    spent, done = [0.0], threading.Event()

    def look():
        while not done.wait(0.5):
            with contextlib.suppress(psutil.Error):
                spent.extend(sum(child.cpu_times()[:2]) for child in psutil.Process().children())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield spent
    finally:
        done.set()
        watcher.join()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 11 or 11_rdi_smallcnn (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="execute first, and note how long it took")
    how.add_argument("--time", action="store_true", help="execute only to note how long it takes")
    args = parser.parse_args(argv)
    chosen = [p for p in paths() if not args.names or p.stem in args.names or p.stem[:2] in args.names]
    for path in chosen:
        if args.run or args.time:
            run(path, keep=args.run)
        clean(path)
        print(path.name)


if __name__ == "__main__":
    main()
