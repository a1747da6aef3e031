"""The verb `export`: a checkpoint at one point as programs, compared with it, timed, with a card of what is known."""

import json
from importlib.util import find_spec
from pathlib import Path

import torch

from lib import WorkbookError, checkpoints, randomness
from lib.commands import check_output, recorded, write_json
from lib.evaluating import card
from lib.evaluation import latency
from lib.evaluation.reading import read
from lib.models import exits
from lib.models.export import opened, route, served, stages, write
from lib.operating_point import OperatingPoint, plain

NEAR, COMPARED = 1e-4, 100  # how far a logit may lie from the network's, on so many images


@torch.no_grad()
def export(args) -> None:
    """args: checkpoint, folder, at (a file of `choose --json`, or a point as JSON), no_onnx.

    Noise without a draw becomes draw 0.  Raises WorkbookError for no such point, and where programs answer otherwise
    than the network.
    """
    folder, loaded, point = Path(args.folder), checkpoints.load(args.checkpoint), parse_point(args.at)
    check_output(folder / "card.json", inputs=[args.checkpoint])
    network, point = loaded.network, point if point.draw is not None or not point.noise else point.replace(draw=0)
    images = torch.rand(COMPARED, *network.input_shape, generator=randomness.generator(0, "export"))
    parts = stages(network, point)
    (folder / "card.json").unlink(missing_ok=True)  # one of earlier programs says nothing of these
    files = write(parts, images[:2], folder, onnx=not args.no_onnx)
    programs, gates = {"torch.export": [torch.export.load(path).module() for path in files]}, opened(network, point)
    if not args.no_onnx and find_spec("onnxruntime"):
        programs["onnxruntime"] = [served(path.with_suffix(".onnx")) for path in files]
    whole, far = network(images, point.replace(thresholds=None, exits=None))[list(gates)], 0.0
    for several in programs.values():
        x = images
        for program, wanted in zip(several, whole, strict=True):
            logits, x = program(x)
            far = max(far, float((logits - wanted).abs().max()))
    if not far <= NEAR:
        raise WorkbookError(f"logits lie {far:.2g} from the network's, above {NEAR:g}; do not use what is in {folder}")
    told = {"point": point.to_json(), "stages": [path.name for path in files], "furthest_logit": far,
            "thresholds": [plain(gate) for gate in gates.values()], "latency_ms": {}}
    ways = {way: lambda x, p=several: route(p, gates.values(), x) for way, several in programs.items()}
    if point.thresholds or network.num_exits == 1:
        ways["network"] = lambda x: exits.route(network, x, point)
    for size in (1, 32):
        times = latency.alternate(ways, images, size, passes=30, warm_up=5, seconds=10)
        told["latency_ms"][f"batch {size}"] = {
            way: dict(zip(("low", "median", "high"), latency.median_interval(1e3 / size * each), strict=True))
            for way, each in times.items()}
    try:
        record = recorded(args.checkpoint)
        threat = next(view.threat for view in record.views if view.attacked)
        told |= card(read(record, record.at(point), point.thresholds), threat, None)
    except WorkbookError as error:
        told["remark"] = str(error)
    write_json(folder / "card.json", told)
    print(f"{folder}: {len(files)} stages, logits of {COMPARED} images at most {far:.1g} from the network's",
          *(f"  {batch}, ms an image: " + ", ".join(f"{way} {ms['median']:.3g} ({ms['low']:.3g}–{ms['high']:.3g})"
                                                    for way, ms in took.items())
            for batch, took in told["latency_ms"].items()), sep="\n")


def parse_point(text: str) -> OperatingPoint:
    """The point in a file that `choose --json` wrote, or in JSON such as {"noise": 0, "width": 0.5}."""
    try:
        values = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8"))
        return OperatingPoint.from_json(values.get("point", values))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WorkbookError(f"'{text}' holds no operating point ({error}); give a file of choose --json, or JSON such "
                            'as \'{"noise": 0, "batch_norm": 1, "width": 0.5}\'') from None
