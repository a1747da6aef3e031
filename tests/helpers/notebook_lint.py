"""What a committed notebook may not have, in words: its lint."""

import json
import re
from pathlib import Path

from lib import ROOT, checkpoints
from lib.workbook import notebooks
from lib.workbook.notebooks import METADATA, WIDGET, navigation, opens
from lib.workbook.parameters import COMMON

LARGEST, LONGEST = 400_000, 25  # bytes of a file, lines of a code cell


def problems(path: Path) -> list[str]:
    """Everything that a committed notebook may not have, in words; [] when it is fit."""
    nb = json.loads(path.read_bytes())
    cells, faults = nb["cells"], []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    if path.stat().st_size > LARGEST:
        faults.append(f"{path.stat().st_size:,} bytes, more than {LARGEST:,}")
    if not cells or not re.match(rf"# {path.stem[:2]} \S", "".join(cells[0]["source"])):
        faults.append(f"the first cell does not begin with \"# {path.stem[:2]} …\"")
    if opens(path.stem) != "".join(re.findall(r"\n\n\*Opens in [^*]*\*", "".join(cells[0]["source"]))):
        faults.append("its head does not say how long it takes as opening.json has it")
    shows = nb["metadata"].pop("shows", {})
    if older := [name for name, seal in shows.items() if checkpoints.seal(notebooks.DATA / name) != seal]:
        faults.append(f"its outputs are of another {' and another '.join(older)} than came along; execute it again")
    if nb["metadata"] != METADATA:
        faults.append(f"notebook metadata other than a kernelspec and language_info as JupyterLab writes them: "
                     f"{nb['metadata']}")
    faults += _parameter_problems(path, [c for c, t in zip(cells, tags, strict=True) if "parameters" in t])
    if sum("navigation" in t for t in tags) != 1:
        faults.append("not exactly one cell tagged navigation")
    elif navigation(path) != "".join(next(c for c, t in zip(cells, tags, strict=True) if "navigation" in t)["source"]):
        faults.append("the links to the neighbours are out of date")
    for number, cell in enumerate(code, start=1):
        faults += [f"code cell {number}: {problem}" for problem in _cell_problems(number, cell)]
    return faults


def _parameter_problems(path: Path, tagged: list[dict]) -> list[str]:
    if len(tagged) != 1:
        return [f"{len(tagged)} cells tagged parameters instead of one"]
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    faults = [f"parameter line without type, literal and comment (one = only): {line}" for line in lines
             if not re.fullmatch(r"\w+: [\w\[\]]+ = [^#=]+  # [^=]+", line)]
    if missing := [name for name in COMMON if not any(line.startswith(f"{name}:") for line in lines)]:
        faults.append(f"parameters without {', '.join(missing)}")
    if f'"{path.stem}"' not in path.read_text("utf-8").replace('\\"', '"'):
        faults.append(f"no session is opened for \"{path.stem}\"")
    return faults


def _cell_problems(number: int, cell: dict) -> list[str]:
    lines = "".join(cell["source"]).splitlines()
    extra = set(cell["metadata"]) - {"tags"}
    faults = [f"metadata {', '.join(sorted(extra))}"] if extra else []
    if len(lines) > LONGEST:
        faults.append(f"{len(lines)} lines, more than {LONGEST}")
    if cell["execution_count"] != number:
        faults.append(f"execution count {cell['execution_count']} instead of {number}")
    if "injected-parameters" in cell["metadata"].get("tags", []):
        faults.append("papermill's injected parameters")
    if "nbval-check-output" in cell["metadata"].get("tags", []) and not cell["outputs"]:
        faults.append("checked, but without a stored output")
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            faults.append(f"a stored error: {output['ename']}")
        if "application/vnd.plotly.v1+json" in output.get("data", {}):
            faults.append("a stored figure without its picture, because no browser drew it; execute the notebook again")
        if WIDGET in output.get("data", {}):
            faults.append("a stored widget, which nobody can reopen")
        if "image/svg+xml" in output.get("data", {}):
            faults.append("a stored SVG, which is not drawn before somebody trusts the notebook; show it as a picture")
        if str(ROOT) in json.dumps(output):
            faults.append("an absolute path in its output")
    return faults
