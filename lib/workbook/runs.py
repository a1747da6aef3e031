"""The whole workbook, headless: chosen notebooks through papermill into one folder, with one table and an index page.

    data/runs/<name>/          index.html, metrics.csv, networks/, run.json (what the run was asked for)
    data/runs/<name>/NN_name/  NN_name.ipynb and .html as executed, metrics.csv, status.json, log.txt

A run with the name of an earlier one continues it: what finished with the same code, notebook and parameters is kept,
and trainings resume where they stopped. One process at a time owns the folder; each notebook writes rows of its own,
and the run's table is made of them, so that no number can stand there twice.
"""

import difflib
import functools
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas
import torch
from plotly.offline import get_plotlyjs

from lib import ATLASES, CHECKPOINTS, ROOT, RUNS, WorkbookError, __version__, checkpoints, data, locks, writable
from lib.evaluation import recording, rows
from lib.models import zoo
from lib.training import recipes, timing
from lib.workbook import notebooks, once_for_all, session, style
from lib.workbook import parameters as checks
from lib.workbook.headless import cores, execute

NOTEBOOKS = notebooks.FOLDER
NEEDS = Path(__file__).with_name("trainings.csv")  # what each trains at full size
MOST_AT_ONCE = 4  # notebooks side by side on CPUs, unless told: small networks gain little from more threads each


@functools.cache
def code() -> str:
    """What every notebook's numbers depend on: this package and the networks and records that came along."""
    total = hashlib.sha256()
    for path in sorted([*(ROOT / "lib").rglob("*.py"), *CHECKPOINTS.rglob("*"), *ATLASES.rglob("*")]):
        total.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return total.hexdigest()


@dataclass(frozen=True)
class Job:
    """One notebook of a run with its parameters. `digest` says whether a finished result still holds."""

    path: Path
    folder: Path
    parameters: dict

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def output(self) -> Path:
        return self.folder / self.path.name

    @property
    def status(self) -> dict:
        return read_json(self.folder / "status.json")

    @property
    def digest(self) -> str:
        """Over what the notebook says (not its stored outputs), its parameters and the code."""
        sources = [cell["source"] for cell in notebooks.cells(self.path)]
        inputs = json.dumps([sources, self.parameters, code()], sort_keys=True)
        return hashlib.sha256(inputs.encode()).hexdigest()[:16]

    @property
    def files(self) -> list[Path]:
        """What the notebook leaves: itself executed, its page, its rows, its explorer's page."""
        more = [self.folder / name for name in ("metrics.csv", style.EXPLORER)]
        return [self.output, self.output.with_suffix(".html"), *more]

    @property
    def fingerprint(self) -> str:
        """Over these files: a finished notebook that lost or broke any of them runs again."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "" for path in self.files]
        return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]

    @property
    def last(self) -> bool:
        """Whether it reads what the others of its run wrote (90 and up): begun when they have ended, and never kept."""
        return self.name >= "9"

    @property
    def kept(self) -> bool:
        status = self.status
        return not self.last and [status.get(name) for name in ("outcome", "digest", "fingerprint")] == [
            "done", self.digest, self.fingerprint]

    def finish(self, code: int, message: str, seconds: float) -> dict:
        """Write its page and status, by its process's exit code and last words."""
        try:
            notebooks.page(self.output)
        except WorkbookError as error:  # not whole, as when the disk was full
            code, message = code or 1, message if code else str(error)
        status = {"outcome": "failed" if code else "done", "message": message if code else "", "digest": self.digest,
                  "fingerprint": self.fingerprint, "parameters": self.parameters, "seconds": seconds}
        checkpoints.replace(self.folder / "status.json", json.dumps(status, indent=1).encode())
        return status


def read_json(path: Path) -> dict:
    """What a run noted in `path`; {} where there is nothing that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def run(args) -> int:
    """`python3 -m lib run`: plan, refuse what cannot work, execute, write the index; 1 if a notebook failed."""
    chosen = choose(args.only)
    if args.list:
        for path in chosen:
            print(f"{path.stem:32} {notebooks.question(path)}")
        return 0
    asked = [*args.parameters, *([["dataset", args.dataset]] if args.dataset else [])]
    if twice := [name for name, _ in asked if [other for other, _ in asked].count(name) > 1]:
        raise WorkbookError(f"{twice[0]} is given twice; which of them is meant?")
    given = dict(asked)
    settings = dict(preset=args.preset, weights=args.weights, seed=args.seed)
    settings |= {"dataset": given["dataset"]} if "dataset" in given else {}
    name = args.name if args.name is not None else re.sub(r"[^\w.+-]", "_", "-".join(map(str, settings.values())))
    folder = writable(RUNS / checked_name(name), "name another place with --runs or WORKBOOK_RUNS")
    jobs = plan(chosen, folder, args.preset, args.weights, args.seed, given)
    if args.allow_cpu:
        os.environ["WORKBOOK_ALLOW_CPU"] = "1"
    device = checks.pick_device()
    if args.weights == "shipped" and args.dry_run:
        print("with shipped weights only what did not come along is trained, at size quick, in seconds")
    elif args.weights == "train" and (args.dry_run or args.preset == "paper"):
        table = bill(jobs, functools.partial(timing.pass_seconds, device=device))
        print(f"{table.to_string(float_format='{:,.1f}'.format)}\nhours of this {device}"
              f"{' (of one core)' * (device == 'cpu')}: measured steps of each backbone on clean images, times the "
              "passes of the attacks; noise, FiLM and validation come on top")
    if args.dry_run:
        return 0
    checks.refuse_paper_on_cpu(args.preset, args.weights, device)
    at_once = args.jobs or (1 if device == "cuda" else min(MOST_AT_ONCE, cores()))
    threads, begun = max(1, cores() // at_once) if at_once > 1 else None, time.monotonic()
    with locks.held(folder / ".lock", f"another run goes on in {folder}; wait for it, or give this one another --name"):
        try:
            note_request(folder, settings, threads)
            failed = execute(jobs, at_once, threads, 60 * args.patience)
            page = index(folder, jobs, seconds=time.monotonic() - begun)
        except OSError as error:  # such as a full disk where a log begins
            raise WorkbookError(f"{error.filename or folder} could not be written ({error.strerror})") from error
    shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    print(f"{len(jobs) - len(failed)} of {len(jobs)} notebooks done in {time.monotonic() - begun:.0f} s; see {shown}")
    for job in failed:
        print(f"  failed: {job.name}: {job.status['message']}", file=sys.stderr)
    return 1 if failed else 0


def bill(jobs: list[Job], pace: Callable) -> pandas.DataFrame:
    """What jobs train and record, a line each, with hours and GB to keep, before anything starts.

    `trainings.csv` says what a notebook trains at full size; a training that several need counts where it is first.
    pace: seconds per image and forward pass of a recipe's backbone, asked once for each; NaN where it is not known.
    """
    needs, lines, paces, known = pandas.read_csv(NEEDS), {}, {}, set()
    for job in jobs:
        preset, line = job.parameters["preset"], dict.fromkeys(("trainings", "hours", "to record: hours", "GB"), 0.0)
        for need in needs[needs.notebook == job.name].itertuples():
            given = need.dataset if need.network.endswith("smallcnn") else job.parameters.get("dataset", need.dataset)
            train, test = data.SOURCES[given].sizes if given in data.SOURCES else (1_097, 500)
            for method in need.methods.split():
                recipe = recipes.compose(need.network, given, method, "glance" if preset == "quick" else preset)
                new = need.times - (recipe.name in known)
                known.add(recipe.name)
                if new:
                    shape = json.dumps([recipe.network.get(key) for key in timing.SHAPE])
                    paces[shape] = hours = paces.get(shape) or pace(recipe) / 3600
                    network, images = zoo.build(**recipe.network), job.parameters.get("images") or test
                    passes, stored = recorded(network, method, given, preset)
                    steps = recipe.total(train) * recipe.batch_size * timing.work(recipe, network)
                    every = (1, steps * hours, images * passes * hours,
                             (4 * network.weight_count() + images * stored) / 1e9)
                    line = {key: line[key] + new * value for key, value in zip(line, every, strict=True)}
        lines[job.name] = line
    table = pandas.DataFrame(lines).T
    table.loc["in all"] = table.sum()
    return table


def recorded(network, method: str, dataset: str, preset: str) -> tuple[float, float]:
    """(passes, bytes) per image of a network's record."""
    threat, draws = session.customary(recipes.described(dataset)), 1
    if once_for_all.at_points(method):
        views, draws = once_for_all.views(network, threat, preset), once_for_all.SIZES[preset]["draws"]
    else:
        views = recording.suite(network, threat)
    return (sum(draws + (2 * v.threat.steps * v.threat.draws if v.attacked else 0) for v in views),
            len(views) * network.num_exits * (6 + 2 * network.classes))


def note_request(folder: Path, settings: dict, threads: int | None) -> None:
    """Note what a run is asked for. Raises WorkbookError where the folder holds another run."""
    before = read_json(folder / "run.json") or dict(asked=settings, threads=threads)
    if before["asked"] != settings:
        others = ", ".join(f"{name} {value}" for name, value in before["asked"].items())
        raise WorkbookError(f"{folder.name} is the name of a run with {others}; give this one another --name")
    if before["threads"] != threads:
        print(f"this run began with {before['threads'] or 'all'} threads a notebook and goes on with "
              f"{threads or 'all'}: a training that resumes is then not bit for bit what it would have become")
    checkpoints.replace(folder / "run.json", json.dumps(dict(asked=settings, threads=threads)).encode())


def checked_name(name: str) -> str:
    """Raises WorkbookError for a name that is no folder of its own below data/runs."""
    if not re.fullmatch(r"[\w][\w.+-]*", name) or len(name.encode()) > 200:
        raise WorkbookError(f"'{name:.50}' cannot name a run; use letters, digits, dot, plus, minus and underscore, at "
                            "most 200")
    return name


def choose(only: tuple[str, ...] | None = None) -> list[Path]:
    """The notebooks in their order; `only` names some by number or name, and an unknown one is a WorkbookError."""
    paths = notebooks.paths(NOTEBOOKS)
    if only is not None:
        chosen = []
        for name in only:
            matches = [p for p in paths if name in (p.stem, p.name, p.stem[:2])]
            if not matches:
                near = difflib.get_close_matches(name, [p.stem for p in paths], 1, 0.4)
                hint = f"did you mean {near[0]}?" if near else "see run --list"
                raise WorkbookError(f"there is no notebook '{name}'; {hint}")
            chosen += matches
        paths = [p for p in paths if p in chosen]
    return paths


def plan(chosen: list[Path], folder: Path, preset: str, weights: str, seed: int, given: dict) -> list[Job]:
    """One job per notebook. A parameter goes to the notebooks that have it.

    Raises WorkbookError, before anything starts, for a parameter that none of them has or a value of the wrong type
    (papermill itself would let both pass).
    """
    declared = {path: notebooks.declared(path) for path in chosen}
    known = set().union(*declared.values())
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
    for path, kinds in declared.items():
        own = {name: checks.coerce(name, value, kinds[name]) for name, value in given.items() if name in kinds}
        where = folder / path.stem
        jobs.append(Job(path, where, dict(preset=preset, weights=weights, seed=seed, run_dir=str(where)) | own))
    return jobs


def index(folder: Path, jobs: list[Job], seconds: float) -> Path:
    """`index.html` of a run: every notebook with its question, outcome and headline outputs, then the main numbers."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    facts = [f"{name} {jobs[0].parameters[name]}" for name in ("preset", "weights", "seed") if jobs] + [
        device, f"torch {torch.__version__}", f"Python {platform.python_version()}", f"version {__version__}",
        f"{datetime.now():%Y-%m-%d %H:%M}", f"{seconds:.0f} s"]
    checkpoints.replace(folder / "plotly.min.js", get_plotlyjs().encode())
    shown = style.render("index.html", title="The trade-off workbook", facts=facts, plotly=get_plotlyjs(),
                         jobs=[_line(job) for job in jobs], numbers=gather(folder))
    checkpoints.replace(folder / "index.html", shown.encode())
    return folder / "index.html"


def _line(job: Job) -> dict:
    """What the index says of a job."""
    name, executed = job.name, job.output.with_suffix(".html").exists()
    return {"outcome": "not run", "seconds": 0, "message": "", **job.status, "name": name, "executed": executed,
            "page": f"{name}/{name}.html", "question": notebooks.question(job.path),
            "headline": notebooks.headline(job.output) if executed else "",
            "explorer": f"{name}/{style.EXPLORER}" if (job.folder / style.EXPLORER).exists() else ""}


def gather(folder: Path) -> bool:
    """`metrics.csv` of a run from the rows of all its notebooks; False where there are none."""
    header = ",".join(rows.COLUMNS).encode() + b"\n"
    tables = [path.read_bytes().splitlines(keepends=True) for path in sorted(folder.glob("*/metrics.csv"))]
    lines = [line for table in tables if table and table[0] == header for line in table[1:] if line.endswith(b"\n")]
    checkpoints.replace(folder / "metrics.csv", header + b"".join(lines))
    return bool(lines)
