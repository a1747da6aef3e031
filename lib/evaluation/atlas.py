"""The atlas: what every exit said about every image under every attack; once recorded, never attacked again."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import lib
from lib import WorkbookError, checkpoints, randomness
from lib.attacks import forms as attack_forms
from lib.attacks.modes import attack_mode
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import routing
from lib.evaluation.views import ARRAYS, Atlas, Validation, View, admitted, combine, concatenate, unlike
from lib.models.cost import cost
from lib.models.exits import entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.progress import bar

__all__ = ["Atlas", "Validation", "View", "check_forms", "combine", "concatenate", "hold_out", "record"]


def record(network: Network, images: Split, *, forms: Sequence[str] | None = None, threat: Threat | None = None,
           point: OperatingPoint | None = None, evaluated_at: OperatingPoint | Sequence[OperatingPoint] | None = None,
           seed: int = 0, batch_size: int = 250, mode: str = "eval", thresholds: Sequence[float] | None = None,
           validation: Split | Validation | None = None, first: int = 0, folder: Path | str | None = None,
           split: str = "test", **meta) -> Atlas:  # fmt: skip
    """Attack `images` in every form, look at all exits, and write down what they said.

    forms: "clean" among them; None = clean and the paper's K + 3.  threat: needed by every form but clean.
    point: where the attacker works; evaluated_at: where the network is judged, one point or several, by default `point`
    (a transfer, or several draws, costs no second attack).  thresholds: for gate_aware; None = the paper's.
    validation: held-out images to choose thresholds on, or what `hold_out` saw.  split, first: the split the images are
    from and the index of their first one there; a batch's random start depends on the index of its first image, so that
    slices cut at multiples of `batch_size` join to exactly the record made in one go.  folder: keeps a part per batch
    there, and takes up a killed recording again.
    meta: what else to remember (checkpoint, dataset, data_variant, defence). Class names are compared and labels follow
    the network's; what has to be said of that is meta["remark"].
    Raises WorkbookError for unknown forms, missing settings, points that the network does not have, images or classes
    that do not fit it, and a folder that holds a recording of other weights, images or settings.
    """
    images, remark = admitted(network, images, batch_size)
    point = point or OperatingPoint()
    points = [evaluated_at or point] if not isinstance(evaluated_at, Sequence) else list(evaluated_at)
    forms = check_forms(("clean", *attack_forms.paper_forms(network.num_exits)) if forms is None else forms,
                        network.num_exits)  # fmt: skip
    thresholds = _check(network, images, forms, threat, (point, *points), thresholds)
    views = tuple(_view(form, at, seed, threat, mode, point, thresholds) for form in forms for at in points)
    meta = {**meta, **_about(network, points, images.images.device), "split": split, "seed": seed,
            "batch_size": batch_size, "remark": remark, "classes": images.classes and list(images.classes)}  # fmt: skip
    if isinstance(validation, Split):
        validation = hold_out(network, validation, point=points[0], seed=seed, batch_size=batch_size)
    if validation is not None and len(validation.entropy.T) >= network.num_exits:
        meta["calibrated_thresholds"] = list(routing.calibrate(validation.entropy))
    parts, shown = [], bar(len(images), "attack", "image")
    for start in range(0, len(images), batch_size):
        part = images[start:start + batch_size]
        about = {**meta, "images": [first + start, first + start + len(part)],
                 "pixels": checkpoints.digest({"images": part.images})}

        def look(part=part, about=about):
            return _batch(network, part, forms, points, views, about, validation)

        parts.append(look() if folder is None else _kept(Path(folder), look, views, about))
        shown.update(len(part))
    shown.close()
    return concatenate(parts)


def check_forms(forms: Sequence[str], num_exits: int) -> tuple[str, ...]:
    """"clean" and attack forms by their own names. Raises WorkbookError on an unknown, a repeated one, or none."""
    found = tuple(form if form == "clean" else attack_forms.find(form, num_exits) for form in forms)
    if not found:
        raise WorkbookError(f"no attack form given; choose from clean, {', '.join(attack_forms.names(num_exits))}")
    if twice := [form for form in found if found.count(form) > 1]:
        raise WorkbookError(f"attack form '{twice[0]}' is given twice; record again with another seed for a restart")
    return found


def _check(network, split, forms, threat, points, thresholds) -> tuple[float, ...] | None:
    """The thresholds that a gate-aware attack is to know; raises WorkbookError for settings that do not fit."""
    for point in points:
        network.check_point(point)
        if {"exits", "thresholds"} & point.used():
            raise WorkbookError("an atlas holds every exit; leave exits and thresholds open and choose them in reading")
    if threat is None and set(forms) != {"clean"}:
        raise WorkbookError("an attack needs its budget: pass threat=Threat(epsilon=…, step_size=…, steps=…)")
    if "gate_aware" not in forms:
        return None
    thresholds = network.paper_thresholds if thresholds is None else thresholds
    if thresholds is None:
        raise WorkbookError("the gate-aware attack needs thresholds, and this network has no published ones; give some")
    routing.check_thresholds(thresholds, network.num_exits)
    return tuple(float(t) for t in thresholds)


def _view(form, evaluated_at, seed, threat, mode, point, thresholds) -> View:
    if form == "clean":
        return View("clean", evaluated_at, seed)
    return View(form, evaluated_at, seed, threat, mode, point, thresholds if form == "gate_aware" else None)


def _about(network: Network, points: Sequence[OperatingPoint], device: torch.device) -> dict:
    """The metadata that follows from the network and the machine; costs at the points, which must be the same."""
    full = cost(network, points[0])
    if any(cost(network, at).exits != full.exits for at in points[1:]):
        raise WorkbookError("these operating points cost differently (widths); record one atlas for each")
    last = (network.num_exits,) if network.num_exits > 1 else None
    trunk = [e.cumulative_macs for e in cost(network, points[0].replace(exits=last)).exits]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "model": network.config, "weights": checkpoints.digest(network.state_dict()),
        "paper_thresholds": network.paper_thresholds and list(network.paper_thresholds),
        "paper_mflops": [e.paper_mflops for e in full.exits],
        "cumulative_macs": [e.cumulative_macs for e in full.exits], "trunk_macs": trunk,
        "plain_paper_mflops": full.exits[-1].paper_mflops, "plain_macs": trunk[-1],
        "device": name, "threads": torch.get_num_threads(), "version": lib.__version__,
    }  # fmt: skip


@torch.inference_mode()
def _look(network, images: torch.Tensor, labels: torch.Tensor, point: OperatingPoint, *stream) -> list[np.ndarray]:
    """What all exits say: prediction int16, entropy float32, margin float32, (exits, N) each."""
    source = randomness.generator(*stream, device=images.device)
    with attack_mode(network, "eval"):
        logits = network(images, point, source).float()
    true = labels.expand(logits.shape[:2])[..., None]
    margin = logits.gather(-1, true)[..., 0] - logits.scatter(-1, true, -torch.inf).amax(-1)
    return [array.cpu().numpy() for array in (logits.argmax(-1).short(), entropy(logits), margin)]


def hold_out(network: Network, split: Split, *, point: OperatingPoint | None = None, seed: int = 0,
             batch_size: int = 250) -> Validation:  # fmt: skip
    """Look at clean held-out images, on which thresholds may be chosen. Raises WorkbookError when there are none."""
    if len(split) == 0:
        raise WorkbookError("there are no held-out images to choose thresholds on; use the paper's or give some")
    split, _ = admitted(network, split, batch_size)
    point = point or OperatingPoint()
    entropies, right = [], []
    for start in range(0, len(split), batch_size):
        images, labels = split.floats(slice(start, start + batch_size))
        prediction, uncertain, _ = _look(network, images, labels, point, seed, "validation", start)
        entropies.append(uncertain)
        right.append(prediction == labels.cpu().numpy())
    return Validation(np.concatenate(entropies, axis=1), np.concatenate(right, axis=1))


def _batch(network, part: Split, forms, points, views, about: dict, validation) -> Atlas:
    """The atlas of one batch."""
    images, labels = part.floats()
    began, index = time.perf_counter(), about["images"][0]
    made = {"clean": images}
    if attacks := [form for form in forms if form != "clean"]:
        v = next(view for view in views if view.attacked)
        used = next((view.thresholds_used for view in views if view.thresholds_used is not None), None)
        made |= attack_forms.suite(network, images, labels, v.threat, attacks, seed=v.seed, batch_index=index,
                                   point=v.crafted_at, mode=v.mode, thresholds=used)  # fmt: skip
    seen = [_look(network, made[f], labels, at, about["seed"], "evaluate", f, index) for f in forms for at in points]
    arrays = {name: np.stack(every) for name, every in zip(ARRAYS, zip(*seen, strict=True), strict=True)}
    about = {**about, "seconds": time.perf_counter() - began}
    return Atlas(views, labels=labels.cpu().numpy(), meta=about, validation=validation, **arrays)


def _kept(folder: Path, look, views, about: dict) -> Atlas:
    """The batch from an earlier, killed recording in `folder`, or a new one that is kept there."""
    path = folder / "images-{:06d}-{:06d}.safetensors".format(*about["images"])
    if not path.exists():
        look().save(path)
    found = Atlas.load(path)
    if (found.views != views or found.meta.get("pixels") != about["pixels"]
            or unlike(found, replace(found, meta=about), "images")):
        raise WorkbookError(f"{folder} holds another recording; give a new folder, or the settings it was begun with")
    return found
