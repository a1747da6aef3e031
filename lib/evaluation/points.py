"""Which operating points a once-for-all network is looked at, which attacks meet them there, and how to say it."""

from collections.abc import Sequence
from dataclasses import replace

from lib.attacks.forms import GATED
from lib.attacks.steps import Threat
from lib.evaluation.record import Record, View
from lib.models.network import Network
from lib.operating_point import OperatingPoint

LAMBDAS, SWITCHES = (0.0, 0.2, 0.7, 1.0), (0.0, 0.5)  # lambda_n and lambda_th of FLOAT's figures


def published(network: Network, lambdas: Sequence[float] = LAMBDAS, switches: Sequence[float] = SWITCHES,
              widths: Sequence[float | None] = (None,)) -> tuple[OperatingPoint, ...]:
    """The points of FLOAT's figures, each once, and the one they lack: trained with noise, run without it in BN_A."""
    found = [network.at(n, th, w) for w in widths for th in switches for n in lambdas]
    found += [quiet(p) for p in found]
    return tuple(dict.fromkeys(found))


def quiet(point: OperatingPoint) -> OperatingPoint:
    """The same point without noise."""
    return point.replace(noise=0.0) if point.noise is not None else point


def halfway(network: Network) -> OperatingPoint:
    """Between the two batch norms, without noise."""
    return quiet(network.at(1.0)).replace(batch_norm=0.5)


def nodes(network: Network, noises: Sequence[float], mixes: Sequence[float],
          widths: Sequence[float | None] = (None,)) -> tuple[OperatingPoint, ...]:
    """Every combination of the knobs that the network has: what its sliders can be set to without computing."""
    noises = noises if "noise" in network.knobs else (None,)
    mixes = mixes if "batch_norm" in network.knobs else (None,)
    return tuple(OperatingPoint(noise=s, batch_norm=b, code=c, width=w) for w in widths
                 for c in network.code_values or (None,) for b in mixes for s in noises)


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


def suite(network: Network, threat: Threat, at: Sequence[OperatingPoint], draws: int = 0) -> tuple[View, ...]:
    """Clean images, and equally many attacks at each of these points: the plain one; where there is noise that of the
    point without it, too (transfer), and for draws > 1 one that averages over so many draws a step (EOT); restarts
    elsewhere."""
    noisy = [p for p in at if network.conditions(p).noisy]
    met = [(q, p) for p in at for q in (p, *(q for q in noisy if q != p and quiet(q) == p))]
    eot, again = (noisy, (1, 2)) if draws > 1 else ((), (1,))
    return (*clean(at), *(View("main", q, threat, p) for q, p in met),
            *(View("main", p, replace(threat, draws=draws)) for p in eot),
            *(View("main", p, threat, restart=r) for p in at if p not in noisy for r in again))


def every_knob(network: Network, threat: Threat, gates: Record | Sequence[float], *, draws=10,
               forms: Sequence[str] = ("main", "average", "max_average", "gate_aware"),
               lambdas=(0.0, 0.25, 0.5, 0.75, 1.0), switches=SWITCHES) -> tuple[View, ...]:
    """What is recorded of a network with exits, noise, two batch norms and widths, or with some of these.

    At every point that these lambda_n lead to at each lambda_th, with both batch norms also without noise, at each
    width: clean images and the forms. gates: thresholds that gate_aware knows, the same at all points; or the record of
    held-out images (`recording.hold_out` at these points), for equal shares at each. On noisy points the averaging
    attacker as well (draws > 1 gradients a step; 0 leaves it out), in the form that needs fewest: average.
    """
    widths = network.widths if "width" in network.knobs else (None,)
    found = []
    for point in published(network, lambdas, switches, widths):
        found.append(View("clean", point))
        for form in forms if network.num_exits > 1 else ("main",):
            used = None
            if form in GATED:
                used = gates if not isinstance(gates, Record) else replace(gates, held_out=gates).thresholds_of(
                    "calibrated", point)
            found.append(View(form, point, threat, thresholds_used=used and tuple(float(t) for t in used)))
        if draws > 1 and network.conditions(point).noisy:
            found.append(View("average" if network.num_exits > 1 else "main", point, replace(threat, draws=draws)))
    return tuple(found)


def clean(points: Sequence[OperatingPoint]) -> tuple[View, ...]:
    return tuple(View("clean", point) for point in points)


def under(threats: Sequence[Threat], at: Sequence[OperatingPoint]) -> tuple[View, ...]:
    """Clean images and every threat, white-box at each of these points."""
    return (*clean(at), *(View("main", p, threat) for threat in threats for p in at))


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
