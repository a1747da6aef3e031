"""The strong suite in a record: who of its first images is still right after each attack, at the very gates shown.

    found = surviving.add(found, network, dataset.test[:100], threat, [(point, "calibrated")], folder=…)
    reading.read(found, point, "calibrated").measured("strong")

Its attacks follow the gates, so that they hold at that point and those thresholds alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import lib
from lib import WorkbookError, checkpoints
from lib.attacks import strong
from lib.attacks.decision import attack_mode, fresh
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation.latency import device_name
from lib.evaluation.reading import read
from lib.evaluation.record import Record, View
from lib.evaluation.recording import admitted, folded
from lib.models.exits import entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.progress import bar

SAME = 0.98  # share of the clean answers that have to be the record's: devices round differently


def add(record: Record, network: Network, images: Split, threat: Threat,
        settings: Iterable[tuple[OperatingPoint | None, Sequence[float] | str | float | None]], *, seed: int = 0,
        batch_size: int = 250, folder: Path | str | None = None) -> Record:
    """The record with the strong suite's views of its first images, at each (point, thresholds) of `settings`.

    images: the record's first ones, all or fewer.  threat: its epsilon is kept.  settings: as `reading.read` takes
    them.  folder: keeps every attack's outcome there, and takes up a killed call again.  What the record holds of a
    setting, from the same seed in the same batches, is not made again. Raises WorkbookError for a network or images
    that are not the record's, for other images than settings it holds already were made on, and as `strong.attacked`.
    """
    images, _ = admitted(network, images, batch_size)
    (x, y), weights = images.floats(), checkpoints.digest(network.state_dict())
    labels, first, held = y.cpu().numpy(), record.meta["images"][0], record.strong
    _check(record, network, x, labels, weights)
    meta = {"images": [first, first + len(y)], "suite": strong.SUITE, "weights": weights, "seed": seed,
            "batch_size": batch_size, "version": lib.__version__, "device": device_name(x.device),
            "threads": torch.get_num_threads()}
    if held is not None and any(held.meta[key] != meta[key] for key in ("images", "suite")):
        raise WorkbookError(f"this record holds {held.meta['suite']} on images {held.meta['images']} already; take the "
                            "same ones, or leave that out first: replace(record, strong=None)")
    met = {} if held is None else {view: held.right[v] for v, view in enumerate(held.views)}
    for point, thresholds in settings:
        at = read(record, point, thresholds)
        deployed, noisy = at.point.replace(thresholds=at.thresholds or None), fresh(network, at.point)
        part = folder and Path(folder) / checkpoints.digest({repr(deployed): y})[:12]
        here = {view: right for view, right in met.items() if view.point == at.point and view.exact_at(at.thresholds)}
        met = {view: right for view, right in met.items() if view not in here}
        same = held is not None and all(held.meta[key] == meta[key] for key in ("seed", "batch_size"))
        known = {view.form: torch.from_numpy(right[0]).to(y.device).int() for view, right in here.items() if same}
        made = strong.attacked(network, x, y, threat, point=deployed, seed=seed, batch_size=batch_size, known=known,
                               folder=part, crafted_on=folded(network, x[:4], at.point))
        with bar(len(strong.names(network, deployed)), "strong suite", "attack") as shown:
            for name, _, right in made:
                view = View(name, at.point, strong.budget(name, threat.epsilon, noisy), seed=seed,
                            thresholds_used=deployed.thresholds, draws=strong.DRAWS if noisy else 1)
                met[view] = right.cpu().numpy().astype(np.uint8)[None]
                shown.update(1)
    return replace(record, strong=Record(tuple(met), np.stack(list(met.values())), labels, meta))


@torch.no_grad()
def _check(record: Record, network: Network, images: torch.Tensor, labels: np.ndarray, weights: str) -> None:
    """Raises WorkbookError unless network and images are what the record was made from, as far as it tells."""
    clean = next((v for v, view in enumerate(record.views) if not view.attacked and view.draws == 1), None)
    same = record.meta.get("weights", weights) == weights and np.array_equal(record.labels[:len(labels)], labels)
    if same and clean is not None:
        point = record.views[clean].evaluated_at
        with attack_mode(network, "eval"):
            said = torch.cat([network(part, point) for part in images.split(250)], dim=1).float().cpu()
        answers = said.argmax(-1).numpy()
        alike = (answers == labels) == (record.right[clean][:, :len(labels)] > 0)
        if record.prediction is not None:
            alike &= answers == record.prediction[clean][:, :len(labels)]
        if record.entropy is not None:
            alike &= np.abs(entropy(said).numpy() - record.entropy[clean][:, :len(labels)]) < 0.02
        same = alike.mean() >= SAME
    if not same:
        raise WorkbookError("this network on these images does not answer as the record says; give the weights that it "
                            "was made from, and its first images")
