"""The core verbs but `evaluate` and `export`, as functions of parsed flags; each prints a readable table."""

import dataclasses
import importlib
import json
import math
import runpy
from collections.abc import Sequence
from pathlib import Path

import pandas
import torch

from lib import ATLASES, CHECKPOINTS, IMAGES, ROOT, RUNS, WorkbookError, checkpoints, data, writable
from lib.evaluation import choosing, latency
from lib.evaluation.record import Record
from lib.models import zoo
from lib.models.cost import cost as count_cost
from lib.operating_point import OperatingPoint, plain
from lib.training import fleet as training_fleet
from lib.training import loop, recipes

GREY = {"smallcnn": (1, 28, 28)}  # the shape a model was published for; the others take 3x32x32


def train(args) -> int:
    """Train a recipe, or go on with it. args: recipe (or network, dataset, method, preset), minutes, seed, folder,
    device, list, json.

    Returns the exit code: 130 or 143 when SIGINT or SIGTERM stopped it, as shells say it.
    """
    if args.list:
        print("\n".join(recipes.names()))
        return 0
    device = find_device(args.device)
    recipe = recipes.find(args.recipe) if args.recipe is not None else recipes.compose(
        args.network, args.dataset, args.method, args.preset or "laptop")
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
                           "total": result.total, "path": str(result.path), "metrics": result.metrics})
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


def choose(args) -> None:
    """The most accurate setting of a recorded network within bounds. args: source, a record or a network that came with
    one; max_macs, max_ms, min_robust, json."""
    check_output(args.json, inputs=[args.source])
    record = recorded(args.source)
    clocks = latency.clocks(record) if args.max_ms < math.inf else None
    choice = choosing.choose(record, args.max_macs, args.min_robust, args.max_ms, clocks)
    print(choosing.sentence(choice))
    numbers = {half: {what: number._asdict() for what, number in getattr(choice, half).items()}
               for half in ("chosen", "judged")}
    write_json(args.json, {"max_macs": plain(choice.max_macs), "max_ms": plain(choice.max_ms),
                           "min_robust": choice.min_robust, "reached": choice.reached, "point": choice.point.to_json(),
                           "source": choice.reading.source, **numbers, "kept": choice.kept,
                           "robust": choice.reading.robust, "doubts": choice.reading.doubts})


def page(args) -> None:
    """A record as one HTML file. args: source, as for `choose`; file."""
    check_output(args.file, inputs=[args.source])
    print(importlib.import_module("lib.workbook.page").write(recorded(args.source), args.file))


def recorded(path: str) -> Record:
    """The record of a file, or the one that came along of the network in it. Raises WorkbookError without."""
    try:
        return Record.load(path)
    except checkpoints.OtherKind:
        digest = checkpoints.load(path).digest
    for record in map(Record.load, sorted(ATLASES.glob("*.safetensors"))):
        if record.meta.get("checkpoint") == digest:
            return record
    raise WorkbookError(f"no record of {path} came along; make one with `python3 -m lib evaluate {path} --dataset … "
                        "--save-record FILE` and give that file")


def cost(args) -> None:
    """Parameters and multiply-accumulates of a model. args: model, exits, conditioning, widths, classes, input, json.

    The JSON's numbers are those of the full width; `widths` has all of them where several are asked for.
    """
    check_output(args.json)
    widths = sorted(set(args.widths or (1.0,)), reverse=True)
    network = zoo.build(args.model, exits=args.exits, conditioning=args.conditioning, widths=widths,
                        classes=args.classes, input_shape=args.input or GREY.get(args.model, (3, 32, 32)))
    slim = len(widths) > 1
    costs = {width: count_cost(network, OperatingPoint(width=width) if slim else None) for width in widths}
    full = costs[widths[0]]
    print(f"{args.model}, exits {args.exits}, conditioning {args.conditioning}: {full.parameters:,} parameters, "
          f"{full.macs:,} MACs through all exits")
    rows = [{"width": width, "exit": name, "paper MFlops": f"{e.paper_mflops:.2f}",
             "conv MACs, all heads on the way": f"{e.cumulative_conv_macs:,}", "true MACs": f"{e.cumulative_macs:,}"}
            for width, c in costs.items() for name, e in zip(exit_names(network.num_exits), c.exits, strict=True)]
    print(pandas.DataFrame(rows).drop(columns=[] if slim else ["width"]).to_string(index=False))
    print("paper MFlops: convolutions / 2^20, the exit's own head only; true MACs: convolutions and linear layers, "
          "every head on the way")
    counts = {f"{width:g}": {"parameters": c.parameters, "macs": c.macs, "exits": [
        {part: getattr(e, part) for part in ("paper_mflops", "cumulative_macs")} for e in c.exits]}
        for width, c in costs.items()}
    write_json(args.json, counts[f"{widths[0]:g}"] | ({"widths": counts} if slim else {}))


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
        there = torch.zeros(1, device=name)
        there.item()  # which "meta" has not
        return there.device
    except (RuntimeError, NotImplementedError, AssertionError):
        raise WorkbookError(f"there is no device '{name}' here ({torch.cuda.device_count()} GPUs found); use --device "
                            "cpu, cuda or cuda:1") from None


def exit_names(num_exits: int) -> list[str]:
    return [str(k) for k in range(1, num_exits)] + ["main"]


def check_output(*paths: str | None, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse before the work starts, not after, a file that cannot be written or that this command uses itself.

    inputs: files and folders that have to stay as they are, besides what came along. Raises WorkbookError.
    """
    taken = [Path(one).resolve() for one in (*inputs, ATLASES, CHECKPOINTS, IMAGES)]
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


def write_json(path: str | None, values: dict) -> None:
    if path:
        checkpoints.replace(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
