"""Tidy results: one number per row, columns fixed from the start, appended safely by many runs at once."""

import json
from pathlib import Path

import pandas

from lib import WorkbookError, checkpoints, locks
from lib.attacks.forms import paper_forms
from lib.evaluation.reading import Reading
from lib.evaluation.record import View
from lib.evaluation.stats import interval, wilson
from lib.operating_point import OperatingPoint

COLUMNS = (
    "experiment", "model", "defence", "dataset", "data_variant", "split", "images", "metric", "value", "low", "high",
    "attack", "epsilon", "steps", "step_size", "attack_mode", "crafted_at", "evaluated_at", "exit", "suite",
    "cost_inputs", "threshold_source", "seed", "preset", "weights", "checkpoint", "device", "threads", "seconds",
    "version",
)
FROM_META = ("defence", "dataset", "data_variant", "split", "checkpoint", "device", "threads", "seconds", "version",
             "seed")


def frame(rows) -> pandas.DataFrame:
    """`rows` (dicts) as a table with every column in order; what a row does not say is missing, never guessed.

    Raises WorkbookError on a column outside COLUMNS or a row without metric.
    """
    rows = list(rows)
    for row in rows:
        if unknown := set(row) - set(COLUMNS):
            raise WorkbookError(f"a result has no column {', '.join(sorted(unknown))}; see lib.evaluation.rows.COLUMNS")
        if not row.get("metric"):
            raise WorkbookError("a result row has no metric; name what was measured")
    return pandas.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def of(reading: Reading, **context) -> list[dict]:
    """Everything about one reading as tidy rows; `context` fills experiment, preset, weights, …

    Per view: clean_accuracy or robust_accuracy, routed (exit = "routed"; "main" where there is one exit) and at each
    exit alone; exit_share per exit.  Costs and savings of the routed decision on that view's images (cost_inputs), with
    one exit on clean images only.  Over the suite: paper_worst_case, union_accuracy, worst_draw_accuracy; where the
    strong suite was run at this very setting, strong_accuracy.
    """
    record, several = reading.record, reading.record.num_exits > 1
    base = {"model": record.model, "images": record.images, **{key: record.meta.get(key) for key in FROM_META},
            "evaluated_at": _text(reading.point), "threshold_source": reading.source, **context}
    last, result = "routed" if several else "main", []
    for called in reading.views:
        view, right = reading.view(called), reading.right(called)
        common = {**base, **_columns(view), "attack": called}
        accuracy = "robust_accuracy" if view.attacked else "clean_accuracy"
        result.append({**common, "metric": accuracy, **interval(right)._asdict(), "exit": last})
        for k, alone in enumerate(reading.alone(called) if several else (), start=1):
            share = float(reading.share(called)[k - 1])
            low, high = wilson(share * len(right), len(right))
            result.append({**common, "metric": accuracy, **interval(alone)._asdict(), "exit": str(k)})
            result.append({**common, "metric": "exit_share", "value": share, "low": low, "high": high, "exit": str(k),
                           "cost_inputs": called})
        for metric, plain in (("paper_mflops", "paper_mflops"), ("cumulative_macs", "trunk")):
            if several or not view.attacked:
                spent, spared = reading.cost(metric, called), "paper_saving" if metric == plain else "saving"
                result += [{**common, "metric": m, "value": v, "exit": last, "cost_inputs": called}
                           for m, v in ((metric, spent), (spared, 1 - spent / reading.plain(plain)))]
    over, threat = {**base, "exit": last}, next((reading.view(a).threat for a in reading.attacks), None)
    over |= {} if threat is None else {n: getattr(threat, n) for n in ("epsilon", "steps", "step_size")}
    if reading.paper_worst and several:
        result.append({**over, "metric": "paper_worst_case", **reading.measured("paper_worst")._asdict(),
                       "attack": reading.paper_worst, "suite": " ".join(paper_forms(record.num_exits))})
    for metric, what in (("union_accuracy", "union"), *((("worst_draw_accuracy", "worst"),) * (reading.draws > 1))):
        result.append({**over, "metric": metric, "suite": " + ".join(reading.suite),
                       **reading.measured(what)._asdict()})
    if reading.survived:
        result.append({**over, "metric": "strong_accuracy", **reading.measured("strong")._asdict(),
                       "images": record.strong.images, "suite": record.strong.meta["suite"]})
    return result


def _columns(view: View) -> dict:
    """What a view says of its row."""
    if not view.attacked:
        return {"seed": view.seed}
    return {"seed": view.seed, "attack_mode": view.mode, "crafted_at": _text(view.crafted_at),
            **{key: getattr(view.threat, key) for key in ("epsilon", "steps", "step_size")}}


def _text(point: OperatingPoint) -> str:
    return json.dumps(point.to_json())


def append(path: Path | str, rows) -> None:
    """Add rows to a CSV file, made with its header where there is none. Writers in other processes wait for the lock.

    A half line at its end is dropped. Raises WorkbookError when the file is some other table.
    """
    table, path = frame(rows), Path(path)
    with locks.beside(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = text[:text.rfind("\n") + 1]
        if kept and kept.splitlines()[0] != ",".join(COLUMNS):
            raise WorkbookError(f"{path} is not a table of results of this version; move it away and run again")
        checkpoints.replace(path, (kept + table.to_csv(index=False, header=not kept, lineterminator="\n")).encode())


def read(path: Path | str) -> pandas.DataFrame:
    """The table in `path`. Raises WorkbookError when it is missing or some other table."""
    try:
        table = pandas.read_csv(path, dtype={"images": "Int64", "checkpoint": str, "exit": str, "suite": str})
    except FileNotFoundError:
        raise WorkbookError(f"there are no results in {path}; run the experiment first") from None
    except ValueError as error:  # empty file, no columns, a text where a number belongs
        raise WorkbookError(f"{path} is not a table of results: {error}") from None
    if tuple(table.columns) != COLUMNS:
        raise WorkbookError(f"{path} is not a table of results of this version; move it away and run again")
    return table
