"""The λ explorer: knobs of once-for-all networks move a point in the clean-robust plane. Records answer at once,
between their nodes by interpolation; where images and network are at hand any point can be computed exactly."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go
from IPython.display import display

from lib import WorkbookError
from lib.data import Dataset
from lib.evaluation import points, recording
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record, View, join
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_figures, lambda_view, live, style
from lib.workbook.lambda_study import Member

ATTACKERS = {"union": "worst of three, per image", "white-box": "PGD", "EOT": "EOT-PGD",
             "noise-free transfer": "transfer from no noise", "worst": "right in every draw"}
CHUNK, PICTURES = 25, 12


@dataclass(frozen=True)
class Spot:
    """Where a point lies: clean and robust {"value", "low", "high"}; exact, or interpolated between nodes.

    macs: true cost of one image.  said: first draw's answers (clean, attacked), (2, N), at the nearest recorded node.
    """

    point: OperatingPoint
    clean: dict
    robust: dict
    exact: bool
    macs: int
    said: np.ndarray
    images: int


def corners(record: Record, point: OperatingPoint) -> list[tuple[float, OperatingPoint]]:
    """[(weight, recorded point)]: bilinear in noise and batch norm; codes and widths are what was trained.

    Raises WorkbookError where the record has no nodes around the point.
    """
    recorded, choices = set(record.points), []
    same = [p for p in recorded if (p.code, p.width) == (point.code, point.width)]
    for knob in ("noise", "batch_norm"):
        value = getattr(point, knob)
        known = sorted({getattr(p, knob) for p in same} - {None})
        if value is None or not known:
            choices.append([(1.0, None)])
            continue
        below = max((v for v in known if v <= value), default=known[0])
        above = min((v for v in known if v >= value), default=known[-1])
        share = (value - below) / (above - below) if above > below else 0.0
        choices.append([(1 - share, below), (share, above)] if 0 < share < 1 else [(1.0, above if share else below)])
    found = [(a * b, point.replace(noise=noise, batch_norm=bank))
             for (a, noise), (b, bank) in itertools.product(*choices)]
    if missing := [p for _, p in found if p not in recorded]:
        raise WorkbookError(f"the record has no node {points.name(missing[0])}; compute this point exactly")
    return found


class LambdaExplorer:
    """`members`: networks with their records; images: their dataset, or None where only the records are at hand.

    point: the chosen OperatingPoint, for the next cell.  member: its network.
    """

    def __init__(self, members: Mapping[str, Member], images: Dataset | None, caption: str, *, method: str = "",
                 images_to_compute: int = 200):
        if not members:
            raise WorkbookError("there is nothing to explore; record a network first")
        self.members, self.images, self.caption = dict(members), images, caption
        self.families = lambda_figures.families(members)
        self.most, self.attacker, self.exact, self._readings = images_to_compute, "union", {}, {}
        self.choose(method or next(iter(self.families)))
        self.pin()
        self.turn(1.0, 0.0)

    # What is looked at: no widget is needed for any of this.

    def choose(self, family: str):
        """Look at another method, at its λ_n = 0 (and full width)."""
        self.family, self.width = family, max(self.families[family][0].network.widths)
        self.turn(0.0, 0.0)

    def turn(self, lambda_n: float, lambda_th: float):
        """Go where the one knob leads: PGD-AT to the network of the nearest λ."""
        self.lambda_n, self.lambda_th = lambda_n, lambda_th
        self.member = min(self.families[self.family], key=lambda m: abs((m.weight or 0.0) - lambda_n))
        self.point = self.member.point(lambda_n, lambda_th, self._width())

    def set(self, noise: float, batch_norm: float):
        """Go to a noise scale and a batch-norm mix by hand, as far as the network has these knobs."""
        changes = dict(noise=round(noise, 9), batch_norm=round(batch_norm, 9))
        self.point = self.point.replace(**{k: v for k, v in changes.items() if k in self.member.network.knobs})

    def narrow(self, width: float):
        self.width = width
        self.point = self.point.replace(width=self._width())

    def pin(self):
        """Keep the present point to compare with."""
        self.pinned = (self.member, self.point)

    def _width(self) -> float | None:
        return self.width if "width" in self.member.network.knobs else None

    def spot(self, member: Member | None = None, point: OperatingPoint | None = None, who: str | None = None) -> Spot:
        """The numbers at a point (default: the present one), exact where it was recorded or computed."""
        member, point, who = member or self.member, point or self.point, who or self.attacker
        record = self.exact.get((member.method, point), member.record)
        around = corners(record, point)
        readings = [(weight, self._read(record, at)) for weight, at in around]
        nearest = max(readings, key=lambda pair: pair[0])[1]
        said = record.prediction[[nearest.first("clean"), nearest.first("main")], -1]
        return Spot(point, mixed(readings, "clean"), mixed(readings, who), len(around) == 1, record.macs(point), said,
                    record.images)

    def _read(self, record: Record, point: OperatingPoint) -> Reading:
        """`reading.read`, remembered."""
        if (record, point) not in self._readings:
            self._readings[record, point] = read(record, point)
        return self._readings[record, point]

    def compute(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Spot:
        """Attack at exactly this point, on the first images of the record. Raises WorkbookError without the images."""
        if self.images is None:
            raise WorkbookError("the exact point needs the dataset, which is not on this machine")
        member, at, parts = self.member, self.point, []  # where a slider leads meanwhile does not count
        record = member.record
        threat = next(view.threat for view in record.views if view.attacked and view.threat.draws == 1)
        averaging = max(view.threat.draws for view in record.views if view.attacked)
        todo = [*points.clean([at]), View("main", at, threat)]
        if member.network.conditions(at).noisy:
            todo += [View("main", at, threat, points.quiet(at)),
                     View("main", at, replace(threat, draws=max(2, averaging)))]
        else:
            todo += [View("main", at, threat, restart=restart) for restart in (1, 2)]
        first, total = record.meta["images"][0], min(self.most, record.images)
        draws = max(view.draws for view in record.views)
        for start in range(0, total, CHUNK):
            progress(start, total)
            part = self.images.test[first + start:first + min(start + CHUNK, total)]
            parts.append(recording.record(member.network, part, todo, draws=draws, seed=record.meta["seed"],
                                          batch_size=CHUNK, first=first + start))
        progress(total, total)
        self.exact[member.method, at] = join(parts)
        return self.spot(member, at)

    # The two faces.

    def _ipython_display_(self):
        from lib.workbook.lambda_panel import LambdaPanel

        self.panel = live.faces(lambda: LambdaPanel(self), self.still)

    def still(self):
        """The explorer for a reader without sliders: λ_n = 0 beside λ_n = 1, and a table of stops between them."""
        live.show(self.drawn())
        display(self.stops())

    def drawn(self) -> go.Figure:
        figure = lambda_view.build(self)
        lambda_view.update(figure, self)
        return figure

    def stops(self):
        """A table along the knob of the present method, interpolated points marked with ≈."""
        import pandas as pd

        lines = {}
        for n, th in itertools.product((0.0, 0.2, 0.5, 0.7, 1.0), (0.0, 0.5)):
            member = min(self.families[self.family], key=lambda m, n=n: abs((m.weight or 0.0) - n))
            spot = self.spot(member, member.point(n, th, self._width()))
            mark = "" if spot.exact else "≈ "
            lines[n, th] = {"operating point": points.name(spot.point),
                            "clean, %": f"{mark}{100 * spot.clean['value']:.1f}",
                            f"robust ({ATTACKERS[self.attacker]}), %": f"{mark}{100 * spot.robust['value']:.1f}",
                            "M MACs": f"{spot.macs / 1e6:.2f}"}
        table = pd.DataFrame(lines).T
        table.index.names = ["λ_n", "λ_th"]
        return table


def mixed(readings: list[tuple[float, Reading]], who: str) -> dict:
    """The weighted mean of the nodes' accuracies and interval ends."""
    found = [(weight, reading.measured(who)._asdict()) for weight, reading in readings]
    return {part: math.fsum(weight * f[part] for weight, f in found) for part in ("value", "low", "high")}


def tiles(explorer: LambdaExplorer) -> str:
    """The numbers of the present point as HTML."""
    spot = explorer.spot()
    network, mark = explorer.member.network, "" if spot.exact else "≈ "

    def accuracy(name, found, colour):
        return style.tile(name, f"{mark}{100 * found['value']:.1f} %", colour,
                          f"{100 * found['low']:.1f} to {100 * found['high']:.1f}")

    noisy = network.conditions(spot.point).noisy
    drawn = f"and {network.noise_elements / 1e3:,.0f} k normal draws a pass" if noisy else "no random numbers"
    source = "recorded or computed here" if spot.exact else "interpolated between recorded points"
    return style.row([
        accuracy("clean", spot.clean, style.CLEAN),
        accuracy(f"attacked: {ATTACKERS[explorer.attacker]}", spot.robust, style.ATTACKED),
        style.tile("true cost", f"{spot.macs / 1e6:.2f} M MACs", style.INK, drawn),
        style.tile("where", points.name(spot.point), style.INK,
                   f"{explorer.member.label}; {spot.images} images; {source}")])
