"""Tables as people read them: published beside measured, settings beside each other, and computed verdicts."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lib import WorkbookError
from lib.evaluation.reading import COUNTED, Reading
from lib.evaluation.stats import Number, paired_difference
from lib.workbook import style
from lib.workbook.published import Published

DASH = "–"
LEARNED = 0.25  # clean accuracy, surely above which a network of ten classes has learned something
QUANTITIES = {"clean": "TA", "paper_worst": "ATA, paper's worst case", "union": "per-image worst case",
              "paper_mflops": "MFlops as the paper counts", "paper_saving": "saving as the paper counts, %",
              "cumulative_macs": "true cost, M MACs", "saving": "true saving, %"}


def summary(reading: Reading) -> dict:
    """Everything about a reading of a network with exits in one dictionary, for tables and panels.

    images, thresholds.  forms: {view: …} with correct (routed), accuracy, low, high; exits (images per exit); per_exit
    (correct per exit); paper_mflops, cumulative_macs (means over the images); paper_saving, saving (against the plain
    network); attacked; exact (False when it was made against other thresholds).  worst_form, paper_worst: names of the
    views that leave fewest right.  union_correct, union_accuracy, union_low, union_high; suite: views behind them.
    flag: what stands behind attacked numbers (see `Reading.flag`).
    """
    images, forms = reading.record.images, {}
    for name in reading.views:
        paper, true = (reading.cost(convention, name) for convention in ("paper_mflops", "cumulative_macs"))
        forms[name] = {
            "correct": int(reading.right(name).sum()), **_parts("accuracy", reading.measured(name)),
            "exits": (images * reading.share(name)).round().astype(int).tolist(),
            "per_exit": reading.alone(name).sum(1).astype(int).tolist(), "paper_mflops": paper, "cumulative_macs": true,
            "paper_saving": 1 - paper / reading.plain("paper_mflops"), "saving": 1 - true / reading.plain("trunk"),
            "attacked": reading.view(name).attacked, "exact": reading.view(name).exact_at(reading.thresholds)}
    union = {f"union_{key}": value for key, value in _parts("accuracy", reading.measured("union")).items()}
    return {"images": images, "thresholds": list(reading.thresholds), "forms": forms, **union,
            "worst_form": reading.worst_form, "paper_worst": reading.paper_worst, "suite": reading.suite,
            "union_correct": int(reading.right("union").sum()), "flag": reading.flag("union")}


def _parts(name: str, number: Number) -> dict[str, float]:
    return {name: number.value, "low": number.low, "high": number.high}


def measured(found: dict, quantity: str) -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of a summary, in the unit of the published tables; costs and savings are those on clean
    images and have no interval. None where the summary does not hold it."""
    forms = found["forms"]
    if quantity == "union":
        return tuple(100 * found[f"union_{part}"] for part in ("accuracy", "low", "high"))
    if quantity == "attacked_mflops":
        return forms[found["paper_worst"] or found["worst_form"]]["paper_mflops"], None, None
    name = found["paper_worst"] if quantity == "paper_worst" else quantity
    if name in forms:
        return tuple(100 * forms[name][part] for part in ("accuracy", "low", "high"))
    scale = {"paper_mflops": 1, "paper_saving": 100, "cumulative_macs": 1e-6, "saving": 100}.get(quantity)
    return None if scale is None else (scale * forms["clean"][quantity], None, None)


def _flag(found: dict, quantity: str) -> str:
    return found["flag"] if quantity not in ("clean", *COUNTED) else ""


def beside(published: Published, summaries: Mapping[str, dict], quantities=None) -> pd.DataFrame:
    """One line per row and quantity: published, measured, its 95 % interval, and the difference; a dash where there is
    nothing. summaries: {row of the published table: a summary of `accuracy`}."""
    lines = []
    for row, found in summaries.items():
        for quantity in quantities or ("clean", "paper_worst", "union", "paper_mflops", "paper_saving", "saving"):
            said, seen = published.value(row, quantity), measured(found, quantity)
            value, low, high = seen or (None, None, None)
            lines.append({
                "defence": style.spoken(row), "quantity": QUANTITIES.get(quantity, style.spoken(quantity)),
                "published": number(said), "measured": number(value) + _flag(found, quantity),
                "95 % interval": DASH if low is None else f"{low:.1f} to {high:.1f}",
                "difference": DASH if said is None or value is None else f"{value - said:+.1f}",
            })
    return _plain(pd.DataFrame(lines).set_index(["defence", "quantity"]))


def number(value: float | None, digits: int = 2) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def spread(found: Mapping | Number, digits: int = 2, unit: float = 1.0) -> str:
    """A number, or a tidy row's, with its interval, times `unit`."""
    parts = found if isinstance(found, Number) else (found[name] for name in ("value", "low", "high"))
    value, low, high = (f"{unit * part:.{digits}f}" for part in parts)
    return f"{value} ({low}–{high})"


def forms(summaries: Mapping[str, dict]) -> pd.DataFrame:
    """Accuracy in percent: a line per network, a column per view, then the two worst cases and both costs (clean)."""
    lines = {}
    for name, found in summaries.items():
        line = {style.spoken(form): number(100 * f["accuracy"], 1) + _flag(found, form)
                for form, f in found["forms"].items()}
        for quantity in ("paper_worst", "union", "paper_mflops", "cumulative_macs"):
            value = measured(found, quantity)
            line[QUANTITIES[quantity]] = number(
                value and value[0], 1 if quantity in ("paper_worst", "union") else 2) + _flag(found, quantity)
        lines[style.spoken(name)] = line
    return _plain(pd.DataFrame(lines).T.fillna(DASH))


def settings(summaries: Mapping[str, dict]) -> pd.DataFrame:
    """Settings of one network beside each other: thresholds, TA, both worst cases, exits and costs on clean images."""
    lines = {}
    for name, found in summaries.items():
        line = {"leaves below": " ".join("closed" if t == -math.inf else f"{t:.3g}" for t in found["thresholds"])}
        clean = found["forms"]["clean"]
        for quantity in ("clean", "paper_worst", "union"):
            line[QUANTITIES[quantity]] = number(
                (measured(found, quantity) or [None])[0], 1) + _flag(found, quantity)
        line["leave at each exit, %"] = " ".join(f"{100 * n / found['images']:.0f}" for n in clean["exits"])
        for quantity in ("paper_mflops", "cumulative_macs", "saving"):
            line[QUANTITIES[quantity]] = number(measured(found, quantity)[0])
        lines[name] = line
    return _plain(pd.DataFrame(lines).T)


def bills(summaries: Mapping[str, dict]) -> pd.DataFrame:
    """What each network costs under each view, M MACs (all heads on the way), and beside it as the paper counts."""
    lines = {style.spoken(name): {style.spoken(view): f"{f['cumulative_macs'] / 1e6:.2f} ({f['paper_mflops']:.2f})"
                                  for view, f in found["forms"].items()} for name, found in summaries.items()}
    return _plain(pd.DataFrame(lines).T.fillna(DASH))


def stacked(*tables: pd.DataFrame) -> pd.DataFrame:
    return _plain(pd.concat(tables).fillna(DASH))


def verdict(claim: str, first: np.ndarray, second: np.ndarray, unit: str = "points", seed: int = 0,
            draws: int = 1) -> dict:
    """Is `first` larger than `second` on the same images? "held", "did not hold", or "too small to tell".

    (N,) images each, or (S, N) of S trainings, see `stats.paired_difference`; means over so many draws of the noise.
    One training says nothing about another of its kind, so that its answer ends in "here": for these weights alone."""
    found = paired_difference(first, second, seed)
    low, high, trainings = found["low"], found["high"], len(np.atleast_2d(first))
    answer = "held" if low > 0 else "did not hold" if high < 0 else "too small to tell"
    over = [f"{trainings} trainings" if trainings > 1 else "1 training"] + [f"{draws} draws"] * (draws > 1)
    return {"claim": claim, "difference": f"{100 * found['difference']:+.1f} {unit}",
            "95 % interval": f"{100 * low:+.1f} to {100 * high:+.1f}", "images": first.shape[-1],
            "over": ", ".join(over), "verdict": answer + " here" * (trainings == 1 and low * high > 0)}


def within(claim: str, found: Sequence[float], unit: str, images: int | str, *, least: float = -math.inf,
           most: float = math.inf, above: float = -math.inf, form: str = "+.1f", column: str = "95 % interval") -> dict:
    """Does a number (value, low, high) lie from `least` to `most`, or surely above `above`?

    Its whole interval does: "held"; none of it: "did not hold"; else "too small to tell".  form: of the numbers."""
    value, low, high = found
    inside, outside = least <= low and high <= most and low > above, high < max(least, above) or low > most
    return {"claim": claim, "difference": f"{value:{form}} {unit}".rstrip(), column: f"{low:{form}} to {high:{form}}",
            "images": images, "verdict": "held" if inside else "did not hold" if outside else "too small to tell"}


def compared(claim: str, first: Reading, second: Reading, what: str = "union", other: str | None = None) -> dict:
    """`verdict` on two readings; a network that still answers at chance on clean images decides nothing."""
    line = verdict(claim, first.right(what), second.right(other or what), draws=max(first.draws, second.draws))
    return line if learned(first, second) else line | {"verdict": "too small to tell: one of them has hardly learned"}


def gain(first: Reading, second: Reading, what: str = "union") -> tuple[float, float, float]:
    """What the first has more on the same images, in points, and its 95 % interval."""
    found = paired_difference(first.right(what), second.right(what))
    return tuple(100 * found[part] for part in ("difference", "low", "high"))


def learned(*readings: Reading) -> bool:
    """Whether all of them answer clean images surely better than chance does."""
    return all(r.measured("clean").low >= LEARNED for r in readings)


def percent(reading: Reading, what: str, with_interval: bool = False) -> str:
    """An accuracy in percent, with its flag; a dash where that attack was not run."""
    try:
        found = reading.measured(what)
    except WorkbookError:
        return DASH
    return (spread(found, 1, unit=100) if with_interval else f"{100 * found.value:.1f}") + reading.flag(what)


def verdicts(*lines: dict | None) -> pd.DataFrame:
    """A line per claim; None is a claim about what is not there."""
    return _plain(pd.DataFrame([line for line in lines if line]).set_index("claim").fillna(DASH))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Whole texts, no index names above an empty corner."""
    pd.set_option("display.max_colwidth", None, "display.width", 200, "display.max_rows", 200)
    return table
