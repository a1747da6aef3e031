"""Tables as people read them: published beside measured, settings beside each other, and computed verdicts."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from lib import WorkbookError, data
from lib.evaluation.reading import COUNTED, Reading
from lib.evaluation.stats import Number, paired_difference
from lib.models import zoo
from lib.models.cost import MEBI, cost
from lib.training import recipes
from lib.workbook import style
from lib.workbook.published import Published

DASH, UNSURE = "–", "too small to tell"
QUANTITIES = {"clean": "TA", "paper_worst": "ATA, paper's worst case", "union": "per-image worst case",
              "strong": "strong suite, first images", "paper_mflops": "MFlops as the paper counts, clean images",
              "attacked_mflops": "MFlops as the paper counts, worst form", "cumulative_macs": "true cost, M MACs",
              "paper_saving": "saving as the paper counts, %",
              "attacked_saving": "saving as the paper counts, worst form, %", "saving": "true saving, clean images, %"}
LEARNED = 0.25  # clean accuracy, surely above which a network of ten classes has learned something
BESIDE = ("clean", "paper_worst", "union", "paper_mflops", "attacked_mflops", "attacked_saving", "saving")
ATTACKED = {"paper_mflops": "attacked_mflops", "paper_saving": "attacked_saving"}  # which its costs fit
QUICK = ("Networks of preset quick were trained for seconds and have hardly learned: what they reach says\n"
         "nothing of the paper's networks, so a dash stands in its place.")
AS_IN_THE_PAPER = ("mnist", "cifar10", "cifar10_png")  # numbers on these may be set against the paper's


def measured(reading: Reading, quantity: str) -> Number | None:
    """A number in the unit of the published tables: percent, or millions; None where the record does not hold it."""
    try:
        found = reading.measured(quantity)
    except WorkbookError:
        return None
    return found.times({"paper_mflops": 1, "attacked_mflops": 1, "cumulative_macs": 1e-6}.get(quantity, 100))


def text(reading: Reading, quantity: str, digits: int = 2, with_interval: bool = False) -> str:
    """`measured` in words; a dash where there is none. "≤" stands before a bound (`Reading.bound`), and an attacked
    number that the audit doubts is struck through, with its flag behind."""
    value = measured(reading, quantity)
    if value is None:
        return DASH
    shown, flag = spread(value, digits) if with_interval else number(value.value, digits), reading.flag(quantity)
    return reading.bound(quantity) + ("".join(f"{letter}\u0336" for letter in shown) + flag if flag else shown)


def doubted(shown: Mapping[str, Iterable[Reading]]) -> str:
    """The end of a caption: whose attacked numbers the audit doubts, and why; "" where it doubts none."""
    doubts = {style.label(label): {flag for one in each for flag in one.doubts} for label, each in shown.items()}
    why, whose = ", ".join(sorted(set().union(*doubts.values()))), ", ".join(label for label in doubts if doubts[label])
    return f" · do not trust attacked numbers of {whose} ({why})" if why else ""


def comparable(reading: Reading) -> bool:
    """Whether a number may be set against the paper's: its schedule, dataset and PGD steps, and no copy with losses."""
    dataset = reading.record.meta.get("dataset")
    if dataset not in AS_IN_THE_PAPER or not reading.trained.name.endswith(("-paper", "_released")):
        return False
    steps = data.SOURCES[recipes.COPIES.get(dataset, dataset)].threat["steps"]
    threats = [reading.view(attack).threat for attack in reading.attacks]
    return all(threat.steps == steps for threat in threats if threat.algorithm == "pgd")


def beside(published: Published | Sequence[Published], readings: Mapping[str, Reading],
           quantities: Sequence[str] = BESIDE) -> pd.DataFrame:
    """One or several tables of the paper beside readings that know their network, a line per network and quantity.

    The difference is a dash where ours is another dataset, size or copy: two such numbers do not measure the same. Of a
    network trained for seconds, which has hardly learned, no number stands there, and a line says why. The paper's
    MFlops of networks with early exits stand beside those of attacked images, which they fit (it does not say on which
    images they are).
    """
    if any(reading.trained.quick for reading in readings.values()):
        print(QUICK)
    several, lines = [published] if isinstance(published, Published) else published, []
    for label, reading in readings.items():
        early = reading.record.num_exits > 1
        other = {ours: said for said, ours in ATTACKED.items()} | dict.fromkeys(ATTACKED, "") if early else {}
        for quantity in quantities:
            if not early and quantity in (*ATTACKED.values(), "saving"):
                continue  # the same for every image
            said = [table.value(label, other.get(quantity, quantity)) for table in several]
            said = next((value for value in said if value is not None), None)
            found = None if reading.trained.quick else measured(reading, quantity)
            fair = said is not None and found is not None and comparable(reading)
            lines.append({"network": style.label(label), "quantity": QUANTITIES.get(quantity, style.spoken(quantity)),
                          "published": number(said), "measured": text(reading, quantity) if found else DASH,
                          "95 % interval": DASH if not found or found.low is None
                          else f"{found.low:.1f} to {found.high:.1f}",
                          "difference": f"{found.value - said:+.1f}" if fair else DASH})
    return pd.DataFrame(lines).set_index(["network", "quantity"])


def printed(published: Published, ways: Mapping[str, Mapping[str, Reading]]) -> pd.DataFrame:
    """A table as the paper prints it, whole: a line per quantity; for each of its networks the paper's number and ours,
    measured in one or several ways {name: {label: reading}}; a dash where it does not stand there or was not run.
    Beside a cost stands ours of attacked images where there are early exits."""
    if any(reading.trained.quick for readings in ways.values() for reading in readings.values()):
        print(QUICK)
    columns, order = {}, {what: None for row in published.values() for what in row}
    for label, row in published.items():
        columns[style.label(label), "paper"] = [number(row.get(what)) for what in order]
        for way, readings in ways.items():
            ours = readings.get(label)
            columns[style.label(label), way] = [
                DASH if not ours or ours.trained.quick else
                text(ours, ATTACKED.get(what, what) if ours.record.num_exits > 1 else what, 1, True) for what in order]
    named = [QUANTITIES.get(what, style.spoken(what)).removesuffix(", clean images") for what in order]
    return pd.DataFrame(columns, pd.Index(named))


def number(value: float | None, digits: int = 2) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def spread(number: Mapping | Number, digits: int = 2, unit: float = 1.0) -> str:
    """A number, or a tidy row's, with its interval if it has one, times `unit`."""
    parts = number if isinstance(number, Number) else (number.get(name) for name in ("value", "low", "high"))
    value, low, high = (None if part is None else f"{unit * part:.{digits}f}" for part in parts)
    return value if low is None else f"{value} ({low}–{high})"


def ranged(number: Sequence[float | None], form: str = "+.1f") -> str:
    """(value, low, high) as "+3.0 (+1.0 to +5.0)"."""
    value, low, high = number
    return f"{value:{form}}" + ("" if low is None else f" ({low:{form}} to {high:{form}})")


def worst_cases(readings: Iterable[Reading]) -> tuple[str, ...]:
    """Both worst cases, and the strong suite's where it was run on one of these."""
    return "paper_worst", "union", *(("strong",) * any(reading.robust == "strong" for reading in readings))


def forms(readings: Mapping[str, Reading]) -> pd.DataFrame:
    """Accuracy in percent: a line per network, a column per view, then the worst cases and both costs (clean)."""
    lines, worst = {}, worst_cases(readings.values())
    for label, reading in readings.items():
        line = {style.spoken(view): text(reading, view, 1) for view in reading.names}
        for quantity in (*worst, "paper_mflops", "cumulative_macs"):
            line[QUANTITIES[quantity]] = text(reading, quantity, 2 if quantity in COUNTED else 1)
        lines[style.label(label)] = line
    return stacked(pd.DataFrame(lines).T)


def settings(readings: Mapping[str, Reading]) -> pd.DataFrame:
    """Settings of one network beside each other: thresholds, TA, the worst cases, exits and costs on clean images."""
    lines, worst = {}, worst_cases(readings.values())
    for name, reading in readings.items():
        line = {"leaves below": " ".join("closed" if t == -math.inf else f"{t:.3g}" for t in reading.thresholds)}
        line |= {QUANTITIES[quantity]: text(reading, quantity, 1) for quantity in ("clean", *worst)}
        line["leave at each exit, %"] = " ".join(f"{100 * share:.0f}" for share in reading.share())
        line |= {QUANTITIES[quantity]: text(reading, quantity) for quantity in (*COUNTED[:2], "saving")}
        lines[name] = line
    return pd.DataFrame(lines).T


def costs(backbone: str, *designs: str, digits: int = 2, **options) -> pd.DataFrame:
    """What leaving at each exit costs, of untrained networks at full size: a line per exit of each design of exits."""
    lines = []
    for design in designs:
        network = zoo.build(backbone, exits=design, **options)
        counted = cost(network)
        for name, leave in zip(style.exit_names(network.num_exits), counted.exits, strict=True):
            lines.append({"exits": design, "leaves at": name, "as the paper counts": f"{leave.paper_mflops:.{digits}f}",
                          "all heads on the way": f"{leave.cumulative_conv_macs / MEBI:.{digits}f}",
                          "true M MACs": f"{leave.cumulative_macs / 1e6:.{digits}f}",
                          "parameters": f"{counted.parameters:,}"})
    return pd.DataFrame(lines).set_index(["exits", "leaves at"])


def pivot(rows: Sequence[Mapping], columns: Mapping[str, tuple], index: str | Sequence[str] = "defence"
          ) -> pd.DataFrame:
    """Tidy rows as a table. columns: {its head: (metric, digits, unit)}, or with what else has to be so, (…, dict)."""
    lines: dict = {}
    for head, (metric, digits, unit, *where) in columns.items():
        for row in rows:
            if row["metric"] == metric and all(row[key] == value for key, value in (where or [{}])[0].items()):
                place = row[index] if isinstance(index, str) else tuple(row[name] for name in index)
                lines.setdefault(place, {})[head] = spread(row, digits, unit)
    return stacked(pd.DataFrame(lines).T)


def stacked(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(tables).fillna(DASH)


def verdict(claim: str, first: np.ndarray, second: np.ndarray, unit: str = "points", draws: int = 1) -> dict:
    """Is `first` larger than `second` on the same images? "held", "did not hold", or "too small to tell".

    (N,) images each, or (S, N) of S trainings, see `stats.paired_difference`; means over so many draws of the noise.
    One training says nothing about another of its kind, so that its answer ends in "here": for these weights alone."""
    difference, trainings = paired_difference(first, second), len(np.atleast_2d(first))
    over = [f"{trainings} trainings" if trainings > 1 else "1 training"] + [f"{draws} draws"] * (draws > 1)
    line = within(claim, difference.times(100), unit, first.shape[-1], above=0)
    here = " here" * (trainings == 1 and line["verdict"] != UNSURE)
    return line | {"over": ", ".join(over), "verdict": line.pop("verdict") + here}


def within(claim: str, number: Sequence[float] | Mapping, unit: str, images: int | str, *, least: float = -math.inf,
           most: float = math.inf, above: float = -math.inf, form: str = "+.1f", column: str = "95 % interval") -> dict:
    """Does a number (value, low, high), or a tidy row's, lie from `least` to `most`, or surely above `above`?

    Its whole interval does: "held"; none of it: "did not hold"; else "too small to tell".  form: of the numbers."""
    value, low, high = map(number.get, ("value", "low", "high")) if isinstance(number, Mapping) else number
    inside, outside = least <= low and high <= most and low > above, high < max(least, above) or low > most
    return {"claim": claim, "difference": f"{value:{form}} {unit}".rstrip(), column: f"{low:{form}} to {high:{form}}",
            "images": images, "verdict": "held" if inside else "did not hold" if outside else UNSURE}


def agrees(claim: str, published: float, reading: Reading, quantity: str) -> dict:
    """A verdict: does the published number lie in the 95 % interval of ours?"""
    value, low, high = (part - published for part in measured(reading, quantity))
    return {"claim": claim, "difference": f"{value:+.1f} points", "95 % interval": f"{low:+.1f} to {high:+.1f}",
            "images": reading.record.images, "verdict": "held" if low <= 0 <= high else "did not hold"}


def saves(claim: str, reading: Reading, view: str = "clean") -> dict:
    """A verdict: do these images truly cost less than in the plain network?"""
    spent = reading.spent(view)
    return verdict(claim, np.ones_like(spent), spent, unit="% of the MACs")


def compared(claim: str, first: Reading, second: Reading, what: str = "union", other: str | None = None) -> dict:
    """`verdict` on two readings; a network that still answers at chance on clean images decides nothing."""
    line = verdict(claim, *_paired(first, second, what, other or what), draws=max(first.draws, second.draws))
    return line if learned(first, second) else line | {"verdict": "too small to tell: one of them has hardly learned"}


def gain(first: Reading, second: Reading, what: str = "union") -> Number:
    """What the first has more on the same images, in points, and its 95 % interval."""
    return paired_difference(*_paired(first, second, what, what)).times(100)


def _paired(first: Reading, second: Reading, *what: str) -> list[np.ndarray]:
    """Who is right; under the strong suite on the first images that it met in both records."""
    right = [reading.right(one) for reading, one in zip((first, second), what, strict=True)]
    met = min(one.shape[-1] for one in right) if "strong" in what else None
    return [one[..., :met] for one in right]


def learned(*readings: Reading) -> bool:
    """Whether all of them answer clean images surely better than chance does."""
    return all(r.measured("clean").low >= LEARNED for r in readings)


def claims(*lines: dict | None) -> pd.DataFrame:
    """A line per claim; None is a claim about what is not there."""
    return pd.DataFrame([line for line in lines if line], dtype=object).set_index("claim").fillna(DASH)
