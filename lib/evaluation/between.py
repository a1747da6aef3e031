"""Between recorded points: which lie around one, what they say together, and how exact that is."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from lib import WorkbookError
from lib.evaluation import points, routing
from lib.evaluation.reading import SUITE, Reading, read, relation
from lib.evaluation.record import Record
from lib.evaluation.stats import Number
from lib.operating_point import OperatingPoint

TOGETHER = ("union", "paper_worst", "worst", "strong")  # several views at once
PASSING = np.linspace(0, 1, 13) ** 2  # shares of the images at an exit that leave there, along the trade-off curve


def corners(record: Record, point: OperatingPoint) -> list[tuple[float, OperatingPoint]]:
    """[(weight, recorded point)]: linear in the noise within a batch norm, then between batch norms.

    Raises WorkbookError where no recorded points lie around this one.
    """
    same = [p for p in record.points if (p.code, p.width) == (point.code, point.width)]
    found = []
    for share, bank in _between(point.batch_norm, {p.batch_norm for p in same}):
        row = {p.noise for p in same if p.batch_norm == bank}
        found += [(share * part, point.replace(batch_norm=bank, noise=noise)) for part, noise in
                  _between(point.noise, row)]
    if not found or not math.isclose(sum(weight for weight, _ in found), 1):
        raise WorkbookError(f"nothing was recorded around {points.name(point)}; compute this point exactly")
    return found


def _between(value: float | None, known: set) -> list[tuple[float, float | None]]:
    """[(weight, known value)] of the neighbours of a value; [] where it lies outside."""
    if value in known:
        return [(1.0, value)]
    below, above = [v for v in known if v is not None and v < value], [v for v in known if v is not None and v > value]
    if not below or not above:
        return []
    share = (value - max(below)) / (min(above) - max(below))
    return [(1 - share, max(below)), (share, min(above))]


def nearest(record: Record, point: OperatingPoint) -> OperatingPoint:
    return min(record.points, key=lambda p: (p.width != point.width, p.code != point.code, *(
        abs((getattr(p, knob) or 0) - (getattr(point, knob) or 0)) for knob in ("batch_norm", "noise"))))


@dataclass(frozen=True, eq=False)
class Spot:
    """What the record says at one setting. around: readings of recorded points, with their weights."""

    around: tuple[tuple[float, Reading], ...]

    @property
    def nearest(self) -> Reading:
        return max(self.around, key=lambda pair: pair[0])[1]

    @property
    def robust(self) -> str:
        """The worst case to show: "strong" where the strong suite was run at this very setting, else "union"."""
        return self.nearest.robust if len(self.around) == 1 else "union"

    def number(self, attack: str = "clean") -> Number:
        found = [(w, r.measured(attack if attack in TOGETHER else view_for(r, attack))) for w, r in self.around]
        return Number(*(math.fsum(w * number[part] for w, number in found) for part in range(3)))

    def share(self, attack: str = "clean") -> np.ndarray:
        """(exits,) who leaves where; of several views at once, under the strongest."""
        return sum(w * r.share(view_for(r, attack)) for w, r in self.around)

    def cost(self, convention: str, attack: str = "clean") -> float:
        return math.fsum(w * r.cost(convention, view_for(r, attack)) for w, r in self.around)

    def mark(self, attack: str = "clean") -> str:
        """What stands before a number: ≈ interpolated, ≤ no attacker went for it who knew these very gates."""
        bound = max(r.bound(attack if attack in TOGETHER else view_for(r, attack)) for _, r in self.around)
        return "≈ " * (len(self.around) > 1) + bound


def view_for(reading: Reading, attack: str) -> str:
    """The view that stands for an attack at one point: EOT and transfer are the plain attack where there is no noise;
    of several at once it is the strongest."""
    if attack == "paper_worst":
        return reading.paper_worst
    if attack in TOGETHER:
        return min(reading.suite, key=lambda view: reading.right(view).sum())
    form, _, who = attack.rpartition(", ")
    if attack in reading.views or "EOT" not in (who, attack) and "noise-free transfer" not in (who, attack):
        return attack
    return form or next((view for view in reading.views if relation(reading.view(view)) == "white-box"), attack)


@lru_cache(maxsize=512)
def _at(record: Record, point: OperatingPoint) -> Record:
    """The record's views at a point that count in its suite, without logits: all that a reading there goes through."""
    keep = [v for v, view in enumerate(record.views) if view.point == point and relation(view) in ("clean", *SUITE)]
    return replace(record, logits=None).take(keep)


@lru_cache(maxsize=256)
def reading_at(record: Record, point: OperatingPoint, thresholds: tuple[float, ...]) -> Reading:
    """`read`, remembered: what sliders go through again and again."""
    return read(_at(record, point), point, thresholds)


@lru_cache(maxsize=64)
def threshold_curve(record: Record, point: OperatingPoint | None = None) -> tuple[Reading, ...]:
    """Readings from "nobody leaves early" to "all leave at exit 1": the same share of those who arrive leaves at every
    exit, by thresholds chosen on the held-out images. () where the record has none."""
    if record.held_out is None or record.num_exits == 1:
        return ()
    point, early = record.at(point), np.arange(record.num_exits - 1)
    entropy = record.held(point).entropy
    return tuple(reading_at(record, point, routing.calibrate(entropy, list(q * (1 - q) ** early))) for q in PASSING)
