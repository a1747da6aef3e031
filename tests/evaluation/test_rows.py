"""The tidy table of results."""

import multiprocessing

import pytest

from lib import WorkbookError
from lib.evaluation import rows

ROW = {"experiment": "x", "metric": "clean_accuracy", "value": 0.5, "images": 10, "exit": "1", "seed": 0}


def write_many(path, writer):
    for i in range(40):
        rows.append(path, [{**ROW, "seed": writer, "value": i}, {**ROW, "seed": writer, "value": -i}])


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "metrics.csv"
    rows.append(path, [ROW])
    rows.append(path, [{**ROW, "metric": "cumulative_macs", "value": 1234567.25, "suite": "clean, main\nand more"}])
    table = rows.read(path)
    assert tuple(table.columns) == rows.COLUMNS
    assert table["value"].tolist() == [0.5, 1234567.25]
    assert table["suite"].tolist()[1] == "clean, main\nand more"
    assert table["epsilon"].isna().all() and table["exit"].tolist() == ["1", "1"]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "metrics.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, w)) for w in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    table = rows.read(path)
    assert len(table) == 4 * 80
    for _, part in table.groupby("seed"):
        assert part["value"].tolist() == [v for i in range(40) for v in (i, -i)]


def test_the_half_line_of_a_killed_writer_is_cut_off(tmp_path):
    path = tmp_path / "metrics.csv"
    rows.append(path, [ROW])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x,,,clea")
    rows.append(path, [ROW])
    assert path.read_bytes() == whole + whole.splitlines(keepends=True)[1]


def test_unknown_columns_and_rows_without_metric_are_refused(tmp_path):
    with pytest.raises(WorkbookError, match="no column colour"):
        rows.append(tmp_path / "metrics.csv", [{**ROW, "colour": 1}])
    with pytest.raises(WorkbookError, match="no metric"):
        rows.append(tmp_path / "metrics.csv", [{"value": 1}])
    assert not (tmp_path / "metrics.csv").exists()


def test_another_table_is_neither_read_nor_touched(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    for call in (lambda: rows.append(path, [ROW]), lambda: rows.read(path)):
        with pytest.raises(WorkbookError, match="not a table of results"):
            call()
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(WorkbookError, match="there are no results in"):
        rows.read(tmp_path / "missing.csv")
    path.write_text("")
    with pytest.raises(WorkbookError, match="not a table of results"):
        rows.read(path)
