"""A record as one HTML file with its knobs, tiles, figure and pictures: no kernel, no network, works from file://.

    page.write(record, "rdi_smallcnn.html")

It holds the record's outcomes, not numbers made of them: thresholds, open exits and decisions are as exact as in
Python. Between recorded points its numbers are interpolated (≈). The setting is in the address, so that a point can be
sent.
"""

import base64
import contextlib
import html
import itertools
import json
import math
from pathlib import Path

import numpy as np

from lib import WorkbookError, checkpoints
from lib.evaluation import gates
from lib.evaluation.between import corners, nearest, threshold_curve, view_for
from lib.evaluation.points import SWITCHES, name
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import microscope, style
from lib.workbook.subject import Subject
from lib.workbook.view import TERMS, spoken

STEPS = np.linspace(0, 1, 101).round(9).tolist()  # of λ_n
LARGEST = 4 * 2**20  # bytes, so that a page can be mailed and opened on a phone
DARK = {"INK": "#e4e8ed", "MUTED": "#98a3b0", "RULE": "#2c343d", "PAPER": "#14181d", "CLEAN": "#56b4e9",
        "ATTACKED": "#f2884b", "UNION": "#e4e8ed", "GHOST": "#66717d"}  # the same hues, as light as a dark page needs


def write(shown: Record | Subject, path: Path | str) -> Path:
    """Write the page of a record, with the pictures of its Subject if that is given, atomically; returns its path.

    Raises WorkbookError for a record whose images cannot be routed, one without clean images, and one too large.
    """
    told = json.dumps(contents(shown), ensure_ascii=False, allow_nan=False)
    light = {tone: getattr(style, tone) for tone in DARK}
    page = (style.HTML / "page.html").read_text("utf-8")
    for mark, text in (("/*light*/", _tones(light)), ("/*dark*/", _tones(DARK)), ("/*font*/", style.FONT),
                       ("{record}", told.replace("<", "\\u003c"))):  # no text of a record ends the script
        page = page.replace(mark, text, 1)
    whole = page.encode()
    if len(whole) > LARGEST:
        images = shown.record.images if isinstance(shown, Subject) else shown.images
        raise WorkbookError(f"the page would have {len(whole) / 2**20:.1f} MB, above {LARGEST / 2**20:.2g}; give fewer "
                            f"images, such as record.select(images=slice({int(images * LARGEST / len(whole))})), or "
                            "fewer points or forms")
    checkpoints.replace(path, whole)
    return Path(path)


def contents(shown: Record | Subject) -> dict:
    """All that the page knows, as JSON can hold it; arrays as base64 of little-endian bytes."""
    subject = shown if isinstance(shown, Subject) else Subject(shown)
    record, sample, closed = subject.record, subject.record.sampled, (-math.inf,) * subject.early
    readings = [r for r in (read(record, point, closed) for point in record.points) if "clean" in r.views]
    if not readings:
        raise WorkbookError("this record holds no clean images, which a page needs; record them with it")
    readings.sort(key=lambda r: tuple(getattr(r.point, knob) or 0.0 for knob in ("code", "batch_norm", "noise")))
    readings[0].right("clean")  # refuses where the record kept no entropies of each draw
    attacks = list(dict.fromkeys(called for r in readings for called in r.views if called != "clean"))
    at = [r.point for r in readings]
    return {
        "title": ", ".join(filter(None, (record.model, style.label(record.meta.get("defence") or "")))),
        "about": subject.title(), "images": record.images, "exits": record.num_exits,
        "plain": record.costs()["trunk"][-1], "first": record.meta["images"][0], "terms": TERMS,
        "exit_names": style.exit_names(record.num_exits), "classes": list(map(str, subject.classes)),
        "attacks": {attack: html.unescape(spoken(attack, record.num_exits)) for attack in attacks},
        "sample": sample.tolist(), "labels": record.labels[sample].tolist(), "paths": _paths(subject, at),
        "pictures": subject.pixels and microscope.png_uri(np.concatenate(list(subject.pixels.values()), axis=1)),
        "decisions": {decision: _decided(subject.by(decision), at, attacks) for decision in gates.supported(record)}}


def _decided(subject: Subject, at: list[OperatingPoint], attacks: list[str]) -> dict:
    """What another decision changes: scores and answers, thresholds, costs, what was attacked with its knowledge."""
    record, closed = subject.record, (-math.inf,) * subject.early
    decision = record.meta.get("decision", "entropy")
    high = math.log(max(2, len(subject.classes))) if "entropy" in gates.DECISIONS[decision] else 1.1
    return {"score": gates.DECISIONS[decision], "highest": high, "usual": subject.usual,
            "right": _packed(record.right, np.uint8),
            "scores": _packed(record.entropy[:, :-1], "<f4") if subject.early else "",
            "said": _packed(record.prediction[:, :, record.sampled], "<u2") if subject.pixels is not None else "",
            "points": [_point(subject, read(record, point, closed), attacks) for point in at]}


def _point(subject: Subject, reading: Reading, attacks: list[str]) -> dict:
    """A recorded point: its knobs, costs, views by name, and thresholds by where they come from."""
    record, at = subject.record, reading.point
    costs = record.exit_costs(at)
    views = {one: {"places": places, "draws": sum(record.views[v].draws for v in places)}
             for one, places in reading.views.items()}
    stands = {attack: view for attack in attacks if (view := view_for(reading, attack)) in views}
    return {"name": name(at.replace(width=None)), "width": at.width, "point": at.to_json(), "views": views,
            "suite": reading.suite, "trunk": costs.trunk.tolist(), "heads": costs.heads.tolist(),
            "doubts": reading.doubts, "stands": stands,
            "sources": {source: _gates(found) for source, found in subject.stops(at).items()},
            "curve": _curve(threshold_curve(record, at)), "strong": _strong(record, at)}


def _paths(subject: Subject, at: list[OperatingPoint]) -> list[dict]:
    """Where λ_n leads from 0 to 1 at a width and a λ_th: at each step [name, place of the nearest recorded point,
    [[weight, place]] of those around]. A path that was not recorded from end to end is left out."""
    found, moved = [], subject.knobs & {"noise", "batch_norm", "code"}
    for width, switch in itertools.product(subject.values("width") or [None], SWITCHES if moved else ()):
        ways = [subject.at(n, switch, width) for n in STEPS]
        with contextlib.suppress(WorkbookError, ValueError):  # nothing recorded around, or no clean images there
            found.append({"width": width, "lambda_th": switch, "steps": [
                [name(way.replace(width=None)), at.index(nearest(subject.record, way)),
                 [[weight, at.index(point)] for weight, point in corners(subject.record, way) if weight]]
                for way in ways]})
    return found


def _curve(line: tuple[Reading, ...]) -> dict[str, list[float]]:
    """{"macs" in millions, "union", a view: accuracy in percent} along thresholds that held-out images chose."""
    if not line:
        return {}
    found = {one: [100 * float(r.right(one).mean()) for r in line] for one in (*line[0].views, "union")}
    return found | {"macs": [r.cost("cumulative_macs") / 1e6 for r in line]}


def _strong(record: Record, at: OperatingPoint) -> list[dict]:
    """What the strong suite left at this point, at each thresholds it was run at."""
    found = []
    used = [view.thresholds_used or () for view in (record.strong.views if record.strong else ()) if view.point == at]
    for thresholds in dict.fromkeys(used):
        reading = read(record, at, thresholds)
        number = reading.measured("strong")
        found.append({"gates": _gates(thresholds), "images": len(reading.right("strong")), **number._asdict()})
    return found


def _gates(thresholds) -> list[float | str]:
    return [float(t) if math.isfinite(t) else "open" if t > 0 else "closed" for t in thresholds]


def _packed(array: np.ndarray, kind) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def _tones(colours: dict[str, str]) -> str:
    return ";".join(f"--{tone.lower()}:{colour}" for tone, colour in colours.items())
