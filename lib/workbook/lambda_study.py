"""A study of once-for-all networks: FLOAT, its control, OAT and PGD-AT on the same images at their operating points."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import lib
from lib import WorkbookError, data
from lib.attacks.steps import Threat
from lib.evaluation import points, recording, rows
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record, View
from lib.evaluation.stats import interval, paired_difference
from lib.models.mixture import mixture
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import networks, parameters, studies, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import suited
from lib.workbook.published_float import GAINS

SPOKEN = {"float": "FLOAT", "dual_bn": "control (dual BN, no noise)", "oat": "OAT", "pni": "PNI",
          "float_slim": "FLOAT-slim", "float_narrow": "FLOAT, half as wide, by itself",
          "dual_bn_slim": "slim control (no noise)", "oats": "OATS",
          "float_slim_heads": "FLOAT-slim, a head per width", "oats_heads": "OATS, a head per width (SOLAR)"}
FAMILIES = {"pgd_at": "PGD-AT λ", "mixed": "PGD-AT λ 0 and 1 mixed,"}  # a network per λ or weight
LEARNED = 0.25  # clean accuracy, surely above which a network of ten classes has learned something
SIZES = {"quick": dict(mixes=(0.0, 0.5, 1.0), draws=2), "laptop": dict(mixes=(0.0, 0.5, 1.0), draws=5),
         "paper": dict(mixes=(0.0, 0.25, 0.5, 0.75, 1.0), draws=20)}  # draws of EOT's gradients, and at evaluation


@dataclass(frozen=True)
class Member:
    """One network of the study. weight: what is built in, PGD-AT's lambda or a mixture's weight; None where a knob is.

    family: the method, whatever its weight.
    """

    method: str
    trained: Trained
    record: Record

    @property
    def network(self) -> Network:
        return self.trained.network

    @property
    def family(self) -> str:
        return next((name for name in FAMILIES if self.method.startswith(name)), self.method)

    @property
    def weight(self) -> float | None:
        return float(self.method.removeprefix(self.family)) if self.family in FAMILIES else None

    @property
    def label(self) -> str:
        return SPOKEN[self.method] if self.weight is None else f"{FAMILIES[self.family]} {self.weight:g}"

    def point(self, lambda_n: float, lambda_th: float = 0.0, width: float | None = None) -> OperatingPoint:
        return points.of_lambda(self.network, lambda_n, lambda_th, width)

    def read(self, *where, **how) -> Reading:
        """Its record at a point, or at the point of (lambda_n, lambda_th, width)."""
        point = where[0] if isinstance(where[0], OperatingPoint) else self.point(*where)
        if self.record.num_exits > 1 and point.thresholds is None:
            how = {"thresholds": suited(self.record)} | how
        return read(self.record, point, **how)


def resolve(namespace: dict, notebook: str, methods: Sequence[str], **by_preset) -> Settings:
    """`studies.resolve` for notebooks on these methods, whose network is a parameter, too.

    Shipped weights: a dataset for which the named methods came along, else the quick size is trained.
    """
    by_preset = dict(network=("resnet20", "resnet20", "resnet34"), dataset=("digits", "digits", "cifar10")) | by_preset
    asked = parameters.resolve(namespace, notebook, **by_preset)
    return studies.resolve(namespace, notebook, {"dataset": {asked.network: tuple(methods)}}, **by_preset)


def dataset(settings: Settings) -> data.Dataset | None:
    """The dataset in the shape that this study's networks take; None where shipped networks came without it."""
    shape = tuple(studies.recipe(settings, settings.network, "float").network["input_shape"])
    if settings.weights == "shipped":
        return networks.at_hand(settings.dataset, shape=shape, device=settings.device)
    return studies.dataset(settings, shape=shape)


def obtain(settings: Settings, methods: Sequence[str]) -> dict[str, Trained]:
    """{method: its network}, trained once per run; with shipped weights, of the methods that came along."""
    family = f"{settings.network}-{settings.dataset}-{{}}"
    return {method: studies.obtain(settings, settings.network, method) for method in methods
            if settings.weights == "train"
            or networks.shipped(lib.CHECKPOINTS, family.format(method), settings.preset)}


def mixed(trained: dict[str, Trained], weights: Sequence[float] = (0.25, 0.5, 0.75)) -> dict[str, Trained]:
    """PGD-AT's two ends as one network that averages their probabilities; nothing where one of them is missing."""
    if not {"pgd_at0", "pgd_at1"} <= set(trained):
        return {}
    ends = trained["pgd_at0"], trained["pgd_at1"]
    return {f"mixed{w:g}": Trained(ends[0].name.replace("pgd_at0", f"mixed{w:g}"), mixture(*(
        end.network for end in ends), w), "+".join(end.digest[:16] for end in ends), ends[0].weights) for w in weights}


def members(settings: Settings, images: data.Dataset | None, trained: dict[str, Trained],
            **options) -> dict[str, Member]:
    """{method: network and record}; options: of `points.views`, and the threat; or plan(network), what to record."""
    return {method: Member(method, t, record(settings, t, images, **options)) for method, t in trained.items()}


def record(settings: Settings, trained: Trained, images: data.Dataset | None, **options) -> Record:
    """The record of a network: shipped with its weights, or recorded in this run and kept.

    Raises WorkbookError where it has to be recorded and the dataset is not at hand.
    """
    if not options and (found := networks.recorded(settings, trained)) is not None:
        return found
    if images is None:
        raise WorkbookError(f"{trained.name} came without a record of these images and seed, and its dataset is not on "
                            "this machine; see data/README.md for how to get it")
    size = SIZES[settings.preset] | options
    todo, draws = planned(trained.network, size.pop("threat", None) or networks.threat_of(settings, images), **size)
    told = hashlib.sha256(repr(todo).encode()).hexdigest()[:8]
    label = f"{trained.name}-{trained.digest[:8]}-{settings.images}-{draws}-{told}-s{settings.seed}"
    path = settings.run_dir.parent / "records" / f"{label}.safetensors"
    with networks.waiting_for(path):
        if not path.is_file():
            recording.record(trained.network, networks.first(settings, images, settings.images), todo, draws=draws,
                             seed=settings.seed, folder=path.with_suffix(""), dataset=images.name,
                             data_variant=images.variant, checkpoint=trained.digest, defence=trained.defence).save(path)
    return Record.load(path)


def planned(network: Network, threat: Threat, *, draws: int, plan: Callable | None = None,
            **size) -> tuple[Sequence[View], int]:
    """(the views to record, draws): of plan(network), else those of `points.views`; with several widths at all of
    them, and at fewer nodes between the published points."""
    if plan is not None:
        return plan(network), draws
    if "width" in network.knobs:
        size |= dict(widths=network.widths, mixes=(0.0, 1.0), noises=(0.0, 0.4, 1.0))
    return points.views(network, threat, draws=draws, **size), draws


def caption(settings: Settings, found: dict[str, Member]) -> str:
    """What every number of these members stands on, in one line."""
    record = next(iter(found.values())).record
    threat = next(view.threat for view in record.views if view.attacked)
    draws = max(m.read(p).draws for m in found.values() for p in m.record.points)
    return (f"{record.images:,} test images of {record.meta['dataset']} ({record.meta['data_variant']}) · "
            f"PGD-{threat.steps}, ε {threat.epsilon:.3g}, step {threat.step_size:.3g} · mean over {draws} draws of the "
            f"noise · seed {record.meta['seed']} · preset {settings.preset} · 95 % intervals")


def write(settings: Settings, found: dict[str, Member]) -> Path:
    """All numbers of the members as tidy rows in the run's table; returns its path."""
    path = settings.table
    for member in found.values():
        threats = dict.fromkeys(replace(v.threat, draws=1) for v in member.record.views if v.attacked)
        told = dict(experiment=settings.notebook, preset=settings.preset, weights=member.trained.weights)
        rows.append(path, (row for point in member.record.points for threat in threats
                           for row in rows.of(member.read(point, threat=threat), **told)))
    return path


# Tables.

COLUMNS = {"clean": "clean", "white-box": "PGD", "EOT": "EOT-PGD", "noise-free transfer": "transfer, noise-free",
           "draw known": "draw known", "union": "worst of suite, per image", "worst": "right in every draw"}


def percent(share: np.ndarray, with_interval: bool = False) -> str:
    found = interval(share)
    return tables.spread(found, 1, unit=100) if with_interval else f"{100 * found.value:.1f}"


def accuracies(found: dict[str, Member], lambdas=points.LAMBDAS, switches=points.SWITCHES,
               width: float | None = None, columns=tuple(COLUMNS)) -> pd.DataFrame:
    """Accuracy in percent: a line per method and point of the paper, a column per attacker."""
    lines, shown = {}, {who: COLUMNS[who] for who in columns}
    for member in found.values():
        for at in points.published(member.network, lambdas, switches, (width,)):
            reading = member.read(at)
            lines[member.label, where(member, at, lambdas, switches)] = {
                said: tables.DASH if who == "draw known" and who not in reading.names
                else percent(reading.right(who), who in ("clean", "union")) for who, said in shown.items()}
    table = pd.DataFrame(lines).T
    table.index.names = ["method", "operating point"]
    return tables._plain(table)


def where(member: Member, at: OperatingPoint, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> str:
    """A point by its knobs, and which (λ_n, λ_th) lead there."""
    if member.network.conditioning != "float":
        return points.name(at)
    led = [f"({n:g}, {th:g})" for th in switches for n in lambdas if member.point(n, th, at.width) == at]
    return points.name(at) + (f" ← (λ_n, λ_th) = {' '.join(led)}" if led else " (noise in training only)")


def crossing(member: Member, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> pd.DataFrame:
    """Robust accuracy in percent: crafted at (rows) x evaluated at (columns), over the published points."""
    at = points.published(member.network, lambdas, switches)
    names = {p: points.name(p) for p in at}
    table = pd.DataFrame(index=list(names.values()), columns=list(names.values()), dtype=float)
    for v, view in enumerate(member.record.views):
        plain = view.attacked and view.threat.draws == 1 and not view.restart and view.evaluated_at.draw is None
        if plain and view.crafted_at in names and view.evaluated_at in names:
            share = member.record.right[v, -1] / view.draws
            table.loc[names[view.crafted_at], names[view.evaluated_at]] = 100 * share.mean()
    table.index.name = "crafted at ↓  evaluated at →"
    return table


def contributions(found: dict[str, Member]) -> list[tuple[str, str, Reading, Reading]]:
    """(what, quantity, with, without) for each part of FLOAT: batch norms, noise at inference, noise in training."""
    flt, control = found["float"], found["dual_bn"]
    clean, quiet, full = (OperatingPoint(noise=s, batch_norm=b) for s, b in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    bank = OperatingPoint(batch_norm=1.0)
    pairs = {"BN_A instead of BN_C, no noise": (flt.read(quiet), flt.read(clean)),
             "the same in the control": (control.read(bank), control.read(OperatingPoint(batch_norm=0.0))),
             "noise at inference, both BN_A": (flt.read(full), flt.read(quiet)),
             "noise in training (run without), both BN_A": (flt.read(quiet), control.read(bank)),
             "all of the noise: FLOAT (1, BN_A) instead of the control's BN_A": (flt.read(full), control.read(bank))}
    return [(what, quantity, *pair) for what, pair in pairs.items() for quantity in ("clean", "union")]


def parts(found: dict[str, Member]) -> list[dict]:
    """What each part of FLOAT adds, as verdicts."""
    said = {"clean": "more clean accuracy", "union": "more robust accuracy"}
    return [compared(f"{what}: {said[quantity]}", *pair, quantity) for what, quantity, *pair in contributions(found)]


def difference(first: Reading, second: Reading, what: str) -> tuple[str, str]:
    """A paired difference in points and its interval; dashes where one of the networks has hardly learned."""
    if not learned(first, second):
        return tables.DASH, tables.DASH
    found = paired_difference(first.right(what), second.right(what))
    value, low, high = (100 * found[part] for part in ("difference", "low", "high"))
    return f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}"


def learned(*readings: Reading) -> bool:
    """Whether all of them answer clean images surely better than chance does."""
    return all(r.measured("clean").low >= LEARNED for r in readings)


def gains(found: dict[str, Member], lambdas=points.LAMBDAS) -> pd.DataFrame:
    """The gains that the paper names beside ours: the largest over λ where it says "up to"; ours is one dataset."""
    flt = found["float"]
    lines = {"λ_th 0.5 instead of 0 at λ_n = 0.2": [(flt.read(0.2, 0.5), flt.read(0.2, 0.0))]}
    if "oat" in found:
        lines["FLOAT instead of OAT"] = [(flt.read(n), found["oat"].read(n)) for n in lambdas]
    if plain := [m for m in found.values() if m.family == "pgd_at"]:
        lines["FLOAT instead of PGD-AT"] = [(flt.read(m.weight), m.read(m.weight)) for m in plain]
    shown = []
    for what, pairs in lines.items():
        for quantity, who in (("clean", "clean"), ("robust", "white-box")):
            best = max(pairs, key=lambda pair, who=who: (pair[0].right(who) * 1.0 - pair[1].right(who)).mean())
            measured, interval = difference(*best, who)
            shown.append({"gain": what, "quantity": f"{quantity} accuracy", "published": signed(GAINS.value(
                what, quantity)), "measured": measured, "95 % interval": interval,
                "at": points.name(best[0].point)})
    return tables._plain(pd.DataFrame(shown).set_index(["gain", "quantity"]))


def signed(value: float | None) -> str:
    return tables.DASH if value is None else f"{value:+.2f}"


def compared(claim: str, first: Reading, second: Reading, what: str = "union", other: str | None = None) -> dict:
    """`tables.verdict` on two readings; a network that still answers at chance on clean images decides nothing."""
    line = tables.verdict(claim, first.right(what), second.right(other or what), draws=max(first.draws, second.draws))
    if not learned(first, second):
        line["verdict"] = "too small to tell: one of them has hardly learned"
    return line


def verdicts(found: dict[str, Member]) -> pd.DataFrame:
    """The paper's claims and the questions it leaves open, answered by the records."""
    flt, full, none = found["float"], found["float"].read(1.0), found["float"].read(0.0)
    early, late = flt.read(0.2, 0.5), flt.read(0.2, 0.0)
    lines = [compared("λ_n = 1 is more robust than λ_n = 0", full, none),
             compared("λ_n = 0 is more accurate on clean images than λ_n = 1", none, full, "clean"),
             compared("λ_th = 0.5 gives more clean accuracy at λ_n = 0.2 than 0", early, late, "clean"),
             compared("… and costs robust accuracy", late, early),
             compared("EOT leaves (1, BN_A) less accuracy than one draw a step", full, full, "white-box", "EOT"),
             compared("so do images crafted without noise", full, full, "white-box", "noise-free transfer")]
    if "dual_bn" in found:
        lines += parts(found)
    if "oat" in found:
        lines += [compared(f"FLOAT is more robust than OAT at λ = {n:g}", flt.read(n), found["oat"].read(n))
                  for n in (0.2, 1.0)]
    lines += [compared(f"FLOAT at λ_n = {m.weight:g} is more robust than {m.label}", flt.read(m.weight),
                       m.read(m.weight)) for m in found.values() if m.family == "pgd_at" and m.weight in (0.2, 1.0)]
    if half := found.get("mixed0.5"):
        lines += [compared(f"{half.label}: more accurate on clean images than FLOAT at λ_n = 1", half.read(1.0), full,
                           "clean"), compared("… and more robust", half.read(1.0), full)]
    return tables.verdicts(*lines)
