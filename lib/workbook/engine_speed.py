"""What a training step costs, by defence and by way of attacking, beside what the passes it makes predict."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.evaluation import rows
from lib.models import zoo
from lib.training import recipes, timing
from lib.training.recipe import Recipe
from lib.workbook import studies, style, tables
from lib.workbook.parameters import Settings

TOLERANCE = 1.2  # between measured and counted
DEFENCES = {"standard": "standard", "main branch": "main", "average": "average", "max-average": "max_average"}
WAYS = {  # of attacking in a max-average step: mode of the network, and what stands for it
    "authors: train mode, statistics move": dict(attack_mode="authors", attack_view=None),
    "batch: the same weights, exit by exit": dict(attack_mode="batch", attack_view=None),
    "eval: as deployed": dict(attack_mode="eval", attack_view=None),
    "eval, batch norm folded": dict(attack_mode="eval", attack_view="folded"),
    "eval, folded, in bf16": dict(attack_mode="eval", attack_view="bf16"),
}


def recipe(settings: Settings, defence: str, **attack) -> Recipe:
    """A defence of RDI-ResNet38 as published, but for batch and attack steps; at quick a thin network on small digits.

    attack: mode of the network and view of it, where it is attacked.
    """
    if settings.preset == "quick":
        found = studies.recipe(settings, "rdi_resnet38", defence, "digits")
    else:
        found = recipes.find(f"rdi_resnet38-cifar10-{defence}-paper")
    threat = found.threat and dataclasses.replace(found.threat, steps=settings.attack_steps)
    attack = dict(attack_mode="batch", attack_view=None) | attack if threat else {}
    return dataclasses.replace(found, batch_size=settings.batch, seed=settings.seed, threat=threat, **attack)


def steps(settings: Settings) -> dict[str, list[dict]]:
    """Tidy rows of a training step, {"methods": by defence, "ways": max-average by way of attacking}; in the table."""
    asked = {"methods": {label: recipe(settings, defence) for label, defence in DEFENCES.items()},
             "ways": {label: recipe(settings, "max_average", **way) for label, way in WAYS.items()}}
    found = {}
    for kind, several in asked.items():
        told = dict(experiment=settings.notebook, preset=settings.preset, suite=kind)
        found[kind] = timing.side_by_side(several, rounds=settings.rounds, device=settings.device, **told)
        for label, one in several.items():
            passes = timing.work(one, zoo.build(**one.network))
            found[kind].append(told | {"metric": "step_passes", "defence": label, "value": passes})
        rows.append(settings.table, found[kind])
    return found


def caption(settings: Settings, found: Mapping[str, list[dict]]) -> str:
    """What the steps were timed on."""
    told = next(r for r in found["ways"] if r["metric"] == "step_seconds")
    threads = f"{told['threads']} thread{'s' * (told['threads'] > 1)}"
    return (f"RDI-ResNet38, preset {settings.preset}, batch {told['images']}, PGD-{told['steps']} · "
            f"{settings.rounds} rounds · seed {settings.seed} · {told['device']}, {threads}")


def step_table(found: list[dict]) -> pd.DataFrame:
    """A line per way: milliseconds, ratio to the first way's, beside it by counted passes, and time per image pass."""
    by = {(r["defence"], r["metric"]): r for r in found}
    lines = {}
    for label in dict.fromkeys(r["defence"] for r in found):
        seconds, ratio = by[label, "step_seconds"], by[label, "step_ratio"]
        passes = by[label, "step_passes"]["value"]
        lines[label] = {
            "ms a step": tables.spread(seconds, 0, unit=1e3),
            "times the first": tables.spread(ratio),
            "by counted passes": f"{by[label, 'step_ratio_predicted']['value']:.2f}",
            "passes an image": f"{passes:.1f}",
            "ms per image and pass": f"{1e3 * seconds['value'] / passes / seconds['images']:.3f}"}
    return tables.stacked(pd.DataFrame(lines).T)


def step_figure(found: Mapping[str, list[dict]], caption: str) -> go.Figure:
    """Steps of all kinds, measured and counted, each in the time of the first of its kind."""
    fig = make_subplots(1, 2, column_widths=[0.42, 0.58], horizontal_spacing=0.08, subplot_titles=(
        "by defence, times standard training's step", "max-average by way of attacking, times mode authors' step"))
    for column, several in enumerate(found.values(), start=1):
        measured = [r for r in several if r["metric"] == "step_ratio"]
        counted = [r["value"] for r in several if r["metric"] == "step_ratio_predicted"]
        names = [r["defence"].replace(": ", ":<br>").replace(", ", ",<br>") for r in measured]
        value, low, high = (np.array([r[part] for r in measured]) for part in ("value", "low", "high"))
        fig.add_bar(row=1, col=column, x=names, y=value, name="measured (median, quartiles)", marker_color=style.CLEAN,
                    showlegend=column == 1, error_y=dict(type="data", symmetric=False, array=high - value,
                                                         arrayminus=value - low, color=style.INK))
        fig.add_bar(row=1, col=column, x=names, y=counted, name="by counted passes", marker_color=style.GHOST,
                    showlegend=column == 1)
    fig.update_xaxes(type="category", showgrid=False, ticks="", tickangle=0, tickfont_size=10)
    fig.update_layout(template=style.TEMPLATE, width=960, height=430, margin=dict(l=48, r=20, t=116, b=64),
                      title_text=style.heading("What a training step costs", caption), title_y=style.title_y(430),
                      legend=dict(y=1.1))
    fig.update_annotations(font=dict(size=12, color=style.MUTED))
    return fig


def verdicts(found: Mapping[str, list[dict]]) -> list[dict]:
    """Which ways of attacking make a step shorter than mode authors does, and whether passes explain the defences."""
    lines = []
    for r in (r for r in found["ways"] if r["metric"] == "step_ratio" and r["defence"] != next(iter(WAYS))):
        claim = f"max-average, {r['defence']}: shorter than in mode authors"
        lines.append(line(claim, r, r["high"] < 1, r["low"] > 1))
    counted = {r["defence"]: r["value"] for r in found["methods"] if r["metric"] == "step_ratio_predicted"}
    for r in (r for r in found["methods"] if r["metric"] == "step_ratio" and r["defence"] != next(iter(DEFENCES))):
        low, high = counted[r["defence"]] / TOLERANCE, counted[r["defence"]] * TOLERANCE
        claim = f"{r['defence']}: costs what its passes say, {counted[r['defence']]:.1f} standard steps, to 20 %"
        lines.append(line(claim, r, low <= r["low"] and r["high"] <= high, r["high"] < low or r["low"] > high))
    return lines


def line(claim: str, row: dict, held: bool, refuted: bool) -> dict:
    answer = "held" if held else "did not hold" if refuted else "too small to tell"
    return {"claim": claim, "images": row["images"], "difference": f"{row['value']:.2f} times",
            "interval": f"{row['low']:.2f} to {row['high']:.2f}", "verdict": answer}
