"""Once-for-all networks (FLOAT, its control, OAT, PGD-AT) on the same images at their operating points: what they say
there, beside each other in tables, claims, gains and planes.

    found = wb.members(wb.load_all(("float", "dual_bn", "oat")))
    found["float"].read(0.2, 0.5).right("union")      # at λ_n 0.2, λ_th 0.5

A point is (method, λ_n), (method, λ_n, λ_th), (method, λ_n, λ_th, width), or (method, operating point).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import lib
from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.data import Dataset, Split
from lib.evaluation import points, recording
from lib.evaluation.reading import Reading, Trainings, read
from lib.evaluation.record import Record, View
from lib.evaluation.stats import Number
from lib.models import zoo
from lib.models.mixture import mixture
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training import methods
from lib.workbook import style, tables
from lib.workbook.published import GAINS, suited

FAMILIES = {"pgd_at": "PGD-AT λ", "mixed": "PGD-AT λ 0 and 1 mixed,"}  # a network per λ or weight
SIZES = {"quick": dict(mixes=(0.0, 0.5, 1.0), draws=2), "laptop": dict(mixes=(0.0, 0.5, 1.0), draws=5),
         "paper": dict(mixes=(0.0, 0.25, 0.5, 0.75, 1.0), draws=20)}  # draws of EOT's gradients, and at evaluation
COLUMNS = {"clean": "clean", "white-box": "PGD", "EOT": "EOT-PGD", "noise-free transfer": "transfer, noise-free",
           "draw known": "draw known", "union": "worst of suite, per image", "worst": "right in every draw",
           "strong": "strong suite, first images"}


@dataclass(frozen=True)
class Trained:
    """A network, the recipe it came from ("rdi_smallcnn-digits-main-laptop"), and the digest of its file.

    weights: where they were read from: "shipped", "train" (trained in this run), "file" (one that was named), or
    "record": they did not come along, only what they answered did, and `network` has shapes alone (device "meta").
    """

    name: str
    network: Network
    digest: str
    weights: str = "train"

    @classmethod
    def load(cls, path: Path, weights: str = "shipped", device: str = "cpu", name: str | None = None) -> "Trained":
        """The network of a file, or of its record alone; it is called as its recipe, unless `name` says otherwise."""
        if path.is_relative_to(lib.ATLASES):
            meta = Record.load(path).meta
            with torch.device("meta"):
                return cls(name or path.stem, zoo.build(**meta["model"], seed=None), meta["checkpoint"], "record")
        loaded = checkpoints.load(path, device)
        return cls(name or path.stem, loaded.network, loaded.digest, weights)

    @property
    def dataset(self) -> str:
        return self.name.split("-")[1]

    @property
    def defence(self) -> str:
        return self.name.split("-")[2]

    def shipped_record(self, which: str = "") -> Path:
        """Where its record is shipped: the one that explorers show, or another."""
        return lib.ATLASES / (f"repeats/{self.name}-{which}.safetensors" if which else f"{self.name}.safetensors")

    def own(self, record: Record) -> Record:
        """A record of it. Raises WorkbookError when it was made with other weights than these."""
        if record.meta.get("checkpoint") != self.digest:
            raise WorkbookError(f"the record of {self.name} was made with other weights; record it again")
        return record

    def attack(self, source: Dataset, images: Split, views: Sequence[View], **how) -> Record:
        """Its record on these images of a dataset, see `recording.record`."""
        return recording.record(self.network, images, views, dataset=source.name, data_variant=source.variant,
                                checkpoint=self.digest, defence=self.defence, **how)

    @property
    def quick(self) -> bool:
        """Whether it was trained for seconds only, and has hardly learned."""
        return bool({"glance", "quick"} & set(self.name.split("-")))


@dataclass(frozen=True)
class Member:
    """One method of the study: its network and record, and those of its further trainings.

    family: the method, whatever its weight.  weight: what is built in, PGD-AT's lambda or a mixture's weight; None
    where a knob is.
    """

    method: str
    trained: Trained
    record: Record
    others: tuple["Member", ...] = ()

    @property
    def network(self) -> Network:
        return self.trained.network

    @property
    def runs(self) -> tuple["Member", ...]:
        return (replace(self, others=()), *self.others)

    @property
    def family(self) -> str:
        return next((name for name in FAMILIES if self.method.startswith(name)), self.method)

    @property
    def weight(self) -> float | None:
        return float(self.method.removeprefix(self.family)) if self.family in FAMILIES else None

    @property
    def label(self) -> str:
        return style.label(self.method) if self.weight is None else f"{FAMILIES[self.family]} {self.weight:g}"

    def point(self, lambda_n: float, lambda_th: float = 0.0, width: float | None = None) -> OperatingPoint:
        return self.network.at(lambda_n, lambda_th, width)

    def published(self, lambdas=points.LAMBDAS, switches=points.SWITCHES, width=None) -> list[OperatingPoint]:
        """Where these λ_n and λ_th lead, as far as it was recorded there."""
        return [p for p in points.published(self.network, lambdas, switches, (width,)) if p in self.record.points]

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The λ_n, of the paper's figures and in quarters, that were recorded for λ_th = 0."""
        looked = (0.0, 0.2, 0.25, 0.5, 0.7, 0.75, 1.0)
        return tuple(n for n in looked if self.point(n, width=full(self.network)) in self.record.points)

    def read(self, *where, **how) -> Reading | Trainings:
        """Its record at a point, or at the point of (lambda_n, lambda_th, width); of all its trainings."""
        point = where[0] if isinstance(where[0], OperatingPoint) else self.point(*where)
        if self.record.num_exits > 1 and point.thresholds is None:
            how = {"thresholds": suited(self.record)} | how
        return read([run.record for run in self.runs] if self.others else self.record, point, **how)

    def readings(self) -> Iterator[Reading]:
        """All that is recorded of it: of each training at every point under each budget."""
        for run in self.runs:
            threats = dict.fromkeys(replace(v.threat, draws=1) for v in run.record.views if v.attacked)
            yield from (run.read(point, threat=threat) for point, threat in product(run.record.points, threats))


Members = Mapping[str, Member]


def full(network: Network) -> float | None:
    """The full width as a knob; None where there is one width alone."""
    return 1.0 if "width" in network.knobs else None


def ends(network: Network) -> tuple[OperatingPoint, OperatingPoint]:
    """The points of a network with a knob that README shows, and the strong suite attacks: λ 0 and 1 at full width."""
    return network.at(0.0, width=full(network)), network.at(1.0, width=full(network))


def at_points(defence: str) -> bool:
    """Whether a method is looked at at operating points: FLOAT and what it is compared with."""
    return defence in methods.METHODS or defence.startswith(("mixed", "float"))


def mixed(trained: Mapping[str, Trained], weights: Sequence[float] = (0.25, 0.5, 0.75)) -> dict[str, Trained]:
    """PGD-AT's two ends as one network that averages their probabilities; nothing where one of them is missing, or
    where the ends were shipped and the mixture's record was not."""
    if not {"pgd_at0", "pgd_at1"} <= set(trained):
        return {}
    ends = trained["pgd_at0"], trained["pgd_at1"]
    found = {f"mixed{w:g}": Trained(ends[0].name.replace("pgd_at0", f"mixed{w:g}"), mixture(*(
        end.network for end in ends), w), "+".join(end.digest[:16] for end in ends), ends[0].weights) for w in weights}
    came = [method for method, t in found.items() if (lib.ATLASES / f"{t.name}.safetensors").is_file()]
    return found if ends[0].weights == "train" else {method: found[method] for method in came}


def views(network: Network, threat: Threat, preset: str) -> tuple[View, ...]:
    """What is recorded of a once-for-all network: `points.views`; of one with several widths at all of them, and at
    fewer nodes between the published points."""
    size = SIZES[preset]
    if "width" in network.knobs:
        size = size | dict(widths=network.widths, mixes=(0.0, 1.0), noises=(0.0, 0.4, 1.0))
    return points.views(network, threat, **size)


def seven(network: Network, threat: Threat) -> tuple[View, ...]:
    """FLOAT's own attack at its points, at every width: PGD-7, whose step is that of OAT's code."""
    at = points.published(network, widths=network.widths if "width" in network.knobs else (None,))
    return points.under([methods.attack(threat.epsilon, 7)], at)


PGD7 = dict(which="pgd7", plan=seven)  # options of a session's `members` and `repeats`


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
                line[COLUMNS[who]] = tables.text(reading, who, 1, who in ("clean", "union", "strong"))
                if who == "clean" and (papers := find(seven or {}, member.method, at)):
                    line["PGD-7, the paper's"] = tables.text(papers, "white-box", 1)
    return pd.DataFrame(lines).T.fillna(tables.DASH).rename_axis(["method", "operating point"])


def where(member: Member, at: OperatingPoint, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> str:
    """A point by its knobs, and which (λ_n, λ_th) lead there."""
    if member.network.conditioning != "float":
        return points.name(at)
    led = [f"({n:g}, {th:g})" for th in switches for n in lambdas if member.point(n, th, at.width) == at]
    return points.name(at) + (f" ← (λ_n, λ_th) = {' '.join(led)}" if led else " (noise in training only)")


def find(members: Members, method: str, *where) -> Reading | Trainings | None:
    """A member's reading; None where the method did not come along, or was not recorded there."""
    member = members.get(method)
    point = member and (where[0] if isinstance(where[0], OperatingPoint) else member.point(*where))
    return member.read(point) if member and point in member.record.points else None


def claim(members: Members, text: str, first: tuple, second: tuple, what: str = "union",
          other: str | None = None) -> dict | None:
    """`tables.compared` of two (method, *where); None where one is not there, or lacks the strong suite asked for."""
    pair = [find(members, *side) for side in (first, second)]
    there = all(pair) and (what != "strong" or all(reading.survived for reading in pair))
    return tables.compared(text, *pair, what, other) if there else None


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
