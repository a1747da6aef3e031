"""From an atlas and thresholds to numbers: accuracy, robustness, exits, both costs, each with its 95 % interval."""

import math

import numpy as np
import torch

from lib import WorkbookError, randomness
from lib.attacks.forms import paper_forms
from lib.evaluation import routing
from lib.evaluation.atlas import Atlas

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(successes: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion; stays inside [0, 1] and has width even at 0 and at 1."""
    if total < 1:
        raise WorkbookError("an interval needs at least one image")
    p, z2 = successes / total, Z95**2 / total
    centre, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2)
    return low, 1.0 if successes == total else (centre + half) / (1 + z2)


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = 10_000) -> dict:
    """Mean of `first` - `second` over the same images, with a 95 % percentile bootstrap over images.

    first, second: (N,) correct or not, or scores such as means over draws; or (S, N), S trainings on the same images,
    and then trainings and images are both drawn anew. Returns {"difference", "low", "high"}.
    A bootstrap sample of images only needs to know how often each distinct difference was drawn, which is multinomial:
    drawn as a chain of binomials, 10,000 resamples of 10,000 images take milliseconds. Raises WorkbookError when both
    are not of the same images.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.size:
        raise WorkbookError(f"a paired comparison needs the same images twice, not {first.shape} and {second.shape}")
    gap, source = np.atleast_2d(first - second), randomness.generator(seed, "bootstrap")
    trainings, images = gap.shape
    patterns, counts = np.unique(gap.T, axis=0, return_counts=True)
    left, weight = torch.full((resamples,), float(images), dtype=torch.float64), float(images)
    totals = torch.zeros(resamples, trainings, dtype=torch.float64)
    for pattern, count in zip(torch.from_numpy(patterns), counts, strict=True):
        drawn = torch.binomial(left, torch.full_like(left, min(1.0, count / weight)), generator=source)
        totals, left, weight = totals + drawn[:, None] * pattern, left - drawn, weight - count
    chosen = torch.randint(trainings, (resamples, trainings), generator=source)
    low, high = np.quantile((totals.gather(1, chosen).mean(1) / images).numpy(), [0.025, 0.975])
    return {"difference": float(gap.mean()), "low": float(low), "high": float(high)}


def correct(atlas: Atlas, thresholds) -> dict[str, np.ndarray]:
    """For each view by name, (N,) bool: is the routed decision right?"""
    _, prediction = routing.routed(atlas.prediction, atlas.entropy, thresholds)
    return dict(zip(atlas.names, prediction == atlas.labels, strict=True))


def summary(atlas: Atlas, thresholds) -> dict:
    """Everything about one network at one set of thresholds.

    images, thresholds.  forms: {name: …} with correct (routed), accuracy, low, high; exits (count per exit); per_exit
    (correct per exit; the last one is the control "the same network's last exit alone"); paper_mflops, cumulative_macs
    (means over the images); paper_saving, saving (against the plain backbone); attacked (False for clean);
    thresholds_used (what the attack knew, or None); exact (False when it was made against other thresholds).
    worst_form: the attacked form with the fewest right.  paper_worst: the same over the paper's K + 3 forms, None
    unless all are there.  union_correct, union_accuracy, union_low, union_high: images right under every view of
    suite, clean among them if recorded.
    Raises WorkbookError when the thresholds do not fit the atlas.
    """
    leaving, prediction = routing.routed(atlas.prediction, atlas.entropy, thresholds)
    right = prediction == atlas.labels
    costs = {"paper": np.asarray(atlas.meta["paper_mflops"]), "true": atlas.exit_costs.cumulative(thresholds)}
    per_exit = (atlas.prediction == atlas.labels).sum(-1)
    images, forms = len(atlas.labels), {}
    for v, (name, view) in enumerate(zip(atlas.names, atlas.views, strict=True)):
        counts = np.bincount(leaving[v], minlength=atlas.num_exits)
        paper, true = (float(counts @ cost) / images for cost in costs.values())
        low, high = wilson(int(right[v].sum()), images)
        forms[name] = {
            "correct": int(right[v].sum()), "accuracy": float(right[v].mean()), "low": low, "high": high,
            "exits": counts.tolist(), "per_exit": per_exit[v].tolist(),
            "paper_mflops": paper, "cumulative_macs": true,
            "paper_saving": 1 - paper / atlas.meta["plain_paper_mflops"], "saving": 1 - true / atlas.meta["plain_macs"],
            "attacked": view.attacked,
            "thresholds_used": None if view.thresholds_used is None else list(view.thresholds_used),
            "exact": view.exact_at(thresholds),
        }  # fmt: skip
    survived = right.all(axis=0)
    low, high = wilson(int(survived.sum()), images)
    return {
        "images": images, "thresholds": [float(t) for t in thresholds], "forms": forms,
        "worst_form": _worst(forms, [n for n in forms if forms[n]["attacked"]] or list(forms)),
        "paper_worst": _paper_worst(atlas, forms),
        "union_correct": int(survived.sum()), "union_accuracy": float(survived.mean()),
        "union_low": low, "union_high": high, "suite": list(forms),
    }  # fmt: skip


def _worst(forms: dict, names: list[str]) -> str:
    return min(names, key=lambda name: forms[name]["correct"])


def _paper_worst(atlas: Atlas, forms: dict) -> str | None:
    wanted = paper_forms(atlas.num_exits)
    return _worst(forms, list(wanted)) if set(wanted) <= set(forms) else None


def rows(atlas: Atlas, thresholds, threshold_source: str, **context) -> list[dict]:
    """The summary as tidy rows (`lib.evaluation.rows`); `context` fills experiment, defence, preset, weights, …

    Per view: clean_accuracy or robust_accuracy, routed (exit = "routed") and at each exit alone; exit_share per exit;
    paper_mflops, cumulative_macs, paper_saving, saving of the routed decision on that view's images (cost_inputs).
    Over the suite: paper_worst_case and union_accuracy.
    """
    found, images = summary(atlas, thresholds), len(atlas.labels)
    base = {**_described(atlas), "threshold_source": threshold_source, **context}
    result = []
    for name, view in zip(atlas.names, atlas.views, strict=True):
        form = found["forms"][name]
        common = {**base, **view.columns()}
        accuracy = "robust_accuracy" if view.attacked else "clean_accuracy"

        def add(metric, value, interval=(None, None), common=common, **more):
            result.append({**common, "metric": metric, "value": value, "low": interval[0], "high": interval[1], **more})

        add(accuracy, form["accuracy"], (form["low"], form["high"]), exit="routed")
        for k, (right, left) in enumerate(zip(form["per_exit"], form["exits"], strict=True), start=1):
            add(accuracy, right / images, wilson(right, images), exit=str(k))
            add("exit_share", left / images, wilson(left, images), exit=str(k), cost_inputs=name)
        for metric in ("paper_mflops", "cumulative_macs", "paper_saving", "saving"):
            add(metric, form[metric], exit="routed", cost_inputs=name)
    over_suite = {**base, "exit": "routed"}
    if found["paper_worst"]:
        worst = found["forms"][found["paper_worst"]]
        result.append({**over_suite, "metric": "paper_worst_case", "value": worst["accuracy"], "low": worst["low"],
                       "high": worst["high"], "attack": found["paper_worst"],
                       "suite": " ".join(paper_forms(atlas.num_exits))})  # fmt: skip
    result.append({**over_suite, "metric": "union_accuracy", "suite": " ".join(found["suite"]),
                   **{name: found[f"union_{key}"] for name, key in
                      (("value", "accuracy"), ("low", "low"), ("high", "high"))}})  # fmt: skip
    return result


def _described(atlas: Atlas) -> dict:
    """What the atlas knows of the columns that are the same in every row."""
    meta = atlas.meta
    return {
        "model": atlas.model, "defence": meta.get("defence"), "dataset": meta.get("dataset"),
        "data_variant": meta.get("data_variant"), "split": meta.get("split"), "images": len(atlas.labels),
        "checkpoint": meta.get("checkpoint"), "device": meta["device"], "threads": meta["threads"],
        "seconds": meta["seconds"], "version": meta["version"],
    }  # fmt: skip
