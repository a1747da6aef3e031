"""The whole workbook, headless: chosen notebooks through papermill into one folder, with one table and an index page.

    data/runs/<name>/          index.html, metrics.csv, networks/
    data/runs/<name>/NN_name/  NN_name.ipynb and .html as executed, status.json, log.txt

A run with the name of an earlier one continues it: what finished with the same notebook and parameters is kept, and
trainings resume where they stopped.
"""

import ast
import csv
import difflib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lib import ROOT, RUNS, WorkbookError, __version__, checkpoints, writable
from lib.workbook import parameters as checks
from lib.workbook import report
from lib.workbook.headless import KILLED

NOTEBOOKS = ROOT / "notebooks"
MOST_AT_ONCE = 4  # notebooks side by side on CPUs, unless told: small networks gain little from more threads each


@dataclass(frozen=True)
class Notebook:
    """A notebook as a run sees it: its file and what its parameters cell declares, name -> type."""

    path: Path
    parameters: dict[str, type]

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        """Raises WorkbookError when the notebook has no cell tagged `parameters` (papermill would go on without)."""
        cells = [c for c in json.loads(path.read_bytes())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        if not cells:
            raise WorkbookError(f"{path.name} has no cell tagged parameters; tag the one that holds preset, weights, …")
        declared = [line for line in ast.parse("".join(cells[0]["source"])).body if isinstance(line, ast.AnnAssign)]
        kinds = {"str": str, "int": int, "float": float, "bool": bool, "list": list}
        return cls(path, {line.target.id: eval(ast.unparse(line.annotation), {"__builtins__": kinds})
                          for line in declared})

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        return report.title(self.path)


@dataclass(frozen=True)
class Job:
    """One notebook of a run with its parameters. `digest` says whether a finished result still holds."""

    notebook: Notebook
    folder: Path
    parameters: dict

    @property
    def output(self) -> Path:
        return self.folder / self.notebook.path.name

    @property
    def status(self) -> dict:
        file = self.folder / "status.json"
        return json.loads(file.read_bytes()) if file.exists() else {}

    @property
    def digest(self) -> str:
        """Over what the notebook says (not its stored outputs), its parameters and this version."""
        cells = json.loads(self.notebook.path.read_bytes())["cells"]
        told = json.dumps([[c["source"] for c in cells], self.parameters, __version__], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def main(args) -> int:
    """`python3 -m lib run`: plan, refuse what cannot work, execute, write the index; 1 if a notebook failed."""
    notebooks = choose(args.only)
    if args.list:
        for notebook in notebooks:
            print(f"{notebook.name:32} {notebook.title}")
        return 0
    folder = writable(RUNS / checked_name(args.name or f"{args.preset}-{args.weights}-{args.seed}"),
                      "name another place with --runs or WORKBOOK_RUNS")
    given = dict(args.parameters) | ({"dataset": args.dataset} if args.dataset else {})
    jobs = plan(notebooks, folder, args.preset, args.weights, args.seed, given)
    if args.allow_cpu:
        os.environ["WORKBOOK_ALLOW_CPU"] = "1"
    device = checks.pick_device()
    checks.refuse_paper_on_cpu(args.preset, args.weights, device)
    begun = time.monotonic()
    failed = execute(jobs, args.jobs or (1 if device == "cuda" else min(MOST_AT_ONCE, cores())))
    page = report.write(folder, jobs, seconds=time.monotonic() - begun)
    shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    print(f"{len(jobs) - len(failed)} of {len(jobs)} notebooks done in {time.monotonic() - begun:.0f} s; see {shown}")
    for job in failed:
        print(f"  failed: {job.notebook.name}: {job.status['message']}", file=sys.stderr)
    return 1 if failed else 0


def checked_name(name: str) -> str:
    """Raises WorkbookError for a name that is no folder of its own below data/runs."""
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise WorkbookError(f"'{name}' cannot name a run; use letters, digits, dot, plus, minus and underscore")
    return name


def choose(only: tuple[str, ...] | None = None, folder: Path | None = None) -> list[Notebook]:
    """The notebooks in their order; `only` names some by number or name, and an unknown one is a WorkbookError."""
    paths = sorted((folder or NOTEBOOKS).glob("[0-9][0-9]_*.ipynb"))
    if only is not None:
        chosen = []
        for asked in only:
            found = [p for p in paths if asked in (p.stem, p.name, p.stem[:2])]
            if not found:
                near = difflib.get_close_matches(asked, [p.stem for p in paths], 1, 0.4)
                hint = f"did you mean {near[0]}?" if near else "see run --list"
                raise WorkbookError(f"there is no notebook '{asked}'; {hint}")
            chosen += found
        paths = [p for p in paths if p in chosen]
    return [Notebook.read(path) for path in paths]


def plan(notebooks: list[Notebook], folder: Path, preset: str, weights: str, seed: int, given: dict) -> list[Job]:
    """One job per notebook. A parameter goes to the notebooks that have it.

    Raises WorkbookError, before anything starts, for a parameter that none of them has or a value of the wrong type
    (papermill itself would let both pass).
    """
    known = {name for notebook in notebooks for name in notebook.parameters}
    for name in given:
        if name in checks.COMMON:
            raise WorkbookError(f"{name} is not set with -p; use --{'name' if name == 'run_dir' else name}")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            own = sorted(known - set(checks.COMMON))
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise WorkbookError(f"no chosen notebook has a parameter '{name}'{hint}; they have "
                                f"{', '.join(own) or 'none of their own'}")
    jobs = []
    for notebook in notebooks:
        own = {name: checks.coerce(name, value, notebook.parameters[name])
               for name, value in given.items() if name in notebook.parameters}
        where = folder / notebook.name
        jobs.append(Job(notebook, where, dict(preset=preset, weights=weights, seed=seed, run_dir=str(where)) | own))
    return jobs


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def execute(jobs: list[Job], at_once: int = 1) -> list[Job]:
    """Run the jobs, `at_once` side by side, one line for each as it ends; returns those that failed."""
    failed, done = [], 0
    bar = tqdm(total=len(jobs), unit="notebook", disable=None)  # none where nobody watches
    with ThreadPoolExecutor(at_once) as pool, bar:
        threads = max(1, cores() // at_once) if at_once > 1 else None
        running = {pool.submit(execute_one, job, threads): job for job in jobs}
        try:
            for future in as_completed(running):
                job, done = running[future], done + 1
                status = future.result()
                said = f"  {status['message']}" if status["message"] else ""
                bar.write(f"[{done}/{len(jobs)}] {job.notebook.name:32} {status['outcome']:7} "
                          f"{status['seconds']:5.0f} s{said}")
                bar.update()
                sys.stdout.flush()
                if status["outcome"] == "failed":
                    failed.append(job)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def execute_one(job: Job, threads: int | None = None) -> dict:
    """Execute one job unless its finished result is there; a killed kernel is tried once more.

    threads: CPU cores it may use; None = all.
    """
    before = job.status
    if before.get("outcome") == "done" and before.get("digest") == job.digest and job.output.exists():
        return before | {"outcome": "kept"}
    job.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for _attempt in range(2):
        forget(job)
        code, message = child(job, threads)
        if code != KILLED:
            break
    status = {"outcome": "failed" if code else "done", "message": message if code else "", "digest": job.digest,
              "seconds": round(time.monotonic() - begun, 1), "parameters": job.parameters}
    if job.output.exists():
        report.page(job.output)
    checkpoints.replace(job.folder / "status.json", json.dumps(status, indent=1).encode())
    return status


def forget(job: Job) -> None:
    """Take the rows of an earlier attempt out of the run's table, so that no number stands there twice."""
    path = job.folder.parent / "metrics.csv"
    if not path.exists():
        return
    with open(path, "r+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        header, *lines = csv.reader(file)
        kept = [line for line in lines if line[0] != job.notebook.name]
        file.seek(0)
        file.truncate()
        csv.writer(file, lineterminator="\n").writerows([header, *kept])


def child(job: Job, threads: int | None = None) -> tuple[int, str]:
    """(exit code, last line it said) of the notebook in its own process, which finds this checkout's lib first."""
    outside = os.environ.get("PYTHONPATH")
    environment = os.environ | {"WORKBOOK_LIVE": "0",
                                "PYTHONPATH": os.pathsep.join([str(ROOT)] + ([outside] if outside else []))}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = [sys.executable, "-m", "lib.workbook.headless", str(job.notebook.path), str(job.output),
               json.dumps(job.parameters)]
    with open(job.folder / "log.txt", "w+", encoding="utf-8", errors="replace") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=ROOT).returncode
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    if code < 0:
        code = KILLED
    return code, lines[-1] if lines else "no message"
