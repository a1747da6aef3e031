"""Notebooks as files: what a committed one must look like, and how it is made so.

    python -m lib.workbook.notebooks [NAME …]          clean outputs, links to neighbours
    python -m lib.workbook.notebooks --run [NAME …]    execute first: shipped weights, laptop size, figures as pictures
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path

import nbformat

from lib import ROOT, WorkbookError, checkpoints
from lib.workbook import headless

FOLDER = ROOT / "notebooks"
LARGEST, LONGEST = 400_000, 25  # bytes of a file, lines of a code cell
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {  # as JupyterLab writes it: opening such a notebook changes nothing
    "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
    "name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"}}
COMMON = ("preset", "weights", "seed", "run_dir")


def paths(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def title(path: Path) -> str:
    """The first heading: "11 RDI-SmallCNN: which defence survives?"."""
    first = "".join(json.loads(path.read_bytes())["cells"][0]["source"])
    return first.splitlines()[0].removeprefix("# ").strip()


def clean(path: Path) -> None:
    """Take out what a run leaves in a notebook besides its outputs, and link the neighbours."""
    nb = nbformat.read(path, as_version=4)
    nb.metadata = nbformat.from_dict(METADATA)
    nb.cells = [cell for cell in nb.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in nb.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.NotebookNode({"tags": tags} if tags else {})
        if "navigation" in (tags or ()):
            cell.source = navigation(path)
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
                for output in cell.outputs:
                    if "execution_count" in output:
                        output.execution_count = count
    checkpoints.replace(path, (nbformat.writes(nb) + "\n").encode())


def _plain(output):
    """Without the interactive twin of a picture that stands beside it, and without absolute paths."""
    data = output.get("data", {})
    if "image/png" in data:
        data.pop("application/vnd.plotly.v1+json", None)
    output.get("metadata", {}).clear()
    return output


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


def problems(path: Path) -> list[str]:
    """Everything that a committed notebook may not have, in words; [] when it is fit."""
    nb = json.loads(path.read_bytes())
    cells, found = nb["cells"], []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    if path.stat().st_size > LARGEST:
        found.append(f"{path.stat().st_size:,} bytes, more than {LARGEST:,}")
    if not cells or not re.match(rf"# {path.stem[:2]} \S", "".join(cells[0]["source"])):
        found.append(f"the first cell does not begin with \"# {path.stem[:2]} …\"")
    if nb["metadata"] != METADATA:
        found.append(f"notebook metadata other than a kernelspec and language_info as JupyterLab writes them: "
                     f"{nb['metadata']}")
    found += _parameter_problems(path, [c for c, t in zip(cells, tags, strict=True) if "parameters" in t])
    if sum("navigation" in t for t in tags) != 1:
        found.append("not exactly one cell tagged navigation")
    elif navigation(path) != "".join(next(c for c, t in zip(cells, tags, strict=True) if "navigation" in t)["source"]):
        found.append("the links to the neighbours are out of date")
    for number, cell in enumerate(code, start=1):
        found += [f"code cell {number}: {problem}" for problem in _cell_problems(number, cell)]
    return found


def _parameter_problems(path: Path, tagged: list[dict]) -> list[str]:
    if len(tagged) != 1:
        return [f"{len(tagged)} cells tagged parameters instead of one"]
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    found = [f"parameter line without type, literal and comment (one = only): {line}" for line in lines
             if not re.fullmatch(r"\w+: [\w\[\]]+ = [^#=]+  # [^=]+", line)]
    if missing := [name for name in COMMON if not any(line.startswith(f"{name}:") for line in lines)]:
        found.append(f"parameters without {', '.join(missing)}")
    if f'"{path.stem}"' not in path.read_text("utf-8").replace('\\"', '"'):
        found.append(f"settings are not resolved for \"{path.stem}\"")
    return found


def _cell_problems(number: int, cell: dict) -> list[str]:
    lines = "".join(cell["source"]).splitlines()
    extra = set(cell["metadata"]) - {"tags"}
    found = [f"metadata {', '.join(sorted(extra))}"] if extra else []
    if len(lines) > LONGEST:
        found.append(f"{len(lines)} lines, more than {LONGEST}")
    if cell["execution_count"] != number:
        found.append(f"execution count {cell['execution_count']} instead of {number}")
    if "injected-parameters" in cell["metadata"].get("tags", []):
        found.append("papermill's injected parameters")
    if "nbval-check-output" in cell["metadata"].get("tags", []) and not cell["outputs"]:
        found.append("checked, but without a stored output")
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            found.append(f"a stored error: {output['ename']}")
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            found.append("a stored widget, which nobody can reopen")
        if "image/svg+xml" in output.get("data", {}):
            found.append("a stored SVG, which is not drawn before somebody trusts the notebook; show it as a picture")
        if str(ROOT) in json.dumps(output):
            found.append("an absolute path in its output")
    return found


def run(path: Path) -> None:
    """Execute a notebook in place as it is to be committed. Raises WorkbookError when a cell fails."""
    settings = {"WORKBOOK_LIVE": "0", "WORKBOOK_PNG": "1", "WORKBOOK_PRESET": "laptop", "WORKBOOK_WEIGHTS": "shipped"}
    os.environ.update(settings, PYTHONPATH=str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        if headless.run(path, made, {}):
            raise WorkbookError(f"{path.name} failed; its message stands above")
        checkpoints.replace(path, made.read_bytes())


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 11 or 11_rdi_smallcnn (default: all)")
    parser.add_argument("--run", action="store_true", help="execute first")
    args = parser.parse_args(argv)
    chosen = [p for p in paths() if not args.names or p.stem in args.names or p.stem[:2] in args.names]
    for path in chosen:
        if args.run:
            run(path)
        clean(path)
        print(path.name, *problems(path), sep="\n  ")


if __name__ == "__main__":
    main()
