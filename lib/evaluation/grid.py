"""A grid: attacks crafted at some operating points, judged at others, image by image; sliders read it at once.

Smaller than an atlas where a network has no exits to choose among: of every image it keeps in how many noise draws the
answer was right, and what the first draw answered.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import lib
from lib import WorkbookError, check_counts, checkpoints, randomness
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation.views import admitted
from lib.models.cost import cost
from lib.models.network import Network
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.progress import bar

ARRAYS = ("right", "first")


@dataclass(frozen=True)
class Attack:
    """Images crafted at one point, to be judged at several. threat and crafted_at are None for clean images.

    restart: 0, 1, … start from other random points.
    """

    evaluated_at: tuple[OperatingPoint, ...]
    threat: Threat | None = None
    crafted_at: OperatingPoint | None = None
    restart: int = 0


@dataclass(frozen=True)
class Cell:
    """One attack judged at one point, over `draws` frozen draws of its noise (1 where it has none)."""

    evaluated_at: OperatingPoint
    threat: Threat | None
    crafted_at: OperatingPoint | None
    draws: int
    restart: int = 0

    @property
    def attacked(self) -> bool:
        return self.threat is not None

    def to_json(self) -> dict:
        return {"evaluated_at": self.evaluated_at.to_json(), "draws": self.draws, "restart": self.restart,
                "threat": self.threat and dataclasses.asdict(self.threat),
                "crafted_at": None if self.crafted_at is None else self.crafted_at.to_json()}

    @classmethod
    def from_json(cls, values: dict) -> "Cell":
        crafted, threat = values["crafted_at"], values["threat"]
        return cls(OperatingPoint.from_json(values["evaluated_at"]), threat and Threat(**threat),
                   None if crafted is None else OperatingPoint.from_json(crafted), values["draws"],
                   values["restart"])


@dataclass(frozen=True)
class Grid:
    """cells: C of them.  right (C, N) uint8 or uint16: in how many draws each image is right.  first (C, N) int16: what
    the first draw answers.  labels (N,).  meta: model, checkpoint, dataset, data_variant, split, images, seed, …
    """

    cells: tuple[Cell, ...]
    right: np.ndarray
    first: np.ndarray
    labels: np.ndarray
    meta: dict

    @cached_property
    def points(self) -> tuple[OperatingPoint, ...]:
        """The points that clean images were judged at, in the order of recording."""
        return tuple(cell.evaluated_at for cell in self.cells if not cell.attacked)

    def at(self, point: OperatingPoint) -> list[int]:
        """Indices of the cells judged at `point`, clean first, at a draw that the attacker knew last.

        Raises WorkbookError when there is none.
        """
        if point not in self._places:
            raise WorkbookError(f"this grid was not recorded at {point.to_json()}; record it there")
        return self._places[point]

    @cached_property
    def _places(self) -> dict[OperatingPoint, list[int]]:
        found: dict[OperatingPoint, list[int]] = {}
        for i in sorted(range(len(self.cells)), key=lambda i: (self.cells[i].attacked,
                                                               self.cells[i].evaluated_at.draw is not None)):
            found.setdefault(self.cells[i].evaluated_at.replace(draw=None), []).append(i)
        return found

    def select(self, images: slice) -> "Grid":
        """The same of some of the images."""
        parts = {name: getattr(self, name)[:, images] for name in ARRAYS}
        first, stop, _ = images.indices(len(self.labels))
        start = self.meta["images"][0]
        return replace(self, labels=self.labels[images], **parts,
                       meta={**self.meta, "images": [start + first, start + stop]})

    def share(self, cell: int) -> np.ndarray:
        """(N,) for each image the share of draws in which it is right."""
        return self.right[cell] / self.cells[cell].draws

    def save(self, path: Path | str) -> None:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in (*ARRAYS, "labels")}
        checkpoints.write(path, "grid", tensors, {"cells": [c.to_json() for c in self.cells], "meta": self.meta})

    @classmethod
    def load(cls, path: Path | str) -> "Grid":
        """Read a file that `save` wrote. Raises WorkbookError when it is missing, foreign or damaged."""
        tensors, about, _ = checkpoints.read(path, "grid")
        return cls(tuple(Cell.from_json(c) for c in about["cells"]), meta=about["meta"],
                   **{name: tensor.numpy() for name, tensor in tensors.items()})


def record(network: Network, images: Split, attacks: Sequence[Attack], *, draws: int = 5, seed: int = 0,
           batch_size: int = 250, first: int = 0, folder: Path | str | None = None, **meta) -> Grid:
    """Craft every attack and judge it at its points, over frozen noise draws 0 … draws - 1 where the point is noisy.

    A point with a frozen draw of its own is judged at that draw. Random starts are those of `atlas.record`, the same
    for every attack of a batch, so that differences are paired. first: index of the first image in its split; slices
    cut at multiples of `batch_size` join to the grid made in one go. folder: keeps a part per batch there, and takes up
    a killed recording again. meta: what else to remember (checkpoint, dataset, data_variant, defence; macs, if known).
    Raises WorkbookError as `atlas.record`.
    """
    if not len(images) or not attacks:
        raise WorkbookError("there is nothing to record; give at least one image and one attack")
    check_counts(draws=draws)
    images, remark = admitted(network, images, batch_size)
    points = tuple(dict.fromkeys(p for a in attacks for p in (*a.evaluated_at, *((a.crafted_at,) if a.threat else ()))))
    for point in points:
        network.check_point(point)
    device = images.images.device
    meta = {**meta, "model": network.config, "seed": seed, "batch_size": batch_size, "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "version": lib.__version__, "weights": checkpoints.digest(network.state_dict()), "remark": remark,
            "classes": images.classes and list(images.classes), "macs": meta.get("macs") or macs(network, points)}
    cells = tuple(Cell(p, a.threat, a.crafted_at, _draws(network, p, draws), a.restart)
                  for a in attacks for p in a.evaluated_at)
    view, parts = AttackView(network), []
    shown = bar(len(images), "attack", "image")
    for start in range(0, len(images), batch_size):
        index = first + start
        path = None if folder is None else Path(folder) / f"images-{index:06d}.safetensors"
        part = images[start:start + batch_size]
        about = {**meta, "images": [index, index + len(part)], "pixels": checkpoints.digest({"images": part.images})}
        if path is None or not path.is_file():
            made = _batch(view, part, attacks, cells, index, about)
            if path is not None:
                made.save(path)
        parts.append(made if path is None else Grid.load(path))
        ours = {k: v for k, v in about.items() if k != "threads"}
        if parts[-1].cells != cells or {k: v for k, v in parts[-1].meta.items() if k in ours} != ours:
            raise WorkbookError(f"{folder} holds another recording; give a new folder")
        shown.update(len(parts[-1].labels))
    shown.close()
    return join(parts)


def join(parts: Sequence[Grid]) -> Grid:
    """One grid of neighbouring ranges of images, in order."""
    meta = {**parts[0].meta, "images": [parts[0].meta["images"][0], parts[-1].meta["images"][1]],
            "seconds": sum(p.meta["seconds"] for p in parts)}
    return replace(parts[0], meta=meta, labels=np.concatenate([p.labels for p in parts]),
                   **{name: np.concatenate([getattr(p, name) for p in parts], axis=1) for name in ARRAYS})


def macs(network: Network, points: Sequence[OperatingPoint]) -> dict[str, int]:
    """True multiply-accumulates of one image by width, the only knob here that changes them; keys "1", "0.5", …"""
    widths = sorted({1.0 if p.width is None else p.width for p in points}, reverse=True)
    return {f"{w:g}": cost(network, OperatingPoint(width=w) if "width" in network.knobs else None).macs for w in widths}


def _draws(network: Network, point: OperatingPoint, draws: int) -> int:
    return draws if network.conditions(point).noisy and point.draw is None else 1


def _batch(network: Network, part: Split, attacks, cells, start: int, meta: dict) -> Grid:
    """The grid of one batch."""
    began, (images, labels) = time.perf_counter(), part.floats()
    right = np.zeros((len(cells), len(part)), np.min_scalar_type(max(cell.draws for cell in cells)))
    first, row = np.zeros((len(cells), len(part)), np.int16), 0
    for attack in attacks:
        shown = images
        if attack.threat is not None:
            stream = "main" if attack.restart == 0 else f"main, restart {attack.restart}"
            source = randomness.generator(meta["seed"], "attack", stream, start, device=images.device)
            shown = forms.craft("main", network, images, labels, attack.threat, generator=source,
                                point=attack.crafted_at)
        for point in attack.evaluated_at:
            for draw in range(cells[row].draws):
                said = answers(network, shown, _frozen(network, point, draw))
                right[row] += (said == labels).cpu().numpy()
                if draw == 0:
                    first[row] = said.cpu().numpy()
            row += 1
    meta = {**meta, "seconds": time.perf_counter() - began}
    return Grid(cells, right, first, labels.cpu().numpy(), meta)


def _frozen(network: Network, point: OperatingPoint, draw: int) -> OperatingPoint:
    """The point at a frozen draw, where it would draw fresh noise."""
    return point.replace(draw=draw) if network.conditions(point).noisy and point.draw is None else point


@torch.inference_mode()
def answers(network: Network, images: torch.Tensor, point: OperatingPoint) -> torch.Tensor:
    """(N,) the last exit's classes; the point draws no fresh noise."""
    return network(images, point)[-1].argmax(-1)
