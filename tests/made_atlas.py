"""Atlases made by hand, whose every number is known."""

import numpy as np

from lib.attacks.steps import Threat
from lib.evaluation.views import Atlas, Validation, View
from lib.operating_point import OperatingPoint

THREAT = Threat(0.1, 0.02, 5)
RESNET38 = {  # convolutions alone, MACs / 2^20, counted by hand from the layers' shapes
    "paper": [16.796875, 30.296875, 36.546875, 50.046875, 61.421875, 74.921875, 79.421875],
    "trunk": [9.421875, 22.921875, 35.421875, 48.921875, 61.421875, 74.921875, 79.421875],
    "cumulative": [16.796875, 37.671875, 51.296875, 65.921875, 78.421875, 91.921875, 96.421875],
}


def view(form: str, **more) -> View:
    point = OperatingPoint()
    if form == "clean":
        return View("clean", **{"evaluated_at": point} | more)
    return View(form, **{"evaluated_at": point, "threat": THREAT, "mode": "eval", "crafted_at": point} | more)


def made(views, prediction, entropy, labels, costs=None, validation=None, **meta) -> Atlas:
    """prediction and entropy: (views, exits, images). costs: trunk, cumulative and paper, one entry per exit."""
    prediction = np.asarray(prediction, np.int16)
    exits, images = prediction.shape[1:]
    costs = costs or {"trunk": [100 * (k + 1) for k in range(exits)], "paper": [float(k + 1) for k in range(exits)],
                      "cumulative": [100 * (k + 1) + 10 * min(k + 1, exits - 1) for k in range(exits)]}
    views = tuple(view(v) if isinstance(v, str) else v for v in views)
    about = {
        "model": {"name": "smallcnn", "exits": "rdi", "conditioning": "none", "width_multiplier": 1.0},
        "paper_thresholds": [0.5] * (exits - 1), "paper_mflops": costs["paper"], "trunk_macs": costs["trunk"],
        "cumulative_macs": costs["cumulative"], "plain_paper_mflops": costs["paper"][-1],
        "plain_macs": costs["trunk"][-1], "device": "cpu", "threads": 1, "version": "0", "seconds": 1.0, "seed": 0,
        "images": [0, images], "split": "test",
    }  # fmt: skip
    return Atlas(views, prediction, np.asarray(entropy, np.float32), np.zeros(prediction.shape, np.float32),
                 np.asarray(labels, np.int64), about | meta, validation and Validation(*validation))
