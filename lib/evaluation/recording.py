"""Making records: attacks craft every view, the network answers, a part per batch is kept.

One call records a network of any kind, and a killed call goes on where it stopped:

    views = recording.suite(network, threat)        # clean images and the paper's forms; of one exit, the plain attack
    views = points.views(network, threat)           # or: a once-for-all network at its published points and nodes
    found = recording.record(network, dataset.test[:1000], views, held_out=dataset.validation, folder=runs / "record",
                             dataset=dataset.name, data_variant=dataset.variant, checkpoint=loaded.digest,
                             defence="main")
    found.save("network.safetensors")

Attacks run on the folded copy of the network, which is faster; the network itself answers.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import lib
from lib import WorkbookError, check_counts, checkpoints
from lib.attacks import forms as attack_forms
from lib.attacks.audit import audit
from lib.attacks.decision import attack_mode, fresh
from lib.attacks.steps import Threat
from lib.data import Split, match
from lib.evaluation import routing
from lib.evaluation.latency import device_name
from lib.evaluation.reading import read, relation
from lib.evaluation.record import Record, View, alike, join
from lib.models.cost import cost, trunk_and_heads
from lib.models.exits import entropy
from lib.models.network import Network, check_batch, check_labels
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.progress import bar

HALF = 65504.0  # the largest number in half precision
BRIEF = 16  # images of the audit that every recording of attacks carries


def suite(network: Network, threat: Threat | None = None, forms: Sequence[str] | None = None, *,
          point: OperatingPoint | None = None, thresholds: Sequence[float] | None = None, **how) -> tuple[View, ...]:
    """Views at one point, crafted and judged there: of these forms, by default clean and the paper's.

    thresholds: for forms that look at gates; None = the paper's.  how: other attributes of the views (mode, restart).
    Raises WorkbookError on an unknown form, a repeated one, none, or missing settings.
    """
    point = point or OperatingPoint()
    names = check_forms(("clean", *attack_forms.paper_forms(network.num_exits)) if forms is None else forms,
                        network.num_exits)
    used = network.paper_thresholds if thresholds is None else thresholds
    if gated := [form for form in names if form in attack_forms.GATED]:
        if used is None:
            raise WorkbookError(f"{gated[0]} needs thresholds, and this network has no published ones; give some")
        routing.check_thresholds(used, network.num_exits)
        used = tuple(map(float, used))
    return tuple(View("clean", point) if form == "clean" else View(
        form, point, threat, point, thresholds_used=used if form in gated else None, **how) for form in names)


def check_forms(forms: Sequence[str], num_exits: int) -> tuple[str, ...]:
    """"clean" and attack forms by their own names. Raises WorkbookError on an unknown, a repeated one, or none."""
    found = tuple(form if form == "clean" else attack_forms.find(form, num_exits) for form in forms)
    if not found:
        raise WorkbookError(f"no attack form given; choose from clean, {', '.join(attack_forms.names(num_exits))}")
    if twice := [form for form in found if found.count(form) > 1]:
        raise WorkbookError(f"attack form '{twice[0]}' is given twice; record it again as a restart")
    return found


def record(network: Network, images: Split, views: Sequence[View], *, held_out: Split | Record | None = None,
           draws: int = 5, seed: int = 0, batch_size: int = 250, first: int = 0, folder: Path | str | None = None,
           split: str = "test", audited: int = BRIEF, **meta) -> Record:
    """Attack `images` in every view, look at all exits, and write down what they said.

    views: see `suite` and `points.views`.  draws: over how many frozen draws a noisy point is judged, where the view
    names none; with several exits each is a view of its own, since thresholds act within a draw.  held_out: images to
    choose thresholds on, judged clean at every point; or what `hold_out` made.  split, first: the split the images are
    from and the index of their first one there; a batch's random start depends on the index of its first image, so that
    slices cut at multiples of `batch_size` join to exactly the record made in one go.  folder: keeps a part per batch
    there, and takes up a killed recording again.  audited: of so many images an audit of the network and of the plain
    attack (`attacks.audit`) at each end of the points: meta["audit"]; of more than 16 one that tries other attacks as
    well, for what is kept (minutes on a CPU); 0 for none, where the caller audits what it made.  meta:
    what else to remember (checkpoint, dataset, data_variant, defence, …). Class names are compared and labels follow
    the network's; what has to be said of that is meta["remark"].
    Raises WorkbookError for no views, points that the network does not have, images or classes that do not fit it, and
    a folder that holds a recording of other weights, images or settings.
    """
    check_counts(draws=draws)
    images, remark = admitted(network, images, batch_size)
    if not views:
        raise WorkbookError("there is nothing to record; give at least one view")
    views = tuple(one for view in views for one in _drawn(network, replace(view, seed=seed), draws))
    meta = {**meta, **_about(network, views, images.images.device), "split": split, "seed": seed,
            "batch_size": batch_size, "remark": remark, "classes": images.classes and list(images.classes)}
    folder = folder and Path(folder)
    if isinstance(held_out, Split):
        held_out = hold_out(network, held_out, dict.fromkeys(view.point for view in views), draws=draws, seed=seed,
                            batch_size=batch_size, folder=folder and folder / "held_out")
    attacked, parts = folded(network, images[:4].floats()[0], views[0].evaluated_at), []
    if attacked is network:
        meta["attacked_on"] = "the network itself"
    with bar(len(images), "attack", "image") as shown:
        for start in range(0, len(images), batch_size):
            part = images[start:start + batch_size]
            about = {**meta, "images": [first + start, first + start + len(part)],
                     "pixels": checkpoints.digest({"images": part.images, "labels": part.labels})}
            path = folder and folder / "images-{:06d}-{:06d}.safetensors".format(*about["images"])
            if path is None or not path.exists():
                made = _batch(network, attacked, part, views, about)
                if path is not None:
                    made.save(path)
            parts.append(made if path is None else Record.load(path))
            if path is not None and (parts[-1].views != views or not alike(parts[-1].meta, about)):
                raise WorkbookError(f"{folder} holds another recording; give a new folder, or the network, images and "
                                    "settings that it was begun with")
            shown.update(len(part))
    found = replace(join(parts), held_out=held_out)
    audits = _audits(network, images[:audited], found, audited > BRIEF) if audited else None
    return replace(found, meta=found.meta | {"audit": audits}) if audits else found


@torch.no_grad()
def folded(network: Network, images: torch.Tensor, point: OperatingPoint) -> Network:
    """The network's folded copy, where it answers as the network does; else the network itself (statistics of the
    batch, answers at random, modules that folding does not know)."""
    point = point.replace(draw=0) if fresh(network, point) else point
    try:
        copy = AttackView(network)
        with attack_mode(network, "eval"):
            ours, theirs = network(images, point), copy(images, point)
    except (AttributeError, TypeError):
        return network
    same = (ours - theirs).abs().max() <= 1e-3 * ours.abs().max().clamp(min=1)
    return copy if same else network


def _audits(network: Network, images: Split, found: Record, others: bool) -> dict[str, dict]:
    """{point: its audit}, of the first and the last attacked point; gates by calibration where they can be chosen, else
    the paper's or, where it states none, nobody leaves early."""
    attacked = [v for v in found.views if relation(v) == "white-box"]
    made = {}
    for view in dict.fromkeys([attacked[0], attacked[-1]]) if attacked else ():
        gates = (-np.inf,) * (network.num_exits - 1) or None
        for source in ("paper", "calibrated") if gates else ():
            with contextlib.suppress(WorkbookError):
                gates = found.thresholds_of(source, view.point)
        worst = read(found.select(images=slice(len(images))), view.point, gates).right("union") == 1
        point = view.evaluated_at.replace(thresholds=gates)
        made[json.dumps(view.point.to_json())] = audit(
            network, *images.floats(), view.threat, point, seed=found.meta["seed"], limit=len(images), others=others,
            right=torch.from_numpy(worst).to(images.images.device))
    return made


def hold_out(network: Network, images: Split, points: Iterable[OperatingPoint] = (OperatingPoint(),),
             **options) -> Record:
    """The record of clean held-out images at these points, on which thresholds may be chosen; options as for `record`.

    Raises WorkbookError when there are none.
    """
    if not len(images):
        raise WorkbookError("there are no held-out images to choose thresholds on; use the paper's or give some")
    return record(network, images, [View("clean", point) for point in points],
                  **{"split": "validation"} | options)


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


def _drawn(network: Network, view: View, draws: int) -> list[View]:
    """The view over `draws` frozen draws of the noise: one with several exits for each of them, else one for all."""
    for point in (view.evaluated_at, view.crafted_at):
        if point is not None:
            network.check_point(point)
            if {"exits", "thresholds"} & point.used():
                raise WorkbookError("a record holds every exit; leave exits and thresholds open and choose them in "
                                    "reading")
    if not fresh(network, view.evaluated_at) or draws == 1 and network.num_exits == 1:
        return [view]
    if network.num_exits == 1:
        return [replace(view, draws=draws)]
    return [replace(view, evaluated_at=view.evaluated_at.replace(draw=d)) for d in range(draws)]


def _about(network: Network, views: Sequence[View], device: torch.device) -> dict:
    """The metadata that follows from the network and the machine; costs for each width that the points have."""
    widths = sorted({1.0} | {v.evaluated_at.width or 1.0 for v in views}, reverse=True)
    costs = {}
    for width in widths:
        point = OperatingPoint(width=width if "width" in network.knobs else None)
        trunk, heads = trunk_and_heads(network, point)
        costs[f"{width:g}"] = {"paper_mflops": [e.paper_mflops for e in cost(network, point).exits], "trunk": trunk,
                               "heads": heads}
    modes = sorted({v.mode for v in views if v.mode} - {"eval"})
    config = json.loads(json.dumps(network.config))  # as a part that was kept tells it
    return {"model": config, "weights": checkpoints.digest(network.state_dict()), "costs": costs,
            "paper_thresholds": network.paper_thresholds and list(network.paper_thresholds),
            "attacked_on": "the network itself" if modes else "its folded copy",
            "device": device_name(device), "threads": torch.get_num_threads(), "version": lib.__version__}


def _batch(network: Network, folded: AttackView, part: Split, views: tuple[View, ...], about: dict) -> Record:
    """The record of one batch; forms of one attacker share their single attacks."""
    began, (images, labels) = time.perf_counter(), part.floats()
    shape = (len(views), network.num_exits, len(part))
    found = Record(views, np.zeros(shape, np.min_scalar_type(max(v.draws for v in views))), labels.cpu().numpy(), about,
                   np.zeros(shape, np.min_scalar_type(network.classes - 1)), np.zeros(shape, np.float32),
                   np.zeros((*shape, network.classes), np.float16))
    attackers: dict[tuple, list[int]] = {}
    for v, view in enumerate(views):
        attacker = view.threat, view.crafted_at, view.mode, view.restart, view.thresholds_used
        attackers.setdefault(attacker, []).append(v)
    for (threat, point, mode, restart, used), places in attackers.items():
        shown = {"clean": images}
        if threat is not None:
            shown = attack_forms.suite(folded if mode == "eval" else network, images, labels, threat,
                                       dict.fromkeys(views[v].form for v in places), seed=about["seed"],
                                       batch_index=about["images"][0], restart=restart, point=point, mode=mode,
                                       thresholds=used)
        for v in places:
            for draw in range(views[v].draws):
                logits = _look(network, shown[views[v].form], views[v], draw)
                found.right[v] += (logits.argmax(-1) == labels).cpu().numpy()
                if draw == 0:
                    found.prediction[v] = logits.argmax(-1).cpu().numpy()
                    found.entropy[v], found.logits[v] = (t.cpu().numpy() for t in (entropy(logits), logits.clamp(
                        -HALF, HALF).half()))
    return replace(found, meta={**about, "seconds": time.perf_counter() - began})


@torch.inference_mode()
def _look(network: Network, images: torch.Tensor, view: View, draw: int) -> torch.Tensor:
    """The logits of all exits (exits, N, classes) at a frozen draw, where the point would draw fresh noise."""
    point = view.evaluated_at
    with attack_mode(network, "eval"):
        return network(images, point.replace(draw=draw) if fresh(network, point) else point).float()
