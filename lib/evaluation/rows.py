"""Tidy results: one number per row, columns fixed from the start, appended safely by many runs at once."""

import csv
import fcntl
import io
import os
from pathlib import Path

import pandas

from lib import WorkbookError

COLUMNS = (
    "experiment", "model", "defence", "dataset", "data_variant", "split", "images", "metric", "value", "low", "high",
    "attack", "epsilon", "steps", "step_size", "attack_mode", "crafted_at", "evaluated_at", "exit", "suite",
    "cost_inputs", "threshold_source", "seed", "preset", "weights", "checkpoint", "device", "threads", "seconds",
    "version",
)  # fmt: skip


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


def append(path: Path | str, rows) -> None:
    """Add rows to a CSV file, making it with its header first. Writers in other processes wait for the lock.

    A half line left by a killed writer is cut off before anything is added. Raises WorkbookError when the file is some
    other table.
    """
    table, path = frame(rows), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_half_line(file)
        file.seek(0)
        header = file.readline().decode(errors="replace").strip()
        if header and header != ",".join(COLUMNS):
            raise WorkbookError(f"{path} is not a table of results of this version; move it away and run again")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not header:
            writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in row] for row in table.values.tolist())
        file.seek(0, os.SEEK_END)
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


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


def _cut_half_line(file) -> None:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
        end = content.rfind(b"\n") + 1
    file.seek(end)
