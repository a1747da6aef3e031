"""What an atlas holds: views x exits x images, how each view was made, and its file.

Views that did not look at thresholds make any threshold exact and instant; views that did (gate-aware) are exact only
at the thresholds they used, and say so.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import WorkbookError, check_counts, checkpoints
from lib.attacks.steps import Threat
from lib.data import Split, match
from lib.evaluation import routing
from lib.models.network import Network, check_batch, check_labels
from lib.operating_point import OperatingPoint

ARRAYS = ("prediction", "entropy", "margin")


@dataclass(frozen=True)
class View:
    """How one view was made. threat, mode, crafted_at are None for clean images.

    form: "clean" or an attack form.  mode: state of batch norm and dropout during the attack.  seed: of its draws.
    crafted_at, evaluated_at: operating points of attacker and network.  thresholds_used: what the attack knew, or None.
    """

    form: str
    evaluated_at: OperatingPoint
    seed: int = 0
    threat: Threat | None = None
    mode: str | None = None
    crafted_at: OperatingPoint | None = None
    thresholds_used: tuple[float, ...] | None = None

    @property
    def attacked(self) -> bool:
        return self.form != "clean"

    @property
    def draw(self) -> int | None:
        """The frozen noise draw it was evaluated at; None = fresh noise, or no noise."""
        return self.evaluated_at.draw

    @property
    def label(self) -> str:
        """The form, and before it what is not plain PGD on the cross-entropy: "average", "fgsm main", "pgd cw main"."""
        if self.threat is None or (self.threat.algorithm, self.threat.loss) == ("pgd", "ce"):
            return self.form
        return f"{self.threat.algorithm} {'cw ' if self.threat.loss == 'margin' else ''}{self.form}"

    def exact_at(self, thresholds: Sequence[float]) -> bool:
        """False when the attack was made against other thresholds than these."""
        used = self.thresholds_used
        return used is None or np.array_equal(np.float32(used), np.float32(thresholds))

    def columns(self) -> dict:
        """Its part of a tidy result row."""
        row = {"attack": self.label, "seed": self.seed, "evaluated_at": json.dumps(self.evaluated_at.to_json())}
        if self.threat is not None:
            row |= {name: getattr(self.threat, name) for name in ("epsilon", "steps", "step_size")}
            row |= {"attack_mode": self.mode, "crafted_at": json.dumps(self.crafted_at.to_json())}
        return row

    def to_json(self) -> dict:
        return {
            "form": self.form, "evaluated_at": self.evaluated_at.to_json(), "seed": self.seed,
            "threat": asdict(self.threat) if self.threat else None, "mode": self.mode,
            "crafted_at": None if self.crafted_at is None else self.crafted_at.to_json(),
            "thresholds_used": None if self.thresholds_used is None else list(self.thresholds_used),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict) -> "View":
        point, used = values["crafted_at"], values["thresholds_used"]
        return cls(
            form=values["form"], evaluated_at=OperatingPoint.from_json(values["evaluated_at"]), seed=values["seed"],
            threat=Threat(**values["threat"]) if values["threat"] else None, mode=values["mode"],
            crafted_at=None if point is None else OperatingPoint.from_json(point),
            thresholds_used=None if used is None else tuple(used),
        )  # fmt: skip


class Recorded(NamedTuple):
    """One view with its arrays, (exits, N) each."""

    view: View
    prediction: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray


class Validation(NamedTuple):
    """Clean held-out images under the same network: what thresholds may be chosen on. (exits, M) each."""

    entropy: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Atlas:
    """views: V of them.  prediction (V, exits, N) int16; entropy (V, exits, N) float32, natural log; margin
    (V, exits, N) float32 (float16 in shipped records), true-class logit minus the largest other; labels (N,) int64.
    meta: what it was made from (see `record`).  validation: held-out entropies and correctness, or None.
    """

    views: tuple[View, ...]
    prediction: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    labels: np.ndarray
    meta: dict
    validation: Validation | None = None

    @property
    def num_exits(self) -> int:
        return self.prediction.shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each view: its form, or its label where attacks of several kinds stand side by side; " 2", " 3", …
        follow where it stands several times (restarts, draws, budgets)."""
        several = len({(v.threat.algorithm, v.threat.loss) for v in self.views if v.threat}) > 1
        seen, names = Counter(), []
        for name in (view.label if several else view.form for view in self.views):
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
        return tuple(names)

    @property
    def model(self) -> str:
        """The network in a few words: "rdi_smallcnn", "resnet34 float x0.25"; the checkpoint's hash says the rest."""
        config = self.meta["model"]
        words = [config["name"] if config["exits"] == "none" else f"{config['exits']}_{config['name']}"]
        words += [config["conditioning"]] * (config["conditioning"] != "none")
        words += [f"x{config['width_multiplier']:g}"] * (config["width_multiplier"] != 1)
        return " ".join(words)

    @property
    def exit_costs(self) -> routing.ExitCosts:
        """MACs of trunk and heads apart, so that the head of a closed exit can be left out of the bill."""
        trunk = np.asarray(self.meta["trunk_macs"], float)
        heads = np.diff(np.asarray(self.meta["cumulative_macs"], float) - trunk, prepend=0.0)
        return routing.ExitCosts(trunk, heads)

    def thresholds(self, source: str | float = "paper") -> tuple[float, ...]:
        """Thresholds by where they come from: "paper", "calibrated" (equal shares of the held-out images), or a number:
        a budget in MACs an image, spent best on the held-out images. Raises WorkbookError where the atlas cannot say.
        """
        if source == "paper":
            if self.num_exits > 1 and not self.meta["paper_thresholds"]:
                raise WorkbookError("the paper states no thresholds for this network; use calibrated ones")
            return tuple(self.meta["paper_thresholds"] or ())
        if isinstance(source, str) and source != "calibrated":
            raise WorkbookError(f"unknown source of thresholds '{source}'; use paper, calibrated or a budget in MACs")
        if self.validation is None:
            raise WorkbookError("this atlas holds no held-out images to choose thresholds on; record them with it")
        if source == "calibrated":
            return routing.calibrate(self.validation.entropy)
        return routing.spend_at_most(source, *self.validation, self.exit_costs)

    def view(self, name: str) -> Recorded:
        """One view by its name. Raises WorkbookError when there is none."""
        if name not in self.names:
            raise WorkbookError(f"this atlas has no view '{name}'; it has {', '.join(self.names)}")
        v = self.names.index(name)
        return Recorded(self.views[v], self.prediction[v], self.entropy[v], self.margin[v])

    def select(self, forms: Sequence[str] | None = None, images: slice = slice(None), **where) -> "Atlas":
        """The views of these forms whose attributes equal `where` (seed=0, evaluated_at=…), on a slice of the images.

        Raises WorkbookError when nothing is left.
        """
        keep = [
            v for v, view in enumerate(self.views)
            if (forms is None or view.form in forms) and all(getattr(view, k) == value for k, value in where.items())
        ]  # fmt: skip
        first, stop, step = images.indices(len(self.labels))
        if not keep or stop <= first or step != 1:
            raise WorkbookError(f"nothing is left of an atlas with views {', '.join(self.names)}")
        offset = self.meta["images"][0]
        return replace(
            self, views=tuple(self.views[v] for v in keep), labels=self.labels[images],
            **{name: getattr(self, name)[keep][:, :, images] for name in ARRAYS},
            meta={**self.meta, "images": [offset + first, offset + stop]},
        )  # fmt: skip

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically and checksummed."""
        arrays = {name: getattr(self, name) for name in ("prediction", "entropy", "margin", "labels")}
        if self.validation is not None:
            arrays |= {f"validation_{name}": array for name, array in self.validation._asdict().items()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        checkpoints.write(path, "atlas", tensors, {"views": [v.to_json() for v in self.views], "meta": self.meta})

    @classmethod
    def load(cls, path: Path | str) -> "Atlas":
        """Read a file that `save` wrote. Raises WorkbookError when it is missing, foreign, cut short or altered."""
        tensors, about, _ = checkpoints.read(path, "atlas")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        held_out = [arrays.pop(f"validation_{name}") for name in Validation._fields if f"validation_{name}" in arrays]
        return cls(tuple(View.from_json(v) for v in about["views"]), meta=about["meta"],
                   validation=Validation(*held_out) if held_out else None, **arrays)  # fmt: skip


def admitted(network: Network, images: Split, batch_size: int) -> tuple[Split, str]:
    """The gate of recordings: (the images with labels as the network numbers its classes, what to say of that or "").

    Raises WorkbookError for no images, none that fit, a batch size that is none, and weights that are no numbers.
    """
    check_counts(batch_size=batch_size)
    if not isinstance(images, Split) or not len(images):
        raise WorkbookError(f"there is no image to evaluate in this {type(images).__name__}; give at least one, as a "
                            "Split such as data.load(…).test")
    check_batch(network, *images[:1].floats())
    if broken := [name for name, t in network.state_dict().items() if not t.isfinite().all()]:
        raise WorkbookError(f"the network's {broken[0]} is not finite: its training diverged; use another checkpoint")
    images, remark = match(images, network.class_names, network.classes)
    check_labels(network, images.labels)
    return images, remark


def concatenate(atlases: Sequence[Atlas]) -> Atlas:
    """One atlas of neighbouring ranges of images, given in order, recorded alike.

    Raises WorkbookError when they are of different networks or settings, or leave a gap.
    """
    first = atlases[0]
    for before, after in zip(atlases, atlases[1:], strict=False):
        if before.views != after.views or unlike(before, after, "images"):
            raise WorkbookError("these atlases were recorded differently and cannot be joined; record them alike")
        if before.meta["images"][1] != after.meta["images"][0]:
            raise WorkbookError(f"there is a gap between images {before.meta['images']} and {after.meta['images']}")
    images = [first.meta["images"][0], atlases[-1].meta["images"][1]]
    return replace(
        first, labels=np.concatenate([a.labels for a in atlases]),
        meta={**first.meta, "images": images, "seconds": sum(a.meta["seconds"] for a in atlases)},
        **{name: np.concatenate([getattr(a, name) for a in atlases], axis=2) for name in ARRAYS},
    )  # fmt: skip


def combine(atlases: Sequence[Atlas]) -> Atlas:
    """One atlas with the views of all: other attacks, seeds, draws or points on the same images of the same network.

    Raises WorkbookError when networks, images or costs (widths) differ.
    """
    first = atlases[0]
    if any(unlike(a, first, "seed") or not np.array_equal(a.labels, first.labels) for a in atlases):
        raise WorkbookError("these atlases are of different networks, images or widths and cannot be combined")
    return replace(
        first, views=tuple(view for a in atlases for view in a.views),
        meta={**first.meta, "seconds": sum(a.meta["seconds"] for a in atlases)},
        **{name: np.concatenate([getattr(a, name) for a in atlases]) for name in ARRAYS},
    )  # fmt: skip


def unlike(one: Atlas, other: Atlas, field: str) -> bool:
    """Do two atlases differ in their metadata, apart from `field` and what differs from run to run or part to part?"""
    ignored = (field, "seconds", "threads", "pixels")
    return any(one.meta.get(n) != other.meta.get(n) for n in {*one.meta, *other.meta} if n not in ignored)
