"""What a run leaves for people: each executed notebook as a page, and an index of them that opens without network."""

import functools
import platform
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from lib import __version__, checkpoints
from lib.evaluation import rows
from lib.workbook import style
from lib.workbook.notebooks import cells, question

PLOTLY = "application/vnd.plotly.v1+json"
TITLE = "The trade-off workbook"


def page(executed: Path) -> Path:
    """An executed notebook as an HTML file beside it that needs no network: code left out, Plotly's script in the run's
    folder."""
    return _write(executed.with_suffix(".html"), "notebook.html", title=question(executed), outputs=_outputs(executed))


def headline(executed: Path) -> str:
    """The outputs of the cells tagged `headline`, as HTML with pictures inside."""
    return _outputs(executed, lambda cell: "headline" in cell.metadata.get("tags", []))


def write(folder: Path, jobs, seconds: float) -> Path:
    """`index.html` of a run: every notebook with its question, outcome and headline outputs, then the main numbers."""
    import torch
    from plotly.offline import get_plotlyjs

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    facts = [f"{name} {jobs[0].parameters[name]}" for name in ("preset", "weights", "seed") if jobs] + [
        device, f"torch {torch.__version__}", f"Python {platform.python_version()}", f"version {__version__}",
        f"{datetime.now():%Y-%m-%d %H:%M}", f"{seconds:.0f} s"]
    checkpoints.replace(folder / "plotly.min.js", get_plotlyjs().encode())
    return _write(folder / "index.html", "index.html", title=TITLE, facts=facts, plotly=get_plotlyjs(),
                  jobs=[_line(job) for job in jobs], numbers=gather(folder))


def _line(job) -> dict:
    """What the index says of a job."""
    name, executed = job.notebook.name, job.output.with_suffix(".html").exists()
    return {"outcome": "not run", "seconds": 0, "message": "", **job.status, "name": name, "executed": executed,
            "page": f"{name}/{name}.html", "question": job.notebook.title,
            "headline": headline(job.output) if executed else ""}


def gather(folder: Path) -> bool:
    """`metrics.csv` of a run from the rows of all its notebooks; False where there are none."""
    header = ",".join(rows.COLUMNS).encode() + b"\n"
    tables = [path.read_bytes().splitlines(keepends=True) for path in sorted(folder.glob("*/metrics.csv"))]
    lines = [line for table in tables if table and table[0] == header for line in table[1:] if line.endswith(b"\n")]
    checkpoints.replace(folder / "metrics.csv", header + b"".join(lines))
    return bool(lines)


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, anchor_link_text="")


def _outputs(executed: Path, chosen: Callable = lambda cell: True) -> str:
    """Texts and outputs of the chosen cells as HTML, warnings left out; the page's own Plotly script draws figures."""
    import nbformat
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


def _write(target: Path, template: str, **values) -> Path:
    checkpoints.replace(target, style.render(template, **values).encode())
    return target
