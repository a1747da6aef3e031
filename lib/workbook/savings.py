"""What a saving is: as the paper counts, in true multiply-accumulates, in milliseconds; what conventions change."""

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd

from lib import data
from lib.evaluation import latency, routing, rows
from lib.evaluation.reading import read
from lib.models import zoo
from lib.models.cost import cost
from lib.workbook import networks, studies, style, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.studies import Reading

DESIGNS = {"smallcnn": (("rdi",), (1, 28, 28)), "resnet38": (("rdi", "cheap"), (3, 32, 32)),
           "mobilenet_v2": (("rdi", "released", "cheap"), (3, 32, 32))}


def overheads() -> pd.DataFrame:
    """What all heads of each design add to the plain network, at full size. The paper says: under 2 %."""
    lines = []
    for name, (designs, shape) in DESIGNS.items():
        plain = cost(zoo.build(name, input_shape=shape))
        for design in designs:
            found = cost(zoo.build(name, exits=design, input_shape=shape))
            lines.append({
                "network": style.label(name), "exits": f"{design}, {len(found.exits) - 1} early",
                "plain, M MACs": f"{plain.macs / 1e6:.2f}", "last exit with all heads": f"{found.macs / 1e6:.2f}",
                "heads add": f"{100 * (found.macs / plain.macs - 1):.1f} %",
                "as the paper counts": f"{found.exits[-1].paper_mflops:.2f}", "parameters": f"{found.parameters:,}"})
    return pd.DataFrame(lines).set_index(["network", "exits"])


def clock(settings: Settings, readings: Mapping[str, Reading], images: data.Split) -> dict[str, list[dict]]:
    """{label: tidy rows of time}, also in the run's table; routed, all exits and plain take turns on each batch."""
    floats, _ = images.floats()
    found = {}
    for label, reading in readings.items():
        found[label] = latency.measure(
            reading.trained.network, floats, reading.thresholds, batch_sizes=settings.batch_sizes,
            seconds=settings.seconds, seed=settings.seed, experiment=settings.notebook, preset=settings.preset,
            weights=reading.trained.weights, dataset=reading.record.meta["dataset"], checkpoint=reading.trained.digest,
            threshold_source=reading.source, defence=label)
        rows.append(settings.table, found[label])
    return found


def times(found: Mapping[str, Sequence[dict]]) -> pd.DataFrame:
    """Median milliseconds an image with intervals: a line per network and batch size, a column per way to answer."""
    said = {"routed": "leaving early", "all": "computing every exit", "plain": "plain network"}
    lines = {}
    for label, measured in found.items():
        for row in measured:
            if row["metric"] == "latency_ms":
                told = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                lines.setdefault((label, row["suite"]), {})[said[row["exit"]]] = told
    return pd.DataFrame(lines).T


def savings(readings: Mapping[str, Reading], found: Mapping[str, Sequence[dict]]) -> dict[str, dict[str, tuple]]:
    """{network: {way to count: (percent saved on clean images against the plain network, low, high)}}."""
    result = {}
    for label, reading in readings.items():
        result[label] = {"as the paper counts": tables.measured(reading, "paper_saving"),
                         "true MACs": tables.measured(reading, "saving")}
        for row in found[label]:
            if row["metric"] == "speed_up" and row["exit"] == "plain":
                ends = (100 * (1 - 1 / row[name]) for name in ("value", "low", "high"))
                result[label][f"time, {row['suite']}"] = tuple(ends)
    return result


def as_table(found: Mapping[str, Mapping[str, tuple]]) -> pd.DataFrame:
    """`savings` in percent, with intervals where there are any."""
    def told(value, low, high):
        return f"{value:.1f}" + ("" if low is None else f" ({low:.1f} to {high:.1f})")

    return pd.DataFrame({label: {name: told(*entry) for name, entry in ways.items()} for label, ways in found.items()})


def threshold_sources(reading: Reading) -> dict[str, Reading]:
    """Readings of one record at thresholds from each source. The released code fitted its own on the test images."""
    record, backbone = reading.record, reading.record.meta["model"]["name"]
    seen, found = {"test": record.entropy[reading.first("clean")]}, {"paper": record.thresholds_of("paper")}
    for name, entropy in (({"held-out": record.held().entropy} if record.held_out else {}) | seen).items():
        found[f"equal shares of the {name} images"] = routing.calibrate(entropy)
        found[f"the same, shifted as in the released code ({name})"] = routing.released(entropy, backbone)
    return {name: read(record, thresholds=thresholds) for name, thresholds in found.items()}


def conventions(settings: Settings, defence: str) -> dict[str, Trained]:
    """One defence, trained as the recipe says and with one convention changed at a time, each a training of its own.

    Of shipped networks there is only the first.
    """
    if settings.weights == "shipped":
        return {"as shipped": studies.obtain(settings, "rdi_resnet38", defence)}
    base = studies.recipe(settings, "rdi_resnet38", defence)
    other = "eval" if base.attack_mode == "authors" else "authors"
    asked = {f"as here: attacked in {base.attack_mode} mode, the paper's branch weights": base,
             f"attacked in {other} mode": dataclasses.replace(base, name=f"{base.name}-{other}", attack_mode=other),
             "branch weights of one": dataclasses.replace(base, name=f"{base.name}-even", exit_weights=None)}
    return {name: networks.train(settings, recipe) for name, recipe in asked.items()}


def attack_modes(settings: Settings, trained: Trained, images: data.Dataset) -> dict[str, Reading]:
    """The same weights under attacks crafted in eval mode, as deployed, and in train mode, on batch statistics."""
    modes = {"in eval mode": "eval", "on batch statistics": "batch"}
    return {f"attacked {name}": studies.study(settings, {name: trained}, mode=mode,
                                              forms=("clean", "main", "average"))[name] for name, mode in modes.items()}


def changed(readings: Mapping[str, Reading]) -> pd.DataFrame:
    """TA and ATA of each convention in percent."""
    lines = {}
    for name, reading in readings.items():
        lines[name] = {style.spoken(form): tables.number(tables.measured(reading, form).value, 1)
                       for form in reading.names}
        lines[name]["true saving, clean images, %"] = tables.number(tables.measured(reading, "saving").value, 1)
    return pd.DataFrame(lines).T


def verdicts(saved: Mapping[str, Mapping[str, tuple]], clocked: Mapping[str, Sequence[dict]]) -> list[dict]:
    """Does leaving early save time, for each network and batch size? images: how many were timed."""
    timed = {(label, f"time, {row['suite']}"): row["images"] for label, measured in clocked.items() for row in measured}
    lines = []
    for (label, way), images in timed.items():
        value, low, high = saved[label][way]
        answer = "held" if low > 0 else "did not hold" if high < 0 else "too small to tell"
        lines.append({"claim": f"{label}: saves time at {way.removeprefix('time, ')}", "images": images,
                      "difference": f"{value:+.1f} % of the time", "95 % interval": f"{low:+.1f} to {high:+.1f}",
                      "verdict": answer})
    return lines
