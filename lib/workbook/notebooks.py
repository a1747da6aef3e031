"""Notebooks as files: what a committed one must look like, and how it is made so.

    python -m lib.workbook.notebooks [NAME …]          clean outputs, links to neighbours
    python -m lib.workbook.notebooks --run [NAME …]    execute first: shipped weights, laptop size, figures as pictures;
                                                       how long it took goes to opening.json, and from there to its head
"""

import argparse
import ast
import contextlib
import functools
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil

from lib import ATLASES, CHECKPOINTS, DATA, ROOT, WorkbookError, checkpoints
from lib.workbook import headless, style

FOLDER = ROOT / "notebooks"
PATIENCE = 120  # seconds that a picture may take
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {  # as JupyterLab writes it: opening such a notebook changes nothing
    "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
    "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"}}
TRACKED = (ATLASES.name, CHECKPOINTS.name)  # what the outputs rest on: a page names these files, see `shown`
WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
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


def declared(path: Path) -> dict[str, type]:
    """The names and types of the parameters cell. Raises WorkbookError where none is tagged so (papermill goes on)."""
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    if not tagged:
        raise WorkbookError(f"{path.name} has no cell tagged parameters; tag the one that holds preset, weights, …")
    kinds = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
    return {line.target.id: eval(ast.unparse(line.annotation), {"__builtins__": kinds})
            for line in ast.parse("".join(tagged[0]["source"])).body if isinstance(line, ast.AnnAssign)}


def page(executed: Path) -> Path:
    """An executed notebook as an HTML file beside it that needs no network: code left out, Plotly's script in the run's
    folder."""
    target = executed.with_suffix(".html")
    shown = style.render("notebook.html", title=question(executed), outputs=_outputs(executed))
    checkpoints.replace(target, shown.encode())
    return target


def headline(executed: Path) -> str:
    """The outputs of the cells tagged `headline`, as HTML with pictures inside."""
    return _outputs(executed, lambda cell: "headline" in cell.metadata.get("tags", []))


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, anchor_link_text="")


def _outputs(executed: Path, chosen: Callable = lambda cell: True) -> str:
    """Texts and outputs of the chosen cells as HTML, warnings left out; the page's own Plotly script draws figures."""
    import plotly.io as pio

    cells(executed)  # a sentence for a file that is not whole
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if chosen(cell)]
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for data in (output.data for output in cell.outputs if PLOTLY in output.get("data", {})):
            data["text/html"] = pio.to_html(data[PLOTLY], {"displaylogo": False, "responsive": True}, full_html=False,
                                            include_plotlyjs=False, validate=False)
    return _exporter().from_notebook_node(notebook)[0]


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
        data.pop(PLOTLY, None)
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


def run(path: Path) -> None:
    """Execute a notebook in place as it is to be committed, and note what that takes in `opening.json`: nothing that an
    earlier run made is there. Raises WorkbookError when a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        executed, runs, read = (Path(folder) / name for name in (path.name, "runs", "read"))
        wanted = {"LIVE": "0", "PNG": str(PATIENCE), "PRESET": "laptop", "WEIGHTS": "shipped", "RUNS": str(runs),
                  "READ": str(read)}
        child, spent = headless.Child(headless.__name__, str(path), str(executed), "{}", "child", env=os.environ | {
            f"WORKBOOK_{name}": value for name, value in wanted.items()} | {"PYTHONPATH": str(ROOT)}), 0.0
        while child.process.poll() is None:  # CPU seconds of the kernel, not of its own children, which draw pictures
            with contextlib.suppress(psutil.Error):
                kernels = psutil.Process(child.process.pid).children()
                spent = max(spent, sum(sum(kernel.cpu_times()[:2]) for kernel in kernels))
            time.sleep(0.5)
        if child.process.returncode:
            raise WorkbookError(f"{path.name} failed; its message stands above")
        trained = len(list(runs.glob("*/networks/*/last.safetensors")))
        known = json.loads(OPENING.read_bytes()) | {path.stem: {"cpu_seconds": round(spent), "trains": trained}}
        checkpoints.replace(OPENING, (json.dumps(dict(sorted(known.items())), indent=1) + "\n").encode())
        made = json.loads(executed.read_bytes().replace(str(runs).encode(), b"data/runs"))  # as a reader's
        made["metadata"]["shows"] = shown(read)
        checkpoints.replace(path, json.dumps(made).encode())


def shown(read: Path) -> dict[str, str]:
    """{a record or network that came along, below data/: its seal}, of all that a process noted in `read`."""
    noted = (line.split(" ", 1) for line in sorted(set(read.read_text("utf-8").splitlines() if read.is_file() else ())))
    inside = {Path(path).relative_to(DATA): seal for seal, path in noted if Path(path).is_relative_to(DATA)}
    return {name.as_posix(): seal for name, seal in sorted(inside.items()) if name.parts[0] in TRACKED}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 11 or 11_rdi_smallcnn (default: all)")
    parser.add_argument("--run", action="store_true", help="execute first, and note how long it took")
    args = parser.parse_args(argv)
    chosen = [p for p in paths() if not args.names or p.stem in args.names or p.stem[:2] in args.names]
    if strange := set(args.names) - {name for p in chosen for name in (p.stem, p.stem[:2])}:
        parser.error(f"there is no notebook '{min(strange)}'")
    for path in chosen:
        if args.run:
            run(path)
        clean(path)
        print(path.name)


if __name__ == "__main__":
    main()
