"""The page without a kernel, as a file: what it holds, what it refuses, and that no text of a record acts in it."""

import base64
import json
import re

import numpy as np
import pytest

from lib import ATLASES, WorkbookError, __main__
from lib.evaluation import gates
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import page
from tests.helpers.made_record import made

DIGITS = ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors"
SCRIPT = "</script><script>window.stolen = 1</script>"


def held(path) -> dict:
    """What the page's own script reads."""
    found = re.findall(r'<script type="application/json" id="record">(.*?)</script>', path.read_text("utf-8"), re.S)
    assert len(found) == 1
    return json.loads(found[0])


def unpacked(text: str, kind) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_it_holds_the_records_outcomes_bit_for_bit(tmp_path):
    record = Record.load(DIGITS)
    told = held(page.write(record, tmp_path / "page.html"))
    for decision in ("entropy", "patience"):
        held_there, by = told["decisions"][decision], gates.by(record, decision)
        assert (unpacked(held_there["right"], np.uint8) == by.right.ravel()).all()
        assert (unpacked(held_there["scores"], "<f4") == by.entropy[:, :-1].ravel()).all()
    assert list(told["decisions"]) == ["entropy", "patience"]
    [point] = told["decisions"]["entropy"]["points"]
    assert OperatingPoint.from_json(point["point"]) == record.points[0]
    assert point["suite"] == read(record, thresholds="calibrated").suite
    assert point["sources"]["equal share"] == list(record.thresholds_of("calibrated"))


def test_no_text_of_a_record_acts_in_it(tmp_path):
    record = made(("clean", "main"), np.zeros((2, 3, 20)), np.ones((2, 3, 20)), np.arange(20) % 10, dataset=SCRIPT,
                  data_variant=SCRIPT, defence=SCRIPT, classes=[SCRIPT] * 10)
    path = page.write(record, tmp_path / "page.html")
    assert SCRIPT not in path.read_text("utf-8") and held(path)["classes"] == [SCRIPT] * 10


def test_it_asks_for_nothing_from_elsewhere(tmp_path):
    text = page.write(Record.load(DIGITS), tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)=|@import|url\((?!\$\{R\.pictures\})|fetch\(""", text)
    assert {url for url in re.findall(r"https?://[^\"'\s]+", text)} <= {"http://www.w3.org/2000/svg"}


def test_what_it_cannot_show_is_refused_and_nothing_written(tmp_path, monkeypatch):
    record = Record.load(DIGITS)
    with pytest.raises(WorkbookError, match="no clean images"):
        page.write(record.select(forms=("main",)), tmp_path / "page.html")
    monkeypatch.setattr(page, "LARGEST", 2**16)
    with pytest.raises(WorkbookError, match=r"above 0.062; give fewer images, such as record.select"):
        page.write(record, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_verb_writes_it(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert __main__.main(["page", str(DIGITS), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out) and held(out)["images"] == 500
    assert __main__.main(["page", str(DIGITS), str(DIGITS)]) == 2
    assert "used by this command itself" in capsys.readouterr().err
