"""Which operating points a once-for-all network is looked at, which attacks meet them there, and how to say it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib import WorkbookError
from lib.attacks.steps import Threat
from lib.evaluation.accuracy import paired_difference, wilson
from lib.evaluation.grid import Attack, Cell, Grid
from lib.evaluation.record import View
from lib.models.network import Network
from lib.operating_point import OperatingPoint

LAMBDAS, SWITCHES = (0.0, 0.2, 0.7, 1.0), (0.0, 0.5)  # lambda_n and lambda_th of FLOAT's figures
SUITE = ("white-box", "EOT", "noise-free transfer", "restart 2", "restart 3")  # the attacks behind a worst case


def of_lambda(network: Network, lambda_n: float, lambda_th: float = 0.0, width: float | None = None) -> OperatingPoint:
    """Where one knob puts this network at that width, see `Conditioning.at`."""
    return network.at(lambda_n, lambda_th).replace(width=width)


def published(network: Network, lambdas: Sequence[float] = LAMBDAS, switches: Sequence[float] = SWITCHES,
              widths: Sequence[float | None] = (None,)) -> tuple[OperatingPoint, ...]:
    """The points of FLOAT's figures, each once, and the one they lack: trained with noise, run without it in BN_A."""
    found = [of_lambda(network, n, th, w) for w in widths for th in switches for n in lambdas]
    found += [quiet(p) for p in found]
    return tuple(dict.fromkeys(found))


def quiet(point: OperatingPoint) -> OperatingPoint:
    """The same point without noise."""
    return point.replace(noise=0.0) if point.noise is not None else point


def nodes(network: Network, noises: Sequence[float], mixes: Sequence[float],
          widths: Sequence[float | None] = (None,)) -> tuple[OperatingPoint, ...]:
    """Every combination of the knobs that the network has: what its sliders can be set to without computing."""
    noises = noises if "noise" in network.knobs else (None,)
    mixes = mixes if "batch_norm" in network.knobs else (None,)
    return tuple(OperatingPoint(noise=s, batch_norm=b, code=c, width=w) for w in widths
                 for c in network.code_values or (None,) for b in mixes for s in noises)


def attacks(network: Network, threat: Threat, *, noises=(0.0, 0.2, 0.4, 0.7, 1.0), mixes=(0.0, 0.5, 1.0), draws=10,
            lambdas=LAMBDAS, switches=SWITCHES, widths=(None,)) -> tuple[Attack, ...]:
    """What a grid of this network records; `draws`: gradients per step of the averaging (EOT) attacker.

    Clean images at every node and published point. The plain attack, crafted at each of them and judged there; crafted
    at a published point also at all others of its width; crafted without noise also at all noises of its batch norm.
    On noisy points the averaging attack, and at the published ones an attacker who knows the draw; points without
    noise get two restarts instead, so that the suites of both hold three attacks (see `SUITE`).
    """
    paper = published(network, lambdas, switches, widths)
    every = tuple(dict.fromkeys((*paper, *nodes(network, noises, mixes, widths))))
    found = [Attack(every)]
    for point in every:
        met = [p for p in every if p == point or (p.width == point.width and (
            (point in paper and p in paper) or (quiet(p) == point and quiet(point) == point)))]
        found.append(Attack(tuple(met), threat, point))
    noisy = [p for p in every if network.conditions(p).noisy]
    found += [Attack((p,), replace(threat, draws=draws), p) for p in noisy]
    found += [Attack((p,), threat, p, restart) for p in every if p not in noisy for restart in (1, 2)]
    known = [p.replace(draw=0) for p in noisy if p in paper]
    return tuple(found + [Attack((p,), threat, p) for p in known])


def views(network: Network, threat: Threat, *, forms: Sequence[str] = ("main",), noises=(0.0, 0.2, 0.4, 0.7, 1.0),
          mixes=(0.0, 0.5, 1.0), draws=10, lambdas=LAMBDAS, switches=SWITCHES, widths=(None,)) -> tuple[View, ...]:
    """What is recorded of a once-for-all network; `draws`: gradients per step of the averaging (EOT) attacker.

    Clean images at every node and published point. The plain attack, crafted at each of them and judged there; crafted
    at a published point also at all others of its width; crafted without noise also at all noises of its batch norm.
    On noisy points the averaging attack, and at the published ones an attacker who knows the draw; points without
    noise get two restarts instead, so that the suites of both hold three attacks. forms: of each attack.
    """
    paper = published(network, lambdas, switches, widths)
    every = tuple(dict.fromkeys((*paper, *nodes(network, noises, mixes, widths))))
    noisy = [p for p in every if network.conditions(p).noisy]
    plain = [(p, at) for at in every for p in every if p == at or (p.width == at.width and (
        (at in paper and p in paper) or (quiet(p) == at and quiet(at) == at)))]
    found = [dict(evaluated_at=p, threat=threat, crafted_at=at) for p, at in plain]
    found += [dict(evaluated_at=p, threat=replace(threat, draws=draws)) for p in noisy]
    found += [dict(evaluated_at=p, threat=threat, restart=again) for p in every if p not in noisy for again in (1, 2)]
    found += [dict(evaluated_at=p.replace(draw=0), threat=threat) for p in noisy if p in paper]
    return (*clean(every), *(View(form, **attack) for attack in found for form in forms))


def clean(points: Sequence[OperatingPoint]) -> tuple[View, ...]:
    return tuple(View("clean", point) for point in points)


def under(threats: Sequence[Threat], at: Sequence[OperatingPoint]) -> tuple[Attack, ...]:
    """Clean images and every threat, white-box at each of these points."""
    return (Attack(tuple(at)), *(Attack((p,), threat, p) for threat in threats for p in at))


def name(point: OperatingPoint) -> str:
    """A point as people say it: "s 0.4, BN_A", "λ 0.2", "width 0.5", "as trained"."""
    words = []
    if point.code is not None:
        words.append(f"λ {point.code:g}")
    if point.noise is not None:
        words.append(f"s {point.noise:g}")
    if point.batch_norm is not None:
        words.append({0: "BN_C", 1: "BN_A"}.get(point.batch_norm, f"BN {point.batch_norm:g}"))
    if point.width is not None:
        words.append(f"width {point.width:g}")
    return ", ".join(words) or "as trained"


def relation(cell: Cell) -> str:
    """Who the attacker was: "clean", "white-box", "EOT", "draw known", "noise-free transfer", "crafted at …", …"""
    crafted, evaluated = cell.crafted_at, cell.evaluated_at
    if not cell.attacked:
        return "clean"
    if crafted == evaluated:
        return ("EOT" if cell.threat.draws > 1 else "draw known" if crafted.draw is not None
                else f"restart {cell.restart + 1}" if cell.restart else "white-box")
    return "noise-free transfer" if quiet(evaluated) == crafted else f"crafted at {name(crafted)}"


@dataclass(frozen=True)
class Reading:
    """What a grid says about one point. cells: {relation: (N,) share of draws right}, "clean" among them.

    union: per image the lowest share among clean and the suite.  worst: right in every draw under clean and the suite.
    """

    point: OperatingPoint
    cells: dict[str, np.ndarray]
    union: np.ndarray
    worst: np.ndarray
    draws: int

    def share(self, what: str) -> np.ndarray:
        """(N,) of "clean", "union", "worst" or a relation; EOT and transfer of a point without noise are white-box."""
        if what in ("union", "worst"):
            return getattr(self, what)
        if what not in self.cells and what in SUITE and "EOT" not in self.cells:
            what = "white-box"
        if what not in self.cells:
            raise WorkbookError(f"{name(self.point)} was not met by '{what}'; it was by {', '.join(self.cells)}")
        return self.cells[what]


def read(grid: Grid, point: OperatingPoint, threat: Threat | None = None) -> Reading:
    """The grid at one point, under its own attack or another of its threats (compared without EOT's draws)."""
    threat = threat or next((c.threat for c in grid.cells if c.attacked), None)
    chosen = [i for i in grid.at(point) if not grid.cells[i].attacked
              or replace(grid.cells[i].threat, draws=1) == threat]
    cells = {relation(grid.cells[i]): grid.share(i) for i in chosen}
    suite = np.stack([share for who, share in cells.items() if who in ("clean", *SUITE)])
    return Reading(point, cells, suite.min(0), (suite == 1).all(0).astype(float), grid.cells[chosen[0]].draws)


def rows(grid: Grid, **context) -> list[dict]:
    """Every cell as a tidy row, and for each point both worst cases over the suite; intervals are Wilson's, which are
    too wide for means over draws rather than too narrow."""
    meta, images = grid.meta, len(grid.labels)
    base = {"split": meta.get("split", "test"), "images": images, "exit": "main", **context,
            **{k: meta.get(k) for k in ("defence", "dataset", "data_variant", "seed", "checkpoint", "device", "threads",
                                        "version")}}
    base["model"] = meta["model"]["name"]
    result = []
    for i, cell in enumerate(grid.cells):
        said = relation(cell) if not cell.attacked else f"{kind(cell.threat)} {relation(cell)}"
        result.append({**base, "metric": "robust_accuracy" if cell.attacked else "clean_accuracy",
                       **interval(grid.share(i)), "attack": said, "evaluated_at": _text(cell.evaluated_at),
                       **({} if not cell.attacked else {"crafted_at": _text(cell.crafted_at), "attack_mode": "eval",
                          **_budget(cell.threat)})})
    threats = dict.fromkeys(replace(cell.threat, draws=1) for cell in grid.cells if cell.attacked)
    for point in grid.points:
        at = {"evaluated_at": _text(point)}
        for threat in threats:
            found = read(grid, point, threat)
            suite = f"{kind(threat)}: " + " + ".join(who for who in found.cells if who in ("clean", *SUITE))
            result += [{**base, **at, **_budget(threat), "metric": metric, "suite": suite, **interval(share)}
                       for metric, share in (("union_accuracy", found.union), ("worst_draw_accuracy", found.worst))]
        result.append({**base, **at, "metric": "cumulative_macs",
                       "value": meta["macs"][f"{1.0 if point.width is None else point.width:g}"]})
    return result


def kind(threat: Threat) -> str:
    """What steps: "pgd", "fgsm", "pgd cw"."""
    return threat.algorithm + (" cw" if threat.loss == "margin" else "")


def _budget(threat: Threat) -> dict:
    return {k: getattr(threat, k) for k in ("epsilon", "steps", "step_size")}


def interval(share: np.ndarray) -> dict[str, float]:
    """{"value", "low", "high"} of a mean over images (N,); of (S, N) over S trainings, which are drawn anew as well."""
    if share.ndim == 2:
        found = paired_difference(share, np.zeros_like(share))
        return {"value": found["difference"], "low": found["low"], "high": found["high"]}
    low, high = wilson(float(share.sum()), len(share))
    return {"value": float(share.mean()), "low": low, "high": high}


def _text(point: OperatingPoint) -> str:
    return json.dumps(point.to_json())
