"""The jobs of a run, each in a process of its own: side by side, watched, tried again, stopped. And what they leave for
people: each executed notebook as a page, and an index of them that opens without network."""

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from lib import ROOT, WorkbookError, __version__, checkpoints
from lib.evaluation import rows
from lib.workbook import style
from lib.workbook.headless import FAILED, KILLED, Child
from lib.workbook.notebooks import cells, question

PLOTLY = "application/vnd.plotly.v1+json"
TITLE = "The trade-off workbook"
LOOK, FAREWELL = 0.1, 10.0  # seconds between looks at running notebooks; seconds to end in after the first Ctrl-C


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Attempt:
    """A job in a process of its own, which finds this checkout's lib first and holds `threads` cores (None: all)."""

    def __init__(self, job, threads: int | None, tries: int = 1):
        self.job, self.threads, self.tries, self.begun = job, threads, tries, time.monotonic()
        job.folder.mkdir(parents=True, exist_ok=True)
        for old in (job.folder / "status.json", *job.files):
            old.unlink(missing_ok=True)
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"WORKBOOK_LIVE": "0", "PYTHONPATH": os.pathsep.join(path)}
        if threads:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        with open(job.folder / "log.txt", "wb") as log:
            self.child = Child("lib.workbook.headless", str(job.notebook.path), str(job.output),
                               json.dumps(job.parameters), "child", env=environment, stdout=log, stderr=log)

    def result(self, patience: float) -> tuple[int, str] | None:
        """(exit code, the last line it said) once it has ended; it is ended after `patience` seconds without work."""
        code = self.child.process.poll()
        if code is None and self.child.idle() < patience:
            return None
        self.child.end()  # also what outlived it
        if code is None:
            return FAILED, f"stuck: it used no CPU and wrote nothing for {patience / 60:.3g} minutes, and was ended"
        lines = (self.job.folder / "log.txt").read_text("utf-8", "replace").split("\n")
        messages = [line.strip() for line in lines if line.strip()] or ["no message"]
        return KILLED if code < 0 else code, messages[-1]

    def finish(self, code: int, message: str) -> dict:
        """Write the job's page and status."""
        job = self.job
        try:
            page(job.output)
        except WorkbookError as error:  # not whole, as when the disk was full
            code, message = code or FAILED, message if code else str(error)
        status = {"outcome": "failed" if code else "done", "message": message if code else "", "digest": job.digest,
                  "fingerprint": job.fingerprint, "parameters": job.parameters,
                  "seconds": round(time.monotonic() - self.begun, 1)}
        checkpoints.replace(job.folder / "status.json", json.dumps(status, indent=1).encode())
        return status


def execute(jobs: list, at_once: int, threads: int | None, patience: float) -> list:
    """Run the jobs that have no finished result, `at_once` side by side, one line for each as it ends.

    threads: CPU cores of each; None = all. patience: seconds without work after which a notebook is ended.
    A killed kernel is tried once more. Returns the jobs that failed.
    """
    waiting, running, failed = list(jobs), [], []
    with tqdm(total=len(jobs), unit="notebook", disable=None) as bar:  # none where nobody watches

        def tell(job, status: dict) -> None:
            bar.update()
            message = f"  {status['message']}" if status["message"] else ""
            bar.write(f"[{len(jobs) - len(waiting) - len(running)}/{len(jobs)}] {job.notebook.name:32} "
                      f"{status['outcome']:7} {status['seconds']:5.0f} s{message}")
            sys.stdout.flush()

        try:
            while waiting or running:
                while waiting and len(running) < at_once and not (running and waiting[0].last):
                    job = waiting.pop(0)
                    if job.kept:
                        tell(job, job.status | {"outcome": "kept"})
                    else:
                        running.append(Attempt(job, threads))
                time.sleep(LOOK)
                for attempt in list(running):
                    if (result := attempt.result(patience)) is None:
                        continue
                    running.remove(attempt)
                    if result[0] == KILLED and attempt.tries == 1:
                        running.append(Attempt(attempt.job, threads, tries=2))
                        continue
                    status = attempt.finish(*result)
                    failed += [attempt.job] if status["outcome"] == "failed" else []
                    tell(attempt.job, status)
        except KeyboardInterrupt:
            farewell(running)
            raise
        finally:
            for attempt in running:
                attempt.child.end()
    return failed


def farewell(running: list[Attempt]) -> None:
    """Let trainings save and cells end; whoever presses Ctrl-C again does not wait for that."""
    print("stopping: trainings save what they have (Ctrl-C again ends at once)", file=sys.stderr)
    until = time.monotonic() + FAREWELL
    for attempt in running:
        attempt.child.tell(b"stop")
    while time.monotonic() < until and any(attempt.child.process.poll() is None for attempt in running):
        time.sleep(LOOK)


# What they leave.


def page(executed: Path) -> Path:
    """An executed notebook as an HTML file beside it that needs no network: code left out, Plotly's script in the run's
    folder."""
    return _write(executed.with_suffix(".html"), "notebook.html", title=question(executed), outputs=_outputs(executed))


def headline(executed: Path) -> str:
    """The outputs of the cells tagged `headline`, as HTML with pictures inside."""
    return _outputs(executed, lambda cell: "headline" in cell.metadata.get("tags", []))


def index(folder: Path, jobs, seconds: float) -> Path:
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
            "headline": headline(job.output) if executed else "",
            "explorer": f"{name}/{style.EXPLORER}" if (job.folder / style.EXPLORER).exists() else ""}


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
