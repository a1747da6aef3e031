"""What a run leaves for people: each executed notebook as a page, and an index of them that opens without network."""

import html
import json
import platform
from datetime import datetime
from pathlib import Path

from lib import WorkbookError, __version__, checkpoints
from lib.evaluation import rows

PLOTLY = "application/vnd.plotly.v1+json"
STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1d2733;max-width:1080px;margin:2.5rem auto}
body{padding:0 1.2rem}h1{font-size:1.7rem;margin:.2em 0}
h2{font-size:1.2rem;margin:2.2em 0 .4em;border-top:1px solid #dde3ea;padding-top:1.1em}
a{color:#0b62a8}table{border-collapse:collapse;font-size:.86rem;margin:.8em 0;display:block;overflow-x:auto}
table,th,td{border:0 solid #e6ebf0}th,td{padding:.28em .7em;border-bottom-width:1px;text-align:right;font-weight:400}
thead th{background:#f5f7fa;font-weight:600}tbody th{text-align:left;vertical-align:top;min-width:7em}
td:first-child,th:first-child{text-align:left}td{white-space:nowrap}img{max-width:100%}
pre{background:#f5f7fa;padding:.7em 1em;white-space:pre-wrap;font-size:.82rem}
.muted{color:#66748a}.failed{color:#b3261e}
details summary{cursor:pointer;color:#66748a}
"""


def cells(notebook: Path) -> list[dict]:
    """The cells of a notebook. Raises WorkbookError for a file that is none, or not a whole one."""
    try:
        return json.loads(notebook.read_bytes())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkbookError(f"{notebook} is not a whole notebook; fetch it again or run it again") from None


def title(notebook: Path) -> str:
    """The first heading of a notebook, without its number."""
    for cell in cells(notebook):
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line[2:].strip().lstrip("0123456789 ·.-—")
    return notebook.stem


def page(executed: Path) -> Path:
    """An executed notebook as an HTML file beside it that needs no network: code left out, Plotly's script in the run's
    folder."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, anchor_link_text="")
    name, notebook = title(executed), nbformat.read(executed, as_version=4)
    for data in (o["data"] for cell in notebook.cells for o in cell.get("outputs", ()) if PLOTLY in o.get("data", {})):
        data["text/html"] = _figure(data[PLOTLY])
    body, _ = exporter.from_notebook_node(notebook)
    target = executed.with_suffix(".html")
    head = '<script src="../plotly.min.js"></script><p><a href="../index.html">← all notebooks</a></p>'
    checkpoints.replace(target, _document(name, head + body).encode())
    return target


def write(folder: Path, jobs, seconds: float) -> Path:
    """`index.html` of a run: every notebook with its question, outcome and headline outputs, then the main numbers."""
    import torch
    from plotly.offline import get_plotlyjs

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    first = jobs[0].parameters if jobs else {}
    facts = (f"preset {first.get('preset')} · weights {first.get('weights')} · seed {first.get('seed')} · {device} · "
             f"torch {torch.__version__} · Python {platform.python_version()} · version {__version__} · "
             f"{datetime.now():%Y-%m-%d %H:%M} · {seconds:.0f} s")
    table = "".join(_row(job) for job in jobs)
    body = (f'<script>{get_plotlyjs()}</script><h1>The trade-off workbook</h1><p class="muted">{html.escape(facts)}</p>'
            '<table><thead><tr><th>notebook</th><th style="text-align:left">what it asks</th><th>outcome</th>'
            f"<th>seconds</th></tr></thead>{table}</table>"
            + "".join(_section(job) for job in jobs))
    if gather(folder):
        body += '<h2>All numbers</h2><p>Every number of this run, one a row: <a href="metrics.csv">metrics.csv</a>.</p>'
    target = folder / "index.html"
    checkpoints.replace(folder / "plotly.min.js", get_plotlyjs().encode())
    checkpoints.replace(target, _document("The trade-off workbook", body).encode())
    return target


def gather(folder: Path) -> bool:
    """`metrics.csv` of a run from the rows of all its notebooks; False where there are none."""
    header = ",".join(rows.COLUMNS).encode() + b"\n"
    tables = [path.read_bytes().splitlines(keepends=True) for path in sorted(folder.glob("*/metrics.csv"))]
    lines = [line for table in tables if table and table[0] == header for line in table[1:] if line.endswith(b"\n")]
    checkpoints.replace(folder / "metrics.csv", header + b"".join(lines))
    return bool(lines)


def _row(job) -> str:
    status, name = job.status, job.notebook.name
    outcome = html.escape(status.get("outcome", "not run"))
    told = f'<span class="{outcome}">{outcome}</span><br>{html.escape(status.get("message", ""))}'
    link = f'<a href="{name}/{name}.html">{name}</a>' if _page(job).exists() else name
    return (f'<tr><td>{link}</td><td style="text-align:left">'
            f"{html.escape(job.notebook.title)}</td><td>{told}</td><td>{status.get('seconds', 0):.0f}</td></tr>")


def _page(job) -> Path:
    return job.output.with_suffix(".html")


def _section(job) -> str:
    shown = headline(job.output) if _page(job).exists() else ""
    if not shown:
        return ""
    name = job.notebook.name
    return f'<h2>{html.escape(job.notebook.title)} <a href="{name}/{name}.html">→</a></h2>{shown}'


def headline(executed: Path) -> str:
    """The outputs of the cells tagged `headline`, as HTML with pictures inside."""
    parts = []
    for cell in cells(executed):
        if "headline" in cell["metadata"].get("tags", []):
            parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n".join(parts)


def _output(output: dict) -> str:
    """One output as HTML; what went to stderr and error messages are left out."""
    data = output.get("data", {})
    if output.get("name") == "stdout":
        data = {"text/plain": output["text"]}

    def text(mime):
        return "".join(data[mime])

    if PLOTLY in data:
        return _figure(data[PLOTLY])
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{text("image/png").strip()}">'
    if "text/html" in data:
        return text("text/html")
    if "text/markdown" in data:
        return f"<pre>{html.escape(text('text/markdown'))}</pre>"
    return f"<pre>{html.escape(text('text/plain'))}</pre>" if "text/plain" in data else ""


def _figure(plotly: dict) -> str:
    """A figure as HTML that the page's own Plotly script draws."""
    import plotly.io as pio

    config = {"displaylogo": False, "responsive": True}
    return pio.to_html(plotly, config, full_html=False, include_plotlyjs=False, validate=False)


def _document(name: str, body: str) -> str:
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(name)}</title><style>{STYLE}</style><body>{body}</body></html>")
