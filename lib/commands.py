"""The core verbs, train, evaluate, cost and bench, as functions of parsed flags; each prints a readable table."""

import dataclasses
import json
import runpy
from collections.abc import Sequence
from pathlib import Path

import pandas
import torch

from lib import DATASETS, ROOT, RUNS, WorkbookError, checkpoints, data, writable
from lib.attacks import forms as attack_forms
from lib.attacks.audit import audit
from lib.attacks.steps import Threat
from lib.data import Dataset, Split
from lib.evaluation import recording, routing
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.models import zoo
from lib.models.cost import MEBI
from lib.models.cost import cost as count_cost
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training import fleet as training_fleet
from lib.training import loop, recipes

AUDITED = 64  # the first images, which the audit looks at
GREY = {"smallcnn": (1, 28, 28)}  # the shape a model was published for; the others take 3x32x32


def train(args) -> int:
    """Train a recipe, or go on with it. args: recipe, minutes, seed, folder, device, list, json.

    Returns the exit code: 130 or 143 when SIGINT or SIGTERM stopped it, as shells say it.
    """
    if args.list:
        print("\n".join(recipes.names()))
        return 0
    recipe, device = recipes.find(args.recipe), find_device(args.device)
    if args.seed is not None:
        recipe = dataclasses.replace(recipe, seed=args.seed)
    folder = Path(args.folder) if args.folder else RUNS / "train" / recipe.label
    check_output(args.json, inputs=[folder])
    result = loop.fit(recipe, folder, device=device, minutes=args.minutes)
    print(f"{recipe.name}, seed {recipe.seed}: step {result.step:,} of {result.total:,} ({result.reason})")
    measured = {name: value for name, value in result.metrics.items() if isinstance(value, (int, float))}
    if measured:
        print(pandas.Series(measured, dtype=float).to_string(float_format="{:.4g}".format))
    print(f"network: {result.path}")
    if not result.finished:
        print("the same command goes on from here")
    write_json(args.json, {"recipe": recipe.name, "seed": recipe.seed, "finished": result.finished, "step": result.step,
                           "total": result.total, "path": str(result.path), "metrics": result.metrics})  # fmt: skip
    return 128 + result.signal if result.signal else 0


def fleet(args) -> int:
    """Train the declared fleet, or go on with it. args: only, list, minutes, jobs, device.

    Returns the exit code, as `train`.
    """
    members = training_fleet.members(training_fleet.names(), RUNS / "train")
    members = [m for m in members if not args.only or any(word in m.recipe.label for word in args.only)]
    if not members:
        raise WorkbookError(f"no training of the fleet has {' or '.join(args.only)} in its name; see fleet --list")
    if args.list:
        print(training_fleet.table(members))
        return 0
    find_device(args.device)
    data.load(training_fleet.DATASET)  # said before anything starts where it is missing
    stopped = training_fleet.run(members, minutes=args.minutes, jobs=args.jobs, device=args.device)
    return 128 + stopped if stopped else 0


def evaluate(args) -> None:
    """Routed accuracy of a checkpoint, clean and attacked, over all its exits.

    args: checkpoint, dataset, attack, epsilon, step_size, steps, images, batch_size, thresholds, seed, device, mode,
    save_record, json.
    """
    check_output(args.json, args.save_record, inputs=[args.checkpoint, args.dataset, DATASETS])
    device = find_device(args.device)
    loaded = checkpoints.load(args.checkpoint, device)
    network = loaded.network
    dataset = data.load(args.dataset, device=device, shape=network.input_shape)
    asked = args.attack or ("clean", *attack_forms.names(network.num_exits))
    forms = {name: recording.check_forms([name], network.num_exits)[0] for name in asked}
    threat = find_threat(args, dataset) if set(forms.values()) != {"clean"} else None
    first, images = find_images(args.images, dataset)
    held_out = None
    if args.thresholds == "calibrated" or args.save_record:
        held_out = recording.hold_out(network, dataset.validation, seed=args.seed, batch_size=args.batch_size)
    thresholds, source = find_thresholds(args.thresholds, network, held_out)
    views = recording.suite(network, threat, tuple(dict.fromkeys(forms.values())), mode=args.mode,
                            thresholds=thresholds if network.num_exits > 1 else None)
    record = recording.record(
        network, images, views, seed=args.seed, batch_size=args.batch_size, held_out=held_out, first=first,
        dataset=dataset.name, data_variant=dataset.variant, checkpoint=loaded.digest,
        defence=(loaded.metadata.get("recipe") or {}).get("defence"), trained_on=loaded.metadata.get("dataset"),
    )  # fmt: skip
    found = read(record, thresholds=thresholds, source=source)
    point = OperatingPoint(thresholds=thresholds) if network.num_exits > 1 else None
    labels, right = (torch.from_numpy(array[:AUDITED]).to(device) for array in (record.labels, found.right("union")))
    audited = audit(network, images[:AUDITED].floats()[0], labels, threat, point, seed=args.seed, right=right)
    if args.save_record:
        dataclasses.replace(record, meta={**record.meta, "audit": {"{}": audited}}).save(args.save_record)
    print(report(found, audited))
    write_json(args.json, {
        "images": record.images, "thresholds": [plain(t) for t in found.thresholds],
        "forms": {name: {
            "correct": int(found.right(form).sum()), "exits": leaving(found, form),
            "per_exit": found.alone(form).sum(1).astype(int).tolist(),
            "paper_mflops": found.cost("paper_mflops", form), "cumulative_macs": found.cost("cumulative_macs", form),
        } for name, form in forms.items()},
        "worst_form": found.worst_form, "union_correct": int(found.right("union").sum()), "audit": audited,
        "remarks": remarks(record),
    })  # fmt: skip


def leaving(found: Reading, view: str) -> list[int]:
    """How many images leave at each exit."""
    return (found.share(view) * found.record.images).round().astype(int).tolist()


def cost(args) -> None:
    """Parameters and multiply-accumulates of a model. args: model, exits, conditioning, widths, classes, input, json.

    The JSON's numbers are those of the full width; `widths` has all of them where several are asked for.
    """
    check_output(args.json)
    widths = sorted(set(args.widths or (1.0,)), reverse=True)
    network = zoo.build(args.model, exits=args.exits, conditioning=args.conditioning, widths=widths,
                        classes=args.classes, input_shape=args.input or GREY.get(args.model, (3, 32, 32)))  # fmt: skip
    slim = len(widths) > 1
    costs = {width: count_cost(network, OperatingPoint(width=width) if slim else None) for width in widths}
    full = costs[widths[0]]
    print(f"{args.model}, exits {args.exits}, conditioning {args.conditioning}: {full.parameters:,} parameters, "
          f"{full.macs:,} MACs through all exits")  # fmt: skip
    rows = [{"width": width, "exit": name, "paper MFlops": f"{e.paper_mflops:.2f}",
             "conv MACs, all heads on the way": f"{e.cumulative_conv_macs:,}", "true MACs": f"{e.cumulative_macs:,}"}
            for width, c in costs.items() for name, e in zip(exit_names(network.num_exits), c.exits, strict=True)]
    print(pandas.DataFrame(rows).drop(columns=[] if slim else ["width"]).to_string(index=False))
    print("paper MFlops: convolutions / 2^20, the exit's own head only; true MACs: convolutions and linear layers, "
          "every head on the way")  # fmt: skip
    told = {width: {"parameters": c.parameters, "macs": c.macs,
                    "exits": [{"paper_mflops": e.paper_mflops, "cumulative_macs": e.cumulative_macs} for e in c.exits]}
            for width, c in costs.items()}  # fmt: skip
    write_json(args.json, {**told[widths[0]], **({"widths": {f"{w:g}": c for w, c in told.items()}} if slim else {})})


def bench(args) -> None:
    """Measure this machine. args: json, record, rounds, only, device; `main(args)` of the benchmark's own file runs."""
    path = ROOT / "tests" / "bench" / "run.py"
    if not path.is_file():
        raise WorkbookError(f"the benchmark {path} is missing; fetch the repository again")
    history = path.with_name("history.jsonl")
    check_output(args.json, inputs=[history])
    if args.record:
        writable(history, "leave --record out and keep the numbers with --json FILE")
    runpy.run_path(str(path))["main"](args)


def find_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one. Raises WorkbookError when it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WorkbookError(f"'{name}' is not a device; write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WorkbookError(f"there is no GPU '{name}' here ({torch.cuda.device_count()} found); use --device cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError):
        raise WorkbookError(f"this machine or this PyTorch has no device '{name}'; use --device cpu") from None
    return device


def find_images(asked: tuple[int, int | None] | None, dataset: Dataset) -> tuple[int, Split]:
    """(index of the first image, the images) of a half-open range of the test images."""
    first, stop = asked or (0, None)
    stop = len(dataset.test) if stop is None else stop
    if not 0 <= first < stop <= len(dataset.test):
        raise WorkbookError(f"images {first}:{stop} are not among the {len(dataset.test):,} test images of "
                            f"{dataset.name}; give a range within 0:{len(dataset.test)}")  # fmt: skip
    return first, dataset.test[first:stop]


def find_threat(args, dataset: Dataset) -> Threat:
    """The budget: the flags, and the dataset's customary values where they are missing; its step follows epsilon."""
    given = {name: getattr(args, name) for name in ("epsilon", "step_size", "steps")}
    usual = dict(dataset.threat)
    if given["epsilon"]:
        usual["step_size"] *= given["epsilon"] / usual["epsilon"]
    return Threat(**{name: usual[name] if value is None else value for name, value in given.items()})


def find_thresholds(asked, network: Network, held_out: Record | None) -> tuple[tuple[float, ...], str]:
    """(thresholds, where they come from). Raises WorkbookError when they are missing or too many."""
    if network.num_exits == 1:
        if asked not in (None, "paper", "calibrated"):
            raise WorkbookError("this network has one exit and takes no thresholds; leave --thresholds out")
        return (), "none"
    if asked == "calibrated":
        return routing.calibrate(held_out.entropy[0]), "calibrated"
    if asked in (None, "paper"):
        if network.paper_thresholds is None:
            raise WorkbookError("the paper states no thresholds for this network; use --thresholds calibrated")
        return tuple(network.paper_thresholds), "paper"
    routing.check_thresholds(asked, network.num_exits)
    return tuple(asked), "given"


def remarks(record: Record) -> list[str]:
    """What has to be said beside the numbers: images of another dataset, classes that are not the network's own."""
    meta = record.meta
    elsewhere = meta["trained_on"] not in (None, meta["dataset"])
    return [f"trained on {meta['trained_on']}"] * elsewhere + [meta["remark"]] * bool(meta["remark"])


def report(found: Reading, audited: dict) -> str:
    """What `evaluate` prints."""
    record, meta, names = found.record, found.record.meta, exit_names(found.record.num_exits)
    attacked = next((view for view in record.views if view.attacked), None)
    budget = "no attack" if attacked is None else (
        f"{attacked.threat.algorithm}-{attacked.threat.steps}, epsilon {attacked.threat.epsilon:.4g}, "
        f"step {attacked.threat.step_size:.4g}, {attacked.mode} mode")  # fmt: skip
    gates = ", ".join(f"{t:.4g}" for t in found.thresholds) or "none"
    mark = " !" if audited["flags"] else ""
    rows = []
    for name in found.names:
        right = found.measured(name)
        paper, true = (found.cost(convention, name) for convention in ("paper_mflops", "cumulative_macs"))
        rows.append({
            "attack": name, "accuracy %": f"{100 * right.value:.2f}{mark if found.view(name).attacked else ''}",
            "95 %": f"{100 * right.low:.1f} - {100 * right.high:.1f}",
            "last exit alone %": f"{100 * found.alone(name)[-1].mean():.2f}", "paper MFlops": f"{paper:.2f}",
            "saved %": f"{100 * (1 - paper / found.plain('paper_mflops')):.1f}", "true Mi MACs": f"{true / MEBI:.2f}",
            "truly saved %": f"{100 * (1 - true / found.plain('trunk')):.1f}",
            **{f"exit {n}": count for n, count in zip(names, leaving(found, name), strict=True)}})
    lines = [
        f"{record.model} on {meta['dataset']} ({meta['data_variant']}), test images {meta['images'][0]}:"
        f"{meta['images'][1]}, seed {meta['seed']}; {budget}; thresholds {gates} ({found.source})"
        + "".join(f"; {remark}" for remark in remarks(record)),
        pandas.DataFrame(rows).to_string(index=False),
        f"audit on {audited['images']} images: " + (
            f"do not trust numbers with ! ({', '.join(audited['flags'])})" if mark
            else "nothing against these numbers"),
    ]
    if attacked is not None:
        lines.append(f"worst form: {found.worst_form} with {100 * found.measured(found.worst_form).value:.2f} %")
    if found.paper_worst:
        lines.append(f"the paper's worst case (lowest of its {len(attack_forms.paper_forms(record.num_exits))} forms): "
                     f"{100 * found.measured('paper_worst').value:.2f} % ({found.paper_worst})")
    if len(found.suite) > 1:
        union = found.measured("union")
        lines.append(f"right under every one of {', '.join(found.suite)}: {int(found.right('union').sum())} of "
                     f"{record.images} = {100 * union.value:.2f} % ({100 * union.low:.1f} - {100 * union.high:.1f})")
    return "\n".join(lines)


def exit_names(num_exits: int) -> list[str]:
    return [str(k) for k in range(1, num_exits)] + ["main"]


def check_output(*paths: str | None, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse before the work starts, not after, a file that cannot be written or that this command uses itself.

    inputs: files and folders that have to stay as they are. Raises WorkbookError.
    """
    taken = [Path(one).resolve() for one in inputs]
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            raise WorkbookError(f"{path} is a folder; give the name of a file")
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise WorkbookError(f"{path} is a device, a pipe or a link, which would be replaced; give another name")
        writable(path)
        if used := next((one for one in taken if one in (path.resolve(), *path.resolve().parents)), None):
            where = "is" if used == path.resolve() else f"lies in {used}, which is"
            raise WorkbookError(f"{path} {where} used by this command itself; give another name")
        taken.append(path.resolve())


def plain(value: float) -> float | str:
    """A number as JSON can hold it: a closed exit is the text "-inf"."""
    return value if abs(value) != float("inf") else str(value)


def write_json(path: str | None, values: dict) -> None:
    if path:
        checkpoints.replace(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
