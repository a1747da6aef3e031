"""The record: what every exit of one network said about every image in every view; once made, never attacked again.

A view is an attack form with its budget, the point it was crafted at, and the point it is judged at. Views that did not
look at thresholds hold at any; views that did (gate-aware) are exact at those alone, and say so. One format for exits,
operating points, and both at once. `recording` makes it in one call, and `reading` makes numbers of it:

    found = recording.record(network, dataset.test[:1000], recording.suite(network, threat), folder=…, dataset=…)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.evaluation import risk, routing
from lib.operating_point import OperatingPoint

ARRAYS = ("right", "prediction", "entropy", "logits")  # of every view
SAMPLE = 72  # images of which some are shown


@dataclass(frozen=True)
class View:
    """One attack, judged at one point. threat, crafted_at, mode are None for clean images.

    form: "clean" or an attack form.  evaluated_at, crafted_at: points of network and attacker, without thresholds.
    mode: state of batch norm and dropout during the attack.  restart: 0, 1, … start from other random points.
    draws: frozen draws 0 … draws - 1 of the noise that are counted together; 1 where there is none, or one is named.
    thresholds_used: what the attack knew, or None.  seed: of its random start.
    """

    form: str = "clean"
    evaluated_at: OperatingPoint = field(default_factory=OperatingPoint)
    threat: Threat | None = None
    crafted_at: OperatingPoint | None = None
    mode: str | None = None
    restart: int = 0
    draws: int = 1
    thresholds_used: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.form != "clean":
            if self.threat is None:
                raise WorkbookError("an attack needs its budget: pass threat=Threat(epsilon=…, step_size=…, steps=…)")
            object.__setattr__(self, "crafted_at", self.crafted_at or self.evaluated_at)
            object.__setattr__(self, "mode", self.mode or "eval")

    @property
    def attacked(self) -> bool:
        return self.form != "clean"

    @property
    def point(self) -> OperatingPoint:
        """Where it is judged, whichever draw of the noise."""
        return self.evaluated_at.replace(draw=None)

    def exact_at(self, thresholds: Sequence[float]) -> bool:
        """False when the attack was made against other thresholds than these."""
        used = self.thresholds_used
        return used is None or np.array_equal(np.float32(used), np.float32(thresholds))

    def to_json(self) -> dict:
        used = None if self.thresholds_used is None else [str(t) for t in self.thresholds_used]  # JSON has no infinity
        return {**asdict(self), "evaluated_at": self.evaluated_at.to_json(), "thresholds_used": used,
                "crafted_at": None if self.crafted_at is None else self.crafted_at.to_json()}

    @classmethod
    def from_json(cls, values: dict) -> "View":
        crafted, threat, used = values["crafted_at"], values["threat"], values["thresholds_used"]
        return cls(**{**values, "evaluated_at": OperatingPoint.from_json(values["evaluated_at"]),
                      "crafted_at": None if crafted is None else OperatingPoint.from_json(crafted),
                      "threat": threat and Threat(**threat),
                      "thresholds_used": None if used is None else tuple(map(float, used))})


class Validation(NamedTuple):
    """What thresholds may be chosen on: (exits, M) each, or several views of them."""

    entropy: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True, eq=False)
class Record:
    """views: V of them.  labels (N,) int64.  meta: what it was made from (see `recording.record`).

    right (V, exits, N) uint8: in how many of the view's draws each exit, by itself, is right.  Of the first draw:
    prediction (V, exits, N), the class; entropy (V, exits, N) float32, natural log, as the gates compare it; logits
    (V, exits, N, classes) float16.  What an old or lightened record lacks is None; whoever needs it refuses.
    held_out: the same network's clean held-out images, on which thresholds may be chosen, or None.
    strong: what `surviving` adds, or None: the deployed decision, as the one exit, on the first images, after each
    attack of the strong suite, at the thresholds that a view names; meta: suite, images, ….
    """

    views: tuple[View, ...]
    right: np.ndarray
    labels: np.ndarray | None
    meta: dict
    prediction: np.ndarray | None = None
    entropy: np.ndarray | None = None
    logits: np.ndarray | None = None
    held_out: "Record | None" = None
    strong: "Record | None" = None

    @property
    def num_exits(self) -> int:
        return self.right.shape[1]

    @property
    def images(self) -> int:
        return self.right.shape[2]

    @cached_property
    def points(self) -> tuple[OperatingPoint, ...]:
        """The points that it was judged at, in the order of recording."""
        return tuple(dict.fromkeys(view.point for view in self.views))

    @property
    def model(self) -> str:
        """In a few words: "rdi_smallcnn", "resnet34 float x0.25", "resnet38 inner 403"; the hash says more."""
        exits, conditioning, times, inner, factorised = (self.meta["model"].get(*a) for a in (
            ("exits", "none"), ("conditioning", "none"), ("width_multiplier", 1), ("inner", ()), ("factorised", False)))
        return " ".join(filter(None, (
            f"{exits}_" * (exits != "none") + self.meta["model"]["name"], inner and f"inner {sum(map(sum, inner))}",
            factorised and "factorised", conditioning * (conditioning != "none"), f"x{times:g}" * (times != 1))))

    def costs(self, point: OperatingPoint | None = None) -> dict[str, np.ndarray]:
        """At the point's width, (exits,) each: "paper_mflops", and the true MACs "trunk" (to the tap) and "heads"."""
        width = 1.0 if point is None or point.width is None else point.width
        return {name: np.asarray(values, float) for name, values in self.meta["costs"][f"{width:g}"].items()}

    def macs(self, point: OperatingPoint | None = None) -> float:
        """True multiply-accumulates of one image through the last exit alone."""
        return sum(costs[-1] for costs in self.exit_costs(point))

    def exit_costs(self, point: OperatingPoint | None = None) -> routing.ExitCosts:
        """MACs of trunk and heads apart, so that the head of a closed exit can be left out of the bill."""
        return routing.charged(self.costs(point), self.meta.get("decision", "entropy"))

    def at(self, point: OperatingPoint | None = None) -> OperatingPoint:
        """A recorded point (the only one, if left out), without gates and draw; raises WorkbookError for another."""
        if point is None and len(self.points) > 1:
            raise WorkbookError(f"this record holds {len(self.points)} operating points; say which is meant")
        point = self.points[0] if point is None else point.replace(draw=None, exits=None, thresholds=None)
        if point not in self.points:
            raise WorkbookError(f"this record was not made at {point.to_json()}; record it there")
        return point

    def thresholds_of(self, source: str | float = "paper", point: OperatingPoint | None = None) -> tuple[float, ...]:
        """Thresholds by where they come from: "paper", or by held-out images there "calibrated" (equal shares), "risk
        0.01" (see `risk`) or a budget in MACs an image. Raises WorkbookError where the record cannot say."""
        if self.num_exits == 1:
            return ()
        if source == "paper":
            if not self.meta["paper_thresholds"]:
                raise WorkbookError("the paper states no thresholds for this network; use calibrated ones")
            return tuple(self.meta["paper_thresholds"])
        if isinstance(source, str) and source != "calibrated" and not source.startswith("risk "):
            raise WorkbookError(f"unknown source of thresholds '{source}'; use paper, calibrated, risk 0.01 or MACs")
        entropies, right = self.held(point)
        if source == "calibrated":
            return routing.calibrate(entropies)
        if isinstance(source, str):  # of one draw: in others the same images come again
            return risk.at_most(risk.stated(source), *(a[:, :self.held_out.images] for a in (entropies, right)))
        return routing.spend_at_most(source, entropies, right, self.exit_costs(point))

    def held(self, point: OperatingPoint | None = None) -> Validation:
        """The held-out images at a point, draw after draw. Raises WorkbookError where there are none."""
        if self.held_out is None:
            raise WorkbookError("this record holds no held-out images to choose thresholds on; record them with it")
        places = [v for v, view in enumerate(self.held_out.views) if view.point == self.held_out.at(point)]
        return Validation(*(np.concatenate(list(array[places]), axis=-1)
                            for array in (self.held_out.entropy, self.held_out.right > 0)))

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """(V, exits, N, classes) float32, of the first draw. Raises WorkbookError where the logits were not kept."""
        if self.logits is None:
            raise WorkbookError("this record holds no logits, which other gates and temperatures need; record it again")
        scaled = np.float32(self.logits) / temperature
        powers = np.exp(scaled - scaled.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    @property
    def sampled(self) -> np.ndarray:
        """(M,) which of the recorded images are shown: evenly spread."""
        return np.unique(np.linspace(0, self.images - 1, SAMPLE).round().astype(int))

    def lightened(self) -> "Record":
        """Without its logits, a fifth of the size: for records of many images that come with the repository."""
        return replace(self, logits=None, held_out=self.held_out and self.held_out.lightened(),
                       meta={**self.meta, "missing": "logits, left out to keep the file small"})

    def select(self, forms: Sequence[str] | None = None, images: slice = slice(None), **where) -> "Record":
        """The views of these forms with these attributes (restart=0), on a slice of images; WorkbookError if none."""
        keep = [v for v, view in enumerate(self.views) if (forms is None or view.form in forms)
                and all(getattr(view, name) == value for name, value in where.items())]
        first, stop, step = images.indices(self.images)
        if not keep or stop <= first or step != 1:
            held = ", ".join(dict.fromkeys(view.form for view in self.views))
            raise WorkbookError(f"nothing is left of a record of {held}")
        offset = self.meta["images"][0]
        cut = self.take(keep)._each(lambda array: array[:, :, images])
        met = 0 if self.strong is None else min(stop, self.strong.images)
        strong = self.strong.select(images=slice(first, met)) if first < met else None
        return replace(cut, labels=self.labels[images], strong=strong,
                       meta={**self.meta, "images": [offset + first, offset + stop]})

    def take(self, places: Sequence[int]) -> "Record":
        """The views of these indices."""
        return replace(self._each(lambda array: array[places]), views=tuple(self.views[v] for v in places))

    def _each(self, change) -> "Record":
        """The record with every array of views, where there is one, changed alike."""
        held = {name: getattr(self, name) for name in ARRAYS}
        return replace(self, **{name: change(array) for name, array in held.items() if array is not None})

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically and checksummed."""
        parts = {p: r for p, r in {"": self, "held_out.": self.held_out, "strong.": self.strong}.items() if r}
        arrays = {prefix + name: getattr(part, name) for prefix, part in parts.items() for name in (*ARRAYS, "labels")}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items() if a is not None}
        tensors |= {n: t.byte() if (t < 256).all() else t for n, t in tensors.items() if n.endswith("labels")}
        for prefix, part in parts.items():  # of one draw, what is right follows from the answers
            if part.prediction is not None and np.array_equal(part.right, part.prediction == part.labels):
                del tensors[prefix + "right"]
        about = {prefix + "about": {"views": [v.to_json() for v in part.views], "meta": part.meta}
                 for prefix, part in parts.items()}
        checkpoints.write(path, "record", tensors, about)

    @classmethod
    def load(cls, path: Path | str) -> "Record":
        """Read a file that `save` wrote. Raises WorkbookError when it is missing, foreign, cut short or altered."""
        tensors, values, _ = checkpoints.read(path, "record")

        def part(prefix: str, **more) -> Record:
            about = values[prefix + "about"]
            held = {n: tensors[prefix + n].numpy() for n in ARRAYS if prefix + n in tensors}
            labels = tensors[prefix + "labels"].long().numpy() if prefix + "labels" in tensors else None
            held.setdefault("right", np.uint8(held.get("prediction") == labels))
            views, (_, exits, images) = tuple(map(View.from_json, about["views"])), held["right"].shape
            images = images if labels is None else len(labels)
            if {array.shape[:3] for array in held.values()} != {(len(views), exits, images)}:
                raise ValueError("arrays of different sizes")
            return cls(views, labels=labels, meta=about["meta"], **held, **more)

        with checkpoints.described(path, "record"):
            found = part("", **{name: part(f"{name}.") for name in ("held_out", "strong") if f"{name}.about" in values})
            found.exit_costs(found.points[0]), found.model, found.meta["seed"], found.meta["images"]  # are there
            return found


def alike(one: dict, other: dict, *but: str) -> bool:
    """Whether two records' metadata are the same, apart from `but` and from what differs from run to run."""
    return all(one.get(name) == other.get(name) for name in {*one, *other} - {"seconds", "threads", "audit", *but})


def join(records: Sequence[Record]) -> Record:
    """One record of neighbouring ranges of images, given in order, recorded alike.

    Raises WorkbookError when they are of different networks or settings, or leave a gap.
    """
    first = records[0]
    for before, after in pairwise(records):
        if before.views != after.views or not alike(before.meta, after.meta, "images", "pixels"):
            raise WorkbookError("these records were made differently and cannot be joined; record them alike")
        if before.meta["images"][1] != after.meta["images"][0]:
            raise WorkbookError(f"there is a gap between images {before.meta['images']} and {after.meta['images']}")
    found = _together(records, 2, images=[first.meta["images"][0], records[-1].meta["images"][1]])
    meta = {name: value for name, value in found.meta.items() if name != "pixels" or len(records) == 1}
    return replace(found, labels=np.concatenate([r.labels for r in records]), meta=meta)


def combine(records: Sequence[Record]) -> Record:
    """One record with the views of all: other attacks, restarts or points on the same images of the same network.

    Raises WorkbookError when networks or images differ.
    """
    first = records[0]
    if any(not alike(r.meta, first.meta, "seed", "costs", "attacked_on") or not np.array_equal(r.labels, first.labels)
           for r in records):
        raise WorkbookError("these records are of different networks or images and cannot be combined")
    found = _together(records, 0, costs={width: c for r in records for width, c in r.meta["costs"].items()})
    return replace(found, views=tuple(view for r in records for view in r.views))


def _together(records: Sequence[Record], axis: int, **meta) -> Record:
    """The first record with the arrays of all (none that one of them lacks), their time, each point's gravest audit."""
    held = {name: [getattr(r, name) for r in records] for name in ARRAYS}
    whole = {n: None if any(a is None for a in parts) else np.concatenate(parts, axis) for n, parts in held.items()}
    audits = sorted((a for r in records for a in (r.meta.get("audit") or {}).items()), key=lambda a: len(a[1]["flags"]))
    meta |= {"seconds": sum(r.meta["seconds"] for r in records)} | ({"audit": dict(audits)} if audits else {})
    return replace(records[0], **whole, meta=records[0].meta | meta)
