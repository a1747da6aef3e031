"""The README's tables are the ones its own data give, and so are the numbers in its sentences."""

import json
import math
import re
from collections import Counter

from lib import ATLASES, ROOT
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import readme
from lib.workbook.published import suited

KNOBS = "cheap_resnet38-cifar10_jpeg-float_slim-laptop"


def test_the_tables_of_the_readme_are_current():
    text = readme.README.read_text()
    assert readme.current(text) == text


def test_no_name_of_a_record_is_markup(monkeypatch):
    monkeypatch.setattr(readme, "results", lambda: "| <img src=x onerror=alert(1)> <!-- end of results --> |")
    assert "| &lt;img src=x onerror=alert(1)> &lt;!-- end of results --> |" in readme.current(readme.README.read_text())


def test_every_table_and_figure_of_both_papers_is_listed_and_none_is_claimed_that_is_not_there():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.coverage().splitlines()[2:]]
    assert Counter(row[0].split(",")[0] for row in rows) == {"Triple Wins": 12, "FLOAT": 20}
    assert all(cell for row in rows for cell in row) and len({row[0] for row in rows}) == 32
    for item, _, link, *_ in rows:
        kind, number = re.search(r"(Table|Fig|Algorithm)\.? (\d+)", item).groups()
        if link != "not here" and kind != "Algorithm":
            path = ROOT / re.search(r"\((.*)\)", link)[1]
            text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"])
            named = [set(re.findall(r"\d+", said)) | {str(n) for a, b in re.findall(r"(\d+) to (\d+)", said)
                                                      for n in range(int(a), int(b))}
                     for said in re.findall(rf"{kind}s?\.? ((?:\d+\w?(?:, | and | to )?)+)", text)]
            assert any(number in numbers for numbers in named), f"{path.name} does not speak of {item}"


def test_where_the_workbook_differs_is_said_line_by_line():
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.differences().splitlines()]
    assert {len(line) for line in lines} == {5} and all(cell for line in lines for cell in line)
    about = "\n".join(" ".join(line) for line in lines)
    for what in ("which weights are shown", "45,000", "loss of Standard", "entropy", "appendix C", "26,032",
                 "weight decay of α"):
        assert what in about


def test_what_is_said_of_the_network_with_every_knob_is_in_its_record():
    record = Record.load(ATLASES / f"{KNOBS}.safetensors")

    def at(lambda_n, width, thresholds=(-math.inf,) * 6):
        return read(record, OperatingPoint(noise=lambda_n, batch_norm=lambda_n, width=width), thresholds)

    def percent(number):
        return f"{100 * number.value:.1f}"

    accurate, robust, narrow = at(0.0, 1.0), at(1.0, 1.0), at(1.0, 0.5)
    found = [percent(reading.measured(what)) for reading in (accurate, robust, narrow) for what in ("clean", "union")]
    said = re.search(r"One ResNet-38 trained once.*?\[00\]", readme.README.read_text(), re.DOTALL)[0]
    numbers = re.findall(r"\d+\.\d", said)
    assert found == ["86.4", "0.0", "65.5", "34.7", "59.7", "29.6"]
    assert numbers == ["86.4", "65.5", "34.7", "29.0", "40.8", "59.7", "29.6", "66.0", "32.8", "27.3", "38.8"]
    control = read(Record.load(ATLASES / f"{KNOBS.replace('float_slim', 'dual_bn_slim')}.safetensors"),
                   OperatingPoint(batch_norm=1.0, width=1.0), (-math.inf,) * 6)
    assert [percent(control.measured(what)) for what in ("clean", "union")] == numbers[-4:-2]
    union = robust.measured("union")
    assert (f"{100 * union.low:.1f}", f"{100 * union.high:.1f}") == ("29.0", "40.8")
    assert round(narrow.cost("cumulative_macs") / robust.cost("cumulative_macs"), 2) == 0.25

    losses = {what: round(100 * (late.measured(what).value - early.measured(what).value)) for what, late, early in (
        ("clean", accurate, at(0.0, 1.0, "calibrated")), ("union", robust, at(1.0, 1.0, "calibrated")))}
    assert losses == {"clean": 2, "union": 6} and record.images == 250
    assert round(at(0.0, 1.0, "calibrated").measured("saving").value, 2) == 0.38
    assert "86.4 % (81.6–90.1)" in (ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")


def test_what_is_said_of_exits_against_none_is_in_their_records():
    exits, plain = (read(record, thresholds=suited(record)) for record in (
        Record.load(ATLASES / f"{name}-cifar10_jpeg-{defence}-laptop.safetensors") for name, defence in (
            ("rdi_resnet38", "max_average"), ("resnet38", "main"))))
    said = re.search(r"On one schedule RDI-ResNet38.*?\[12\]", readme.README.read_text(), re.DOTALL)[0]

    def percent(quantity, digits=1):
        return [f"{100 * found.measured(quantity).value:.{digits}f}" for found in (exits, plain)]

    assert [found.robust for found in (exits, plain)] == ["strong", "strong"]
    assert "at most {} % (8–21) of 100".format(percent("strong", 0)[0]) in said
    assert "at most {} % (18–35), at {} and {} %".format(percent("strong", 0)[1], *percent("clean")) in said
    assert "{} and {} %. One training".format(*percent("paper_worst")) in said
    assert f"saves {100 * exits.measured('saving').value:.1f} %" in said
