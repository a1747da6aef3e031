"""Records made by hand, whose every number is known."""

from dataclasses import replace

import numpy as np

from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.evaluation.record import Record, View
from lib.operating_point import OperatingPoint

THREAT = Threat(0.1, 0.02, 5)
RESNET38 = {  # convolutions alone, MACs / 2^20, counted by hand from the layers' shapes
    "paper": [16.796875, 30.296875, 36.546875, 50.046875, 61.421875, 74.921875, 79.421875],
    "trunk": [9.421875, 22.921875, 35.421875, 48.921875, 61.421875, 74.921875, 79.421875],
    "cumulative": [16.796875, 37.671875, 51.296875, 65.921875, 78.421875, 91.921875, 96.421875],
}


def view(form: str, **more) -> View:
    return View(form, **{"evaluated_at": OperatingPoint()} | ({} if form == "clean" else {"threat": THREAT}) | more)


def made(views, prediction, entropy, labels, costs=None, validation=None, **meta) -> Record:
    """prediction and entropy: (views, exits, images). costs: trunk, cumulative and paper, one entry per exit.

    validation: (entropy, correct), (exits, images) each, of clean held-out images.
    """
    prediction, labels = np.asarray(prediction, np.uint8), np.asarray(labels, np.int64)
    exits, images = prediction.shape[1:]
    costs = costs or {"trunk": [100 * (k + 1) for k in range(exits)], "paper": [float(k + 1) for k in range(exits)],
                      "cumulative": [100 * (k + 1) + 10 * min(k + 1, exits - 1) for k in range(exits)]}
    heads = np.diff(np.subtract(costs["cumulative"], costs["trunk"]), prepend=0).tolist()
    about = {
        "model": {"name": "smallcnn", "exits": "rdi", "conditioning": "none", "width_multiplier": 1.0},
        "paper_thresholds": [0.5] * (exits - 1), "device": "cpu", "threads": 1, "version": "0", "seconds": 1.0,
        "costs": {"1": {"paper_mflops": costs["paper"], "trunk": costs["trunk"], "heads": heads}}, "seed": 0,
        "images": [0, images], "split": "test",
    }
    held_out = None
    if validation is not None:
        seen, correct = np.asarray(validation[0], np.float32)[None], np.asarray(validation[1], np.uint8)[None]
        held_out = Record((view("clean"),), correct, None, about | {"images": [0, seen.shape[2]]}, entropy=seen)
    return Record(tuple(view(v) if isinstance(v, str) else v for v in views), (prediction == labels).astype(np.uint8),
                  labels, about | meta, prediction, np.asarray(entropy, np.float32), held_out=held_out)


def hit(network, views, shares, images: int, **meta) -> Record:
    """Of a network with one exit: the first images of each view are right in all draws, so many as its share says."""
    labels = np.arange(images) % 10
    right = np.arange(images) < np.round(np.asarray(shares)[:, None] * images)
    found = made(views, np.where(right, labels, (labels + 1) % 10)[:, None], np.zeros((len(views), 1, images)), labels,
                 {"trunk": [2_000_000], "cumulative": [2_000_000], "paper": [1.0]}, model=network.config,
                 paper_thresholds=None, dataset="made", data_variant="by hand", checkpoint="0" * 8, **meta)
    return replace(found, entropy=None, right=found.right * np.array([v.draws for v in views], np.uint8)[:, None, None])


def every_knob(network, threat: Threat, gates, images: int = 40, **meta) -> Record:
    """Of a network with every knob, at the points that `points.every_knob` lists; its answers are drawn at random."""
    draw = np.random.default_rng(0)
    views = points.every_knob(network, threat, gates, draws=0, forms=("main", "gate_aware"))
    shape = (len(views), network.num_exits, images)
    found = made(views, draw.integers(0, 3, shape), draw.random(shape) * 2.2, np.arange(images) % 3, dataset="digits",
                 model=network.config, paper_thresholds=None, **meta)
    clean = [v for v, view in enumerate(views) if not view.attacked]
    held_out = found.take(clean)
    full = found.meta["costs"]["1"]
    costs = {"1": full, "0.5": {name: (np.array(values) / 4).tolist() for name, values in full.items()}}
    return replace(found, held_out=held_out, meta=found.meta | {"costs": costs})
