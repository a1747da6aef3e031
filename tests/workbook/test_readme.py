"""The README's tables are the ones its own data give, and so are the numbers in its sentences."""

import json
import math
import re
from collections import Counter

import numpy as np

from lib import ATLASES, ROOT
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import readme, tables
from lib.workbook.published import suited
from lib.workbook.session import Session

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


def said_of(beginning: str) -> str:
    """A finding at the head of the README, as one line."""
    return " ".join(re.search(rf"{beginning}.*?\n(?=- |\n\S)", readme.README.read_text("utf-8"), re.DOTALL)[0].split())


def percent(reading, quantity: str, spread: bool = False) -> str:
    number = [f"{100 * part:.1f}" for part in reading.measured(quantity)]
    return f"{number[0]} % ({number[1]}–{number[2]})" if spread else number[0]


def test_what_is_said_of_the_network_with_every_knob_is_in_its_record():
    record = Record.load(ATLASES / f"{KNOBS}.safetensors")
    twin = Record.load(ATLASES / f"{KNOBS.replace('float_slim', 'dual_bn_slim')}.safetensors")
    last = (-math.inf,) * 6

    def at(lambda_n, width=1.0, thresholds=last):
        return read(record, OperatingPoint(noise=lambda_n, batch_norm=lambda_n, width=width), thresholds)

    accurate, robust, early, narrow = at(0.0), at(1.0), at(1.0, thresholds="calibrated"), at(1.0, 0.5)
    control, routed = (read(twin, OperatingPoint(batch_norm=1.0, width=1.0), gates) for gates in (last, "calibrated"))
    said = said_of("One ResNet-38 trained once")
    interval = percent(robust, "strong", True).replace("%", "% robust").removesuffix(")")
    for number in (percent(accurate, "clean"), percent(robust, "clean"), interval,
                   f"{percent(early, 'strong')} %", percent(narrow, "clean"), percent(control, "clean"),
                   percent(control, "strong", True), f"{percent(routed, 'strong')} %",
                   f"saves {100 * early.measured('saving').value:.0f} %"):
        assert number in said, number
    assert not accurate.right("union").any() and record.images == len(robust.right("strong")) == 250
    assert "86.4 % (81.6–90.1)" in (ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8")


def test_what_is_said_of_exits_against_none_is_in_their_records():
    name, said = "resnet38-cifar10_jpeg-main-laptop", said_of("On one schedule RDI-ResNet38")
    records = (Record.load(ATLASES / f"{one}.safetensors") for one in (
        "rdi_resnet38-cifar10_jpeg-max_average-laptop", name, f"{name}-r007", f"{name}-atmc_365838_8bit"))
    every = [read(record, thresholds=suited(record)) for record in records]
    kept = []
    for found in every:
        kept.append(found.measured("strong").value / found.measured("paper_worst").value)
        line = [percent(found, "clean"), percent(found, "paper_worst"), percent(found, "strong", True)]
        assert f"| {found.cost('cumulative_macs') / 1e6:.2f} | {' | '.join(line)} |" in said
    assert kept[0] < 0.34 and min(kept[1:]) >= 0.8
    assert [len(found.right("strong")) for found in every] == [250, 250, 250, 100]


def test_what_is_said_of_oat_and_of_the_released_weights_is_in_their_records():
    oat, flt = (Record.load(ATLASES / f"resnet20-cifar10_jpeg-{m}-laptop.safetensors") for m in ("oat", "float"))
    released = read(Record.load(ATLASES / "rdi_resnet38_released.safetensors"), thresholds="paper")
    ends = read(oat, oat.strong.views[-1].point), read(flt, OperatingPoint(noise=1.0, batch_norm=1.0))
    said = said_of("FLOAT's two batch norms")
    for end in ends:
        value, low, high = (f"{100 * part:.1f}" for part in end.measured("strong"))
        assert percent(end, "clean") in said and value in said and f"({low}–{high})" in said
    said = said_of("The released RDI-ResNet38")
    assert percent(released, "strong", True) in said and percent(released, "paper_worst") in said


def test_what_is_said_of_the_noise_is_in_the_records_of_its_trainings():
    said, wb = said_of("FLOAT's two batch norms"), Session(seed=0, weights="shipped", network="resnet20")
    for dataset, which, what in (("fashion_mnist", "pgd", "union"), ("fashion_mnist", "suite", "strong"),
                                 ("cifar10_jpeg", "pgd", "union"), ("cifar10_jpeg", "pgd", "strong")):
        found = wb.replace(dataset=dataset).repeats(("float", "dual_bn"), which)
        ours, control = (member.read(1.0) for member in found.values())
        value, low, high = (f"{part:+.1f}".replace("-", "−") for part in tables.gain(ours, control, what))
        assert value in said and f"({low} to {high}; " in said
        assert f"{ours.right(what).shape[-1]:,} images" in said


def test_what_an_attacker_takes_of_the_saving_is_in_the_records():
    saved, lost, kept = [], [], []
    for defence in ("main", "average", "max_average"):
        record = Record.load(ATLASES / f"repeats/rdi_resnet38-cifar10_jpeg-{defence}-laptop-slow.safetensors")
        found = read(record, thresholds=next(v.thresholds_used for v in record.views if v.form == "gate_aware"))
        spent = [100 * found.cost("cumulative_macs", view) / found.plain("trunk") for view in found.names]
        saved.append(100 - spent[0])
        lost.append(max(spent) - 100)
        kept.append(100 * found.right("slow_keep").mean())
    said = said_of("What early exits save")
    assert f"save {min(saved):.1f} to {max(saved):.1f} %" in said
    assert f"cost {min(lost):.1f} to {max(lost):.1f} %" in said
    assert f"at least {min(kept):.1f} %" in said


def test_what_autoattack_took_behind_the_suites_own_attacks_is_in_the_records():
    left, taken, networks, beyond = 0, 0, set(), []
    for path in (*ATLASES.glob("*cifar10*.safetensors"), ATLASES / "rdi_resnet38_released.safetensors"):
        record = Record.load(path)
        for point, gates in {(v.point, v.thresholds_used) for v in (record.strong.views if record.strong else ())}:
            found = read(record, point, gates)
            union = found.right("union")[:record.strong.images]
            own, end = np.minimum(union, found.survived["target 9"]), found.right("strong")
            if next(iter(found.survived.values())).any():
                left, taken = left + (own > 0).sum(), taken + (own > 0).sum() - (end > 0).sum()
                networks.add(path)
                beyond.append(100 * (union.mean() - own.mean()))
    said = " ".join(re.search(r"Its own margins.*?three\.", readme.README.read_text("utf-8"), re.DOTALL)[0].split())
    assert f"up to {max(beyond):.1f} points" in said and taken == 3
    assert f"of the {left} images that {len(networks)} networks" in said
