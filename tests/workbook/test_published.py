"""Every number that the papers print, against their text where it is at hand."""

import re

import pytest

from lib import ROOT
from lib.workbook.published import GAINS, STEP_RATIOS, TABLES, VALUES

PAPERS = next((folder for folder in (up / "shared" / "papers" for up in (ROOT, *ROOT.parents))
               if (folder / "triple_wins.md").is_file()), None)
at_hand = pytest.mark.skipif(PAPERS is None, reason="the papers' text is not at hand")
TRIPLE_WINS = VALUES[VALUES.paper == "triple_wins"]


def bare(text: str) -> str:
    return re.sub(r"</?b>|\s|%", "", text)


def in_print(number: int) -> dict[tuple[str, str], float]:
    """{(row, column): value} of a table in the paper's text, read without the file that is tested."""
    text = (PAPERS / "triple_wins.md").read_text("utf-8")
    caption, body = re.search(rf"^Table {number}: (.*)\n\s*((?:.*\t.*\n?)+)", text, re.MULTILINE).groups()
    head, *lines = [line.split("\t") for line in body.splitlines()]
    found = {(bare(line[0]), bare(column)): value for line in lines for column, value in zip(head, line, strict=True)}
    if said := re.search(r"(\d\d\.\d\d)%", caption):
        found["caption", "ATAoftheoriginaldefendedResNet38"] = said[1]
    numbers = {place: bare(value) for place, value in found.items()}
    return {place: float(value) for place, value in numbers.items() if re.fullmatch(r"[\d.]+", value)}


def test_all_319_values_of_ten_tables_are_there():
    assert len(TRIPLE_WINS) == 319 and not TRIPLE_WINS.duplicated(["table", "row", "column"]).any()
    assert not TRIPLE_WINS.duplicated(["table", "network", "defence", "metric"]).any()
    assert TRIPLE_WINS.groupby("table").size().to_dict() == {
        "1": 9, "2": 36, "3": 52, "4": 36, "5": 6, "6": 16, "7": 29, "8": 29, "9": 53, "10": 53}
    assert TABLES[9].value("plain", "paper_worst") == 51.11 and TABLES[8].value("plain", "paper_worst") == 83.35


@at_hand
@pytest.mark.parametrize("number", range(1, 11))
def test_every_value_of_a_table_is_the_papers_and_none_is_left_out(number):
    ours = TRIPLE_WINS[TRIPLE_WINS.table == str(number)]
    assert {(bare(line.row), bare(line.column)): line.value for line in ours.itertuples()} == in_print(number)


@pytest.mark.parametrize("number", (2, 3, 4, 9, 10))
def test_the_worst_case_is_the_lowest_form_and_the_saving_follows_from_the_cost(number):
    plain = TABLES[1]["smallcnn" if number == 2 else "mobilenet_v2" if number == 4 else "resnet38"]["paper_mflops"]
    for defence, row in TABLES[number].items():
        if defence != "plain":
            forms = [value for what, value in row.items() if what.startswith(("single", "main", "average", "max"))]
            assert row["paper_worst"] == min(forms)
            saved = 100 * (1 - row["paper_mflops"] / plain)
            assert row["paper_saving"] == pytest.approx(saved, abs=0.25)  # 26.40 is printed where 26.63 follows


@at_hand
def test_what_float_prints_is_in_its_text():
    text = (PAPERS / "float.md").read_text("utf-8")
    model = dict(re.findall(r"^(ResNet34|WRN40-2|WRN16-8)\t(.*)$", text, re.MULTILINE))
    ours = VALUES[(VALUES.paper == "float") & (VALUES.table == "1")]
    assert {name: list(map(float, line.split("\t"))) for name, line in model.items()} == {
        name: rows["value"].tolist() for name, rows in ours.groupby("row", sort=False)}
    for value in (value for rows in (GAINS, STEP_RATIOS) for row in rows.values() for value in row.values()):
        assert re.search(rf"(?<![\d.]){abs(value)}0?(\\?%| ?\$?\\times|×)", text), value
