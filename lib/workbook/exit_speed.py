"""What early exits save in time, set by measured times, and why it is less than they save in multiplications.

Times are of untrained networks of a record's shape, batch norm folded: weights do not change them. Which images leave
early does, so random images are made to leave in the shares that the record tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

import lib
from lib import WorkbookError, randomness
from lib.evaluation import latency, rows, speeds, tuning
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.evaluation.stats import paired_difference
from lib.models import exits, released, zoo
from lib.models.view import AttackView
from lib.workbook import networks, studies, style, tables
from lib.workbook.parameters import Settings

SMALL = 0.005  # of the plain network's multiplications: parts below this have no rate worth telling


@dataclass(frozen=True)
class Clock:
    """Networks of a record's shape, with early exits and without; random images; a table of ms an image per batch size.
    """

    early: AttackView
    plain: AttackView
    images: Tensor
    tables: dict[int, ExitCosts]


@dataclass(frozen=True)
class Routed:
    """A setting of exits at one batch size, judged on images that did not choose it.

    exits: how many there are.  leaving: (N,) where clean images leave, 0-based.  clean, worst: who is right, bool, by
    that setting and by the last exit alone, (2, N) of clean images and (2, M) in all views of others at once.
    macs: share of the plain network's that a clean image costs.  latency: rows of `latency.measure`.
    """

    exits: int
    leaving: np.ndarray
    clean: np.ndarray
    worst: np.ndarray
    macs: float
    latency: list[dict]

    def time(self) -> tuple[float, float, float]:
        """Percent of the plain network's time that is saved, with the 95 % interval of a median."""
        row = next(r for r in self.latency if (r["metric"], r["exit"]) == ("speed_up", "plain"))
        return tuple(100 * (1 - 1 / row[name]) for name in ("value", "low", "high"))

    def gain(self, attacked: bool) -> tuple[float, float, float]:
        """Points of accuracy over the last exit's, clean or in all views at once, with a 95 % interval."""
        found = paired_difference(*(self.worst if attacked else self.clean))
        return tuple(100 * found[name] for name in ("difference", "low", "high"))


def record(settings: Settings) -> Record:
    """Entropies and answers, clean and attacked: of the authors' released weights, or of the network that is named."""
    path = lib.ATLASES / f"{released.NAME}.safetensors"
    if settings.weights == "shipped" and path.is_file() and not {"dataset", "defence"} & settings.named:
        found = networks.cut(settings, networks.of_seed(settings, Record.load(path)))
    else:
        asked = {"trained": studies.obtain(settings, "rdi_resnet38", settings.defence)}
        views = dict(forms=("clean", "main", "average")) if settings.preset == "quick" else {}
        found = studies.study(settings, asked, **views)["trained"].record
    return tuning.of_paper_forms(found)


def caption(settings: Settings, record: Record) -> str:
    """Which record tells who leaves where, and what was timed on."""
    threads = torch.get_num_threads()
    return (f"{record.meta['model']['name']} · {record.meta['dataset']} ({record.meta['data_variant']}) · seed "
            f"{settings.seed} · {settings.device}, {threads} thread{'s' * (threads > 1)} · 95 % intervals")


def choosers(record: Record) -> str:
    """Which images choose, and which judge."""
    held_out, variant = record.held_out.images, record.meta.get("held_out_variant", "of the same dataset")
    images = record.images
    return (f"chosen on {held_out:,} held-out clean images ({variant}) and on {images - images // 2:,} attacked ones;\n"
            f"judged on {images:,} clean images and on {images // 2:,} other attacked ones")


def clock(settings: Settings, record: Record) -> Clock:
    config = record.meta["model"]
    early, plain = (AttackView(zoo.build(**{**config, "exits": kind}).to(settings.device).eval())
                    for kind in (config["exits"], "none"))
    source = randomness.generator(settings.seed, "clock", device=settings.device)
    images = torch.rand(max(settings.batch_sizes), *early.input_shape, generator=source, device=settings.device)
    return Clock(early, plain, images, {size: speeds.time_table(early, images[:size], seed=settings.seed)
                                        for size in settings.batch_sizes})


def stages(record: Record, clocked: Clock) -> pd.DataFrame:
    """Every part of the network: its multiplications, its time, and time per million of them; per batch size."""
    names = style.exit_names(record.num_exits)
    parts = [(f"backbone to {name}", k, "trunk") for k, name in enumerate(names)]
    parts += [(f"head of {name}", k, "heads") for k, name in enumerate(names)]
    macs, lines = per_part(record.exit_costs()), {}
    for label, k, kind in parts:
        million = macs[kind][k] / 1e6
        lines[label] = {"M MACs": f"{million:.3f}"}
        for size, table in clocked.tables.items():
            ms = per_part(table)[kind][k]
            rate = 1e3 * ms / million if million > SMALL * record.costs()["trunk"][-1] / 1e6 else None
            lines[label] |= {f"ms, batch {size}": f"{ms:.3f}", f"µs per M MAC, batch {size}": tables.number(rate, 0)}
    return tables.stacked(pd.DataFrame(lines).T)


def per_part(costs: ExitCosts) -> dict[str, np.ndarray]:
    """Costs of each part by itself: of the backbone from tap to tap, and of the heads."""
    return {"trunk": np.diff(np.asarray(costs.trunk, float), prepend=0.0), "heads": np.asarray(costs.heads, float)}


def stage_figure(record: Record, clocked: Clock, caption: str) -> go.Figure:
    """Time per multiplication along the backbone. Leaving early saves what comes last."""
    fig = style.figure("What a multiplication takes, along the network", caption)
    million = per_part(record.exit_costs())["trunk"] / 1e6
    shown = million > SMALL * record.costs()["trunk"][-1] / 1e6
    names = np.array([f"to {name}" for name in style.exit_names(record.num_exits)])
    for place, (size, table) in enumerate(clocked.tables.items()):
        fig.add_scatter(x=names[shown], y=1e3 * per_part(table)["trunk"][shown] / million[shown], name=f"batch {size}",
                        mode="lines+markers", line_color=style.CYCLE[place])
    fig.update_xaxes(title_text="stretch of the backbone", type="category", showgrid=False)
    fig.update_yaxes(title_text="µs an image and million multiplications", rangemode="tozero")
    return fig


def routed(settings: Settings, record: Record, clocked: Clock) -> dict[tuple[str, int], Routed]:
    """{(setting, batch size): ...}, each timed; rows in the table."""
    with torch.no_grad():
        seen = exits.entropy(clocked.early(clocked.images)).cpu().numpy()
    found, fixed = {}, {}
    if record.meta["paper_thresholds"]:
        fixed["the paper's thresholds"] = record.thresholds_of("paper")
    fixed["tuned by multiplications"] = tuning.tuned_on(record, record.exit_costs())
    for size, table in clocked.tables.items():
        timed: dict[tuple[float, ...], list[dict]] = {}
        for name, thresholds in (fixed | {"tuned by measured time": tuning.tuned_on(record, table)}).items():
            leaving, clean, worst = tuning.judged(record, thresholds)
            took = timed.get(thresholds) or latency.measure(
                clocked.early, clocked.images, tuning.imitated(seen, thresholds, leaving), plain=clocked.plain,
                batch_sizes=(size,), seconds=settings.seconds, seed=settings.seed)
            timed[thresholds] = took  # several settings may find the same thresholds
            told = dict(experiment=settings.notebook, preset=settings.preset, weights=settings.weights, defence=name,
                        threshold_source=name)
            rows.append(settings.table, [row | told for row in took])
            macs = record.exit_costs().cumulative(thresholds)[leaving].mean() / record.costs()["trunk"][-1]
            found[name, size] = Routed(record.num_exits, leaving, clean, worst, macs, took)
    return found


def routed_table(found: Mapping[tuple[str, int], Routed]) -> pd.DataFrame:
    """A line per setting and batch size: where images leave, what is saved, what it does to both accuracies."""
    lines = {}
    for (name, size), one in found.items():
        shares = 100 * np.bincount(one.leaving, minlength=one.exits) / len(one.leaving)
        lines[f"batch {size}", name] = {
            "leave at each exit, %": " ".join(f"{share:.0f}" for share in shares),
            "MACs saved, %": f"{100 * (1 - one.macs):.1f}", "time saved, %": interval(*one.time()),
            "clean, points": interval(*one.gain(False)), "under all attacks, points": interval(*one.gain(True))}
    return tables.stacked(pd.DataFrame(lines).T)


def interval(value: float, low: float, high: float) -> str:
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def saved(found: Mapping[tuple[str, int], Routed]) -> dict[str, dict[str, tuple]]:
    """{setting: {way to count: (percent saved, low, high)}}, for `study_figures.bars`."""
    result: dict[str, dict[str, tuple]] = {}
    for (name, size), one in found.items():
        result.setdefault(name, {})[f"MACs, batch {size}"] = (100 * (1 - one.macs), None, None)
        result[name][f"time, batch {size}"] = one.time()
    return result


def verdicts(found: Mapping[tuple[str, int], Routed]) -> list[dict]:
    """Does leaving early save time, and what does it do to accuracy? Judged on images that did not choose."""
    lines = []
    for (name, size), one in found.items():
        timed = next(r["images"] for r in one.latency if r["metric"] == "speed_up")
        lines.append(line(f"{name}: saves time at batch {size}", one.time(), "% of the time", timed, 0.0))
        if name.endswith("time"):
            for attacked, what, slack in ((False, "right on clean images", 0.0), (True, "under all attacks", -0.5)):
                claim = f"{name}, batch {size}: as many {what}{f', but for {-slack} points' if slack else ''}"
                images = (one.worst if attacked else one.clean).shape[1]
                lines.append(line(claim, one.gain(attacked), "points", images, slack))
    return lines


def gated(settings: Settings, record: Record) -> list[dict]:
    """The verdict on the exits tuned by multiplications when an attack that follows their gates joins the others.

    Where weights are shipped: that attack was recorded on the judging images. The last exit alone, which has no gates,
    meets one attack fewer.
    """
    path = lib.ATLASES / "repeats" / f"{released.NAME}-gates.safetensors"
    if settings.weights != "shipped" or not path.is_file():
        return []
    found, thresholds = Record.load(path), tuning.tuned_on(record, record.exit_costs())
    if found.meta["checkpoint"] != record.meta["checkpoint"] or not found.views[0].exact_at(thresholds):
        raise WorkbookError(f"{path.name} is of other weights or gates; record the released weights again")
    ours, last = tuning.judged(record, thresholds)[2]
    if len(ours) != found.images:  # fewer images were named than it was recorded on
        return []
    ours = ours & read(found, thresholds=thresholds).right("gate_aware")
    told = paired_difference(ours, last)
    claim = "tuned by multiplications, its gates attacked as well: as many under all attacks, but for 0.5 points"
    return [line(claim, tuple(100 * told[n] for n in ("difference", "low", "high")), "points", len(ours), -0.5)]


def line(claim: str, measured: tuple[float, float, float], unit: str, images: int, least: float) -> dict:
    """A verdict: is it at least `least`?"""
    value, low, high = measured
    answer = "held" if low >= least else "did not hold" if high < least else "too small to tell"
    return {"claim": claim, "images": images, "difference": f"{value:+.1f} {unit}",
            "interval": f"{low:+.1f} to {high:+.1f}", "verdict": answer}
