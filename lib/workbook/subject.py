"""What an explorer can look at: one network's record, its knobs and attacks, and, at hand, its images and itself."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import lib
from lib import WorkbookError, checkpoints, data
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import gates, points, recording, routing
from lib.evaluation.between import nearest
from lib.evaluation.reading import SUITE, kind, read, relation
from lib.evaluation.record import Record, View, join
from lib.models.conditioning import Conditioning
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import microscope, style
from lib.workbook.published import suited

BY_HAND = ("noise", "batch_norm", "code")
CHUNK = 25  # images attacked between two signs of progress


@dataclass(frozen=True)
class Setting:
    """All knobs at once. lambda_n is None where noise and batch norm were set by hand and no lambda_n leads there.

    source: where the thresholds come from, one of SOURCES, a number (budget: a share of the plain network's MACs), or
    the thresholds themselves.  decision: one of gates.DECISIONS.
    """

    network: str
    lambda_n: float | None
    lambda_th: float
    at: OperatingPoint
    source: str | float | tuple
    thresholds: tuple[float, ...]
    attack: str
    threat: str
    decision: str = "entropy"


def at_hand(name: str, **options) -> data.Dataset | None:
    """The dataset where its files are on this machine, else None (nothing is downloaded)."""
    try:
        return data.load(name, download=False, **options)
    except WorkbookError:
        return None


def explorable(folder: Path | str) -> dict[str, "Subject"]:
    """Every record below `folder`, by its place there, as an explorer shows it; with its network where that came."""
    found = {}
    for path in sorted(Path(folder).rglob("*.safetensors")):
        weights, name = lib.CHECKPOINTS / path.name, path.relative_to(folder).with_suffix("").as_posix()
        with contextlib.suppress(WorkbookError):  # weights and states of the same run
            found[name] = Subject.of(Record.load(path), functools.partial(
                lambda file: checkpoints.load(file).network, weights) if weights.is_file() else None)
    if not found:
        raise WorkbookError(f"there is no record in {folder}; run one with `python3 -m lib run`, or record one with "
                            "`evaluate … --save-record FILE`")
    return found


def brought(record: Record) -> Split | None:
    """The images that a record was made of, where they came along with the repository, else None."""
    path = lib.IMAGES / f"{record.meta.get('dataset')}.safetensors"
    if not path.is_file():
        return None
    tensors, about, _ = checkpoints.read(path, "images")
    same = about["data_variant"] == record.meta.get("data_variant")
    if not same or not np.array_equal(tensors["labels"][slice(*record.meta["images"])], record.labels):
        return None
    return Split(tensors["images"], tensors["labels"], tuple(about["classes"]))


@dataclass(frozen=True, eq=False)
class Subject:
    """A record, and where they are at hand the images that it was made of and the network.

    source: the images, or what reads them when they are looked for; None: those that came with the repository.
    attacker: which of several this shows alone.
    """

    record: Record
    source: Split | Callable[[], Split | None] | None = None
    network: Callable[[], Network] | None = None
    attacker: str = ""
    _gates: dict = field(default_factory=dict, repr=False)
    _parts: dict[str, "Subject"] = field(default_factory=dict, repr=False)  # by threat or decision

    @classmethod
    def of(cls, record: Record, network: Network | Callable[[], Network] | None = None) -> "Subject":
        """With the images, which have to be the very ones that the record is of, and the network, or what reads it."""
        def images() -> Split | None:
            dataset = at_hand(record.meta.get("dataset") or "", shape=tuple(record.meta["model"]["input_shape"]))
            return dataset.test if dataset and dataset.variant == record.meta.get("data_variant") else None

        return cls(record, images, (lambda: network) if isinstance(network, Network) else network)

    @cached_property
    def images(self) -> Split | None:
        found = self.source() if callable(self.source) else self.source
        return brought(self.record) if found is None else found

    @cached_property
    def knobs(self) -> frozenset[str]:
        return frozenset().union(*(p.used() for p in self.record.points), {"thresholds"} if self.early else ())

    @property
    def early(self) -> int:
        return self.record.num_exits - 1

    def at(self, lambda_n: float, lambda_th: float, width: float | None) -> OperatingPoint:
        """Where lambda_n leads, see `Conditioning.at`; whatever was not recorded of the knobs stays out."""
        row = Conditioning.named(self.record.meta["model"].get("conditioning", "none"))
        found = row.at(lambda_n, lambda_th, self.values("code") or (0.0,))
        return OperatingPoint(**{k: getattr(found, k) for k in BY_HAND if k in self.knobs}, width=width)

    def leads(self, at: OperatingPoint, lambda_th: float) -> float | None:
        """The lambda_n that leads to a point, None where none does."""
        noise, bank = at.noise or 0.0, at.batch_norm
        found = ([at.code] if at.code is not None else [noise * lambda_th] if bank == 0 else
                 [lambda_th + noise * (1 - lambda_th), 1.0] if bank == 1 else [noise])
        return next((n for n in (round(n, 9) for n in found) if self.at(n, lambda_th, at.width) == at), None)

    def values(self, knob: str) -> list[float]:
        """The recorded values of a knob, ascending."""
        return sorted({getattr(p, knob) for p in self.record.points} - {None})

    @cached_property
    def attacks(self) -> list[str]:
        """What it was attacked with, all in a suite first; transfers between points and restarts count in that only."""
        closed, draws = (-math.inf,) * self.early, {}
        for point in self.record.points:
            reading = read(self.record, point, closed)
            draws |= {called: reading.draws for called in reading.views
                      if relation(reading.view(called)) in ("white-box", "EOT", "noise-free transfer")}
        whole = self.early and read(self.record, self.record.points[0], closed).paper_worst
        several = max(draws.values(), default=1) > 1
        return ["union", *(["paper_worst"] if whole else ()), *draws, *(["worst"] if several else ())]

    @cached_property
    def threats(self) -> dict[str, Threat]:
        """The attackers' budgets by name, draws of an averaging attacker aside."""
        distinct = dict.fromkeys(replace(v.threat, draws=1) for v in self.record.views if v.threat is not None)
        return {f"{kind(t)}, ε {t.epsilon:.3g}, {t.steps} steps" + (f" of {t.step_size:.3g}" if t.step_size else ""): t
                for t in distinct}

    def under(self, threat: str) -> "Subject":
        """The same under one alone of several `threats`: the first one where none has this name."""
        if len(self.threats) < 2:
            return self
        threat = threat if threat in self.threats else next(iter(self.threats))
        if threat not in self._parts:
            record, one = self.record, self.threats[threat]
            views = [v for v, view in enumerate(record.views) if not view.attacked
                     or replace(view.threat, draws=1) == one]
            strong = record.strong if record.strong and record.strong.views[0].threat.epsilon == one.epsilon else None
            self._parts[threat] = self._of(replace(record.take(views), strong=strong), attacker=threat)
        return self._parts[threat]

    @property
    def classes(self) -> Sequence[str]:
        """What the network calls its classes."""
        names = self.record.meta.get("classes") or (self.images and self.images.classes)
        return names or [str(c) for c in range(int(self.record.labels.max()) + 1)]

    @cached_property
    def missing(self) -> str:
        """Why there are no images but those that came with the record, and how to get them."""
        try:
            data.load(self.record.meta.get("dataset") or "", download=False)
        except WorkbookError as error:
            return str(error)
        return "those on this machine are not the ones that were recorded."

    def title(self) -> str:
        meta, (first, stop) = self.record.meta, self.record.meta["images"]
        said = f"{self.record.images:,} images ({style.dataset(meta)}, {first} to {stop - 1}), seed {meta['seed']}"
        return said + (f", attacker {self.attacker}" if self.attacker else "")

    @property
    def usual(self) -> str:
        """Where thresholds come from unless somebody says."""
        if self.record.meta.get("decision") == "patience":  # counts, no shares
            return "2 in a row"
        return {"paper": "paper", "calibrated": "equal share"}[suited(self.record)]

    @property
    def sources(self) -> tuple[str, ...]:
        """Where thresholds can come from."""
        named = ("2 in a row", "3 in a row") if self.usual == "2 in a row" else ("paper", "equal share")
        return (*named, "budget", "last exit only", "by hand")

    def stops(self, at: OperatingPoint | None = None) -> dict[str, tuple[float, ...]]:
        """Thresholds of the usual sources at a point, by name; budgets that buy no more than another are left out."""
        sources = {source: source for source in self.sources[:2]}
        sources |= {f"at most {share:.0%} of the MACs": share for share in (0.15, 0.3, 0.6)}
        by_gates: dict[tuple, str] = {}
        for name, source in (sources | {"last exit only": "last exit only"}).items() if self.early else ():
            try:
                by_gates.setdefault(self.gates(at or self.record.points[0], source), name)
            except WorkbookError:  # no published thresholds, no held-out images, or nothing to buy so cheaply
                continue
        return {name: gates for gates, name in by_gates.items()}

    def _of(self, record: Record, **more) -> "Subject":
        """The same with another record of the same images."""
        return replace(self, record=record, source=lambda: self.images, _gates={}, _parts={}, **more)

    def by(self, decision: str) -> "Subject":
        """The same under another decision (see `gates.by`), of one's own thresholds."""
        if decision == "entropy":
            return self
        if decision not in self._parts:
            self._parts[decision] = self._of(gates.by(self.record, decision))
        return self._parts[decision]

    @cached_property
    def pixels(self) -> dict[int, np.ndarray] | None:
        """The sampled images as uint8 (H, W, 3), or None where they are not at hand."""
        if self.images is None:
            return None
        shown = self.images.images[self.record.meta["images"][0] + self.record.sampled].cpu()
        return dict(zip(self.record.sampled.tolist(), microscope.as_pixels(shown), strict=True))

    def examine(self, index: int, view: View, at: OperatingPoint, thresholds: tuple) -> microscope.Look:
        """An image of the dataset attacked as a view was, at a point. Raises WorkbookError without it or network."""
        network = self._network()
        if self.images is None or index >= len(self.images):
            raise WorkbookError(f"image {index} is not here: {self.missing}")
        image, _ = data.match(self.images[index].to(_place(network)), network.class_names, network.classes)
        return microscope.look(network, image, index, view.form, view.threat, point=at,
                               thresholds=thresholds if view.thresholds_used is not None else None)

    def _network(self) -> Network:
        if self.network is None:
            raise WorkbookError("this needs the network, and here is only its record")
        return self.network()

    def gates(self, at: OperatingPoint, source: str | float | tuple) -> tuple[float, ...]:
        """Thresholds from this source at a point: chosen on the held-out images at the nearest recorded one."""
        record = self.record
        if not self.early:
            return ()
        if isinstance(source, tuple | list):
            gates = tuple(-math.inf if gate is None else float(gate) for gate in source)
            routing.check_thresholds(gates, record.num_exits)
            return gates
        if source == "last exit only":
            return (-math.inf,) * self.early
        if isinstance(source, str) and record.meta.get("decision") == "patience":
            if source not in self.sources[:2]:
                raise WorkbookError(f"patience counts exits, not {source!r}; choose from {', '.join(self.sources)}")
            return (1 / (int(source[0]) - 0.5),) * self.early  # between so many exits that agree and one fewer
        near = nearest(record, at)
        wanted = source * record.costs()["trunk"][-1] if isinstance(source, float | int) else {
            "equal share": "calibrated"}.get(source, source)
        if (near, wanted) not in self._gates:
            self._gates[near, wanted] = record.thresholds_of(wanted, near)
        return self._gates[near, wanted]

    def compute(self, at: OperatingPoint, thresholds: tuple[float, ...], images: int,
                progress: Callable[[int, int], None] = lambda done, total: None) -> Record:
        """Attack at a point as the nearest recorded one was, on the first `images` of the record.

        Raises WorkbookError without images and network, and whatever `progress` raises to stop it.
        """
        if self.images is None:
            raise WorkbookError(f"computing here needs the images: {self.missing}")
        record, near, network = self.record, nearest(self.record, at), self._network()
        to = {points.quiet(near): points.quiet(at), near: at}
        todo = dict.fromkeys(replace(v, evaluated_at=at, draws=1, crafted_at=v.crafted_at and to[v.crafted_at],
                                     thresholds_used=v.thresholds_used and thresholds)
                             for v in record.views if v.point == near and relation(v) in ("clean", *SUITE))
        draws = max(v.draws + (v.evaluated_at.draw or 0) for v in record.views)
        first, total, parts = record.meta["images"][0], min(images, record.images), []
        for start in range(0, total, CHUNK):
            progress(start, total)
            chunk = self.images[first + start:first + min(start + CHUNK, total)].to(_place(network))
            parts.append(recording.record(network, chunk, list(todo), draws=draws, seed=record.meta["seed"],
                                          batch_size=CHUNK, first=first + start,
                                          audited=0 if parts else recording.BRIEF))
        progress(total, total)
        return join(parts)


def _place(network: Network) -> torch.device:
    """Where the network is; images are read from files wherever that is."""
    return next(network.parameters()).device
