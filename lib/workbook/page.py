"""A record as one HTML file with its knobs, tiles, figure and pictures: no kernel, no network, works from file://.

    page.write(record, "rdi_smallcnn.html")

It holds the record's outcomes, not numbers made of them: thresholds and open exits are as exact as in Python. Between
recorded points it says nothing. The setting is in the address, so that a point can be sent.
"""

import base64
import html
import json
import math
from pathlib import Path

import numpy as np

from lib import WorkbookError, checkpoints
from lib.evaluation.between import trade_off
from lib.evaluation.points import name
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import microscope, style
from lib.workbook.published import suited
from lib.workbook.subject import Subject
from lib.workbook.view import TERMS, spoken

LARGEST = 4 * 2**20  # bytes, so that a page can be mailed and opened on a phone
DARK = {"INK": "#e4e8ed", "MUTED": "#98a3b0", "RULE": "#2c343d", "PAPER": "#14181d", "CLEAN": "#56b4e9",
        "ATTACKED": "#f2884b", "UNION": "#e4e8ed", "GHOST": "#66717d"}  # the same hues, as light as a dark page needs


def write(record: Record, path: Path | str) -> Path:
    """Write the page, atomically; returns its path.

    Raises WorkbookError for a record whose images cannot be routed, one without clean images, and one too large.
    """
    told = json.dumps(contents(record), ensure_ascii=False, allow_nan=False)
    light = {tone: getattr(style, tone) for tone in DARK}
    page = (style.HTML / "page.html").read_text("utf-8")
    for mark, text in (("/*light*/", _tones(light)), ("/*dark*/", _tones(DARK)), ("/*font*/", style.FONT),
                       ("{record}", told.replace("<", "\\u003c"))):  # no text of a record ends the script
        page = page.replace(mark, text, 1)
    whole = page.encode()
    if len(whole) > LARGEST:
        fits = int(record.images * LARGEST / len(whole))
        raise WorkbookError(f"the page would have {len(whole) / 2**20:.1f} MB, above {LARGEST / 2**20:.2g}; give "
                            f"fewer images, such as record.select(images=slice({fits})), or fewer points or forms")
    checkpoints.replace(path, whole)
    return Path(path)


def contents(record: Record) -> dict:
    """All that the page knows, as JSON can hold it; arrays as base64 of little-endian bytes."""
    subject, sample, closed = Subject(record), record.sampled, (-math.inf,) * (record.num_exits - 1)
    readings = [r for r in (read(record, point, closed) for point in record.points) if "clean" in r.views]
    if not readings:
        raise WorkbookError("this record holds no clean images, which a page needs; record them with it")
    readings.sort(key=lambda r: tuple(getattr(r.point, knob) or 0.0 for knob in ("code", "batch_norm", "noise")))
    attacks = list(dict.fromkeys(called for r in readings for called in r.views if called != "clean"))
    found = {
        "title": ", ".join(filter(None, (record.model, style.label(record.meta.get("defence") or "")))),
        "about": subject.title(), "images": record.images, "exits": record.num_exits,
        "plain": record.costs()["trunk"][-1], "first": record.meta["images"][0], "terms": TERMS,
        "exit_names": style.exit_names(record.num_exits), "classes": list(map(str, subject.classes)),
        "usual": {"paper": "paper", "calibrated": "equal share"}[suited(record)],
        "entropies": math.log(max(2, len(subject.classes))),
        "attacks": {attack: html.unescape(spoken(attack, record.num_exits)) for attack in attacks},
        "points": [_point(subject, reading) for reading in readings], "right": _packed(record.right, np.uint8),
        "sample": sample.tolist(), "labels": record.labels[sample].tolist(), "pictures": None}
    if record.num_exits > 1:
        readings[0].right("clean")  # refuses where the record kept no entropies of each draw
        found["entropy"] = _packed(record.entropy[:, :-1], "<f4")
    if subject.pixels is not None:
        found["pictures"] = microscope.png_uri(np.concatenate(list(subject.pixels.values()), axis=1))
        found["said"] = _packed(record.prediction[:, :, sample], "<u2")
    return found


def _point(subject: Subject, reading: Reading) -> dict:
    """A recorded point: its knobs, costs, views by name, and thresholds by where they come from."""
    record, at = subject.record, reading.point
    costs = record.exit_costs(at)
    views = {called: {"places": places, "draws": sum(record.views[v].draws for v in places)}
             for called, places in reading.views.items()}
    return {"name": name(at.replace(width=None)), "width": at.width, "point": at.to_json(), "views": views,
            "suite": reading.suite, "trunk": costs.trunk.tolist(), "heads": costs.heads.tolist(),
            "doubts": reading.doubts,
            "sources": {source: _gates(gates) for source, gates in subject.stops(at).items()},
            "curve": _curve(trade_off(record, at)), "strong": _strong(record, at)}


def _curve(line: tuple[Reading, ...]) -> dict[str, list[float]]:
    """{"macs" in millions, "union", a view: accuracy in percent} along thresholds that held-out images chose."""
    if not line:
        return {}
    found = {called: [100 * float(one.right(called).mean()) for one in line] for called in (*line[0].views, "union")}
    return found | {"macs": [one.cost("cumulative_macs") / 1e6 for one in line]}


def _strong(record: Record, at: OperatingPoint) -> list[dict]:
    """What the strong suite left at this point, at each thresholds it was run at."""
    found = []
    used = [view.thresholds_used or () for view in (record.strong.views if record.strong else ()) if view.point == at]
    for gates in dict.fromkeys(used):
        reading = read(record, at, gates)
        number = reading.measured("strong")
        found.append({"gates": _gates(gates), "images": len(reading.right("strong")), **number._asdict()})
    return found


def _gates(thresholds) -> list[float | str]:
    return [float(t) if math.isfinite(t) else "open" if t > 0 else "closed" for t in thresholds]


def _packed(array: np.ndarray, kind) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def _tones(colours: dict[str, str]) -> str:
    return ";".join(f"--{tone.lower()}:{colour}" for tone, colour in colours.items())
