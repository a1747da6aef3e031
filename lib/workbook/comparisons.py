"""What a study's members say at their operating points, beside each other: tables, claims, gains, and what planes show.

A point is (method, λ_n), (method, λ_n, λ_th), (method, λ_n, λ_th, width), or (method, operating point).
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from lib.evaluation import points
from lib.evaluation.reading import Reading, Trainings
from lib.evaluation.stats import Number
from lib.operating_point import OperatingPoint
from lib.workbook import tables
from lib.workbook.once_for_all import Member, Members
from lib.workbook.published import GAINS

COLUMNS = {"clean": "clean", "white-box": "PGD", "EOT": "EOT-PGD", "noise-free transfer": "transfer, noise-free",
           "draw known": "draw known", "union": "worst of suite, per image", "worst": "right in every draw",
           "strong": "strong suite, first images"}


def trade_off(members: Members, lambdas=points.LAMBDAS, switches=points.SWITCHES,
              width: float | None = None, robust: str = "union") -> dict[str, dict[str, tuple[Number, Number]]]:
    """{method: {point: (robust, clean)}} for `figures.plane`; of methods with a network per weight, all in one."""
    shown: dict = {}
    for m in members.values():
        for at in m.published(lambdas, switches, width):
            two = tuple(m.read(at).measured(what) for what in (robust, "clean"))
            shown.setdefault(m.family, {})[points.name(at) if m.weight is None else m.label] = two
    return shown


def accuracies(members: Members, columns: Sequence[str] = tuple(COLUMNS)[:-1], lambdas=points.LAMBDAS,
               switches=points.SWITCHES, width: float | None = None, seven: Members | None = None) -> pd.DataFrame:
    """Accuracy in percent: a line per method and recorded point of the paper, a column per attacker; a dash where an
    attack was not run. seven: what the same networks do under FLOAT's own attack, which is in no worst case."""
    lines, columns = {}, (*columns, *(("strong",) * any(m.record.strong is not None for m in members.values())))
    for member in members.values():
        for at in member.published(lambdas, switches, width):
            reading = member.read(at)
            lines[member.label, where(member, at, lambdas, switches)] = line = {}
            for who in columns:
                line[COLUMNS[who]] = tables.told(reading, who, 1, who in ("clean", "union", "strong"))
                if who == "clean" and (papers := find(seven or {}, member.method, at)):
                    line["PGD-7, the paper's"] = tables.told(papers, "white-box", 1)
    return pd.DataFrame(lines).T.fillna(tables.DASH).rename_axis(["method", "operating point"])


def where(member: Member, at: OperatingPoint, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> str:
    """A point by its knobs, and which (λ_n, λ_th) lead there."""
    if member.network.conditioning != "float":
        return points.name(at)
    led = [f"({n:g}, {th:g})" for th in switches for n in lambdas if member.point(n, th, at.width) == at]
    return points.name(at) + (f" ← (λ_n, λ_th) = {' '.join(led)}" if led else " (noise in training only)")


def crossing(member: Member, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> pd.DataFrame:
    """Robust accuracy in percent: crafted at (rows) x evaluated at (columns), over the published points."""
    names = {p: points.name(p) for p in member.published(lambdas, switches)}
    table = pd.DataFrame(index=list(names.values()), columns=list(names.values()), dtype=float)
    for v, view in enumerate(member.record.views):
        plain = view.attacked and view.threat.draws == 1 and not view.restart and view.evaluated_at.draw is None
        if plain and view.crafted_at in names and view.evaluated_at in names:
            share = member.record.right[v, -1] / view.draws
            table.loc[names[view.crafted_at], names[view.evaluated_at]] = 100 * share.mean()
    table.index.name = "crafted at ↓  evaluated at →"
    return table


def find(members: Members, method: str, *where) -> Reading | Trainings | None:
    """A member's reading; None where the method did not come along, or was not recorded there."""
    member = members.get(method)
    point = member and (where[0] if isinstance(where[0], OperatingPoint) else member.point(*where))
    return member.read(point) if member and point in member.record.points else None


def claim(members: Members, text: str, first: tuple, second: tuple, what: str = "union",
          other: str | None = None) -> dict | None:
    """`tables.compared` of two (method, *where); None where one of them is not there."""
    pair = [find(members, *side) for side in (first, second)]
    return tables.compared(text, *pair, what, other) if all(pair) else None


def differences(members: Members, pairs: Mapping[str, tuple[tuple, tuple]], what: str) -> dict[str, tuple]:
    """{name: `tables.gain` of two (method, *where)}, of those that are there."""
    read = {name: [find(members, *side) for side in pair] for name, pair in pairs.items()}
    return {name: tables.gain(*pair, what) for name, pair in read.items() if all(pair)}


def gains(members: Members, pairs: Mapping[str, Sequence[tuple[tuple, tuple]]]) -> pd.DataFrame:
    """The gains that the paper names beside ours, in points: the largest of these pairs of (method, *where), as its
    "up to"; ours is one dataset."""
    lines = {}
    for name, sides in pairs.items():
        read = [pair for pair in ([find(members, *side) for side in two] for two in sides) if all(pair)]
        for quantity, who in (("clean", "clean"), ("robust", "white-box")):
            best = max(read, key=lambda pair, who=who: tables.gain(*pair, who)[0], default=None)
            said, known = GAINS.value(name, quantity), best and tables.learned(*best)
            value, low, high = (f"{part:+.1f}" for part in tables.gain(*best, who)) if known else (tables.DASH,) * 3
            lines[name, f"{quantity} accuracy"] = {
                "published": tables.DASH if said is None else f"{said:+.2f}", "measured": value,
                "95 % interval": f"{low} to {high}" if known else tables.DASH,
                "at": points.name(best[0].point) if best else tables.DASH}
    return pd.DataFrame(lines).T.rename_axis(["gain", "quantity"])
