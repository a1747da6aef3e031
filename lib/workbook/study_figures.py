"""Figures of a study: who leaves where, accuracy by attack form, accuracy against cost, what a saving is in time."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.evaluation.between import trade_off
from lib.workbook import style, tables
from lib.workbook.studies import Reading, spoken

OWN = style.DEFENCES | {"plain": style.INK, "pruned": "#0072b2", "atmc": "#d55e00"}
OTHERS = ("#56b4e9", "#0072b2", "#d55e00", "#b8860b", "#6b7785")


def colour(label: str, place: int) -> str:
    """A network's own colour, else one that none of those has."""
    return OWN.get(label, OTHERS[place % len(OTHERS)])


def exits(readings: Mapping[str, Reading], caption: str) -> go.Figure:
    """Fig. 2: the share of images that leaves at each exit, clean and under the paper's worst form, one panel each."""
    shown = {label: r for label, r in readings.items() if r.record.num_exits > 1}
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.03,
                        subplot_titles=[spoken(label) for label in shown])
    for column, reading in enumerate(shown.values(), start=1):
        found = reading.summary
        names = [str(k) for k in range(1, reading.record.num_exits)] + ["main"]
        worst = found["paper_worst"] or found["worst_form"]
        for view, name, tint in (("clean", "clean", style.CLEAN), (worst, "worst form", style.ATTACKED)):
            share = 100 * np.asarray(found["forms"][view]["exits"]) / found["images"]
            fig.add_bar(x=names, y=share, name=name, marker_color=tint, showlegend=column == 1, legendgroup=name,
                        hovertemplate=f"{style.spoken(view)}, exit %{{x}}: %{{y:.1f}} %<extra></extra>",
                        row=1, col=column)
        fig.update_xaxes(title_text="exit", ticks="", showgrid=False, type="category", row=1, col=column)
    _dress(fig, "Who leaves where, % of the images", caption, height=360, barmode="group")
    fig.update_yaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100])
    return fig


def forms(readings: Mapping[str, Reading], caption: str) -> go.Figure:
    """A dot per network and view with its interval; the last column holds the images right under all of them."""
    series = {}
    for label, reading in readings.items():
        found = reading.summary
        entries = {style.spoken(name): _percent(f) for name, f in found["forms"].items()}
        series[label] = entries | {"per image": _percent({k: found[f"union_{k}"] for k in ("accuracy", "low", "high")})}
    return dots(series, "Accuracy under each form of the attack, %", caption)


def _percent(entry: dict) -> tuple[float, float, float]:
    return tuple(100 * entry[name] for name in ("accuracy", "low", "high"))


def dots(series: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str, caption: str) -> go.Figure:
    """{network: {column: (value, low, high)}} in percent, as dots with intervals, side by side in each column."""
    fig = style.figure(title, caption, scattermode="group", scattergap=0.5)
    for place, (label, entries) in enumerate(series.items()):
        value, low, high = np.array(list(entries.values()), float).T
        tint = colour(label, place)
        fig.add_scatter(x=list(entries), y=value, mode="markers", name=spoken(label), marker=dict(size=9, color=tint),
                        error_y=dict(type="data", symmetric=False, array=high - value, arrayminus=value - low,
                                     thickness=1, width=0, color=tint),
                        hovertemplate=f"{spoken(label)}, %{{x}}: %{{y:.1f}} %<extra></extra>")
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    fig.update_yaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100])
    return fig


def against_cost(readings: Mapping[str, Reading], caption: str, swept: str | None = None,
                 costs: Mapping[str, float] | None = None, unit: str = "paper_mflops") -> go.Figure:
    """TA (open) and the paper's worst case (filled) of each network at its mean cost on clean images.

    swept: the network whose thresholds are moved along its held-out trade-off; its lines pass through what it can do.
    costs: {label: cost} where the record does not know it (sparse weights).  unit: paper_mflops | cumulative_macs.
    """
    fig = style.figure("Accuracy against cost, %", f"{caption}<br>open: clean images; filled: the paper's worst case",
                       height=440, margin=dict(l=64, r=170, t=96, b=52),
                       legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))
    for place, (label, reading) in enumerate(readings.items()):
        tint, curve = colour(label, place), trade_off(reading.record) if label == swept else ()
        curve = [tables.summary(each) for each in curve]
        at = (costs or {}).get(label, _cost(reading.summary, unit))
        for quantity, symbol in (("clean", "circle-open"), ("paper_worst", "circle")):
            if curve:
                fig.add_scatter(x=[_cost(s, unit) for s in curve], y=[_accuracy(s, quantity) for s in curve],
                                mode="lines", showlegend=False, hoverinfo="skip", line=dict(color=tint, width=1.5))
            fig.add_scatter(x=[at], y=[_accuracy(reading.summary, quantity)], mode="markers", name=spoken(label),
                            showlegend=quantity == "paper_worst",
                            marker=dict(symbol=symbol, size=11, color=tint, line=dict(width=2)),
                            hovertemplate=f"{spoken(label)}: %{{y:.1f}} % at %{{x:.3g}}<extra></extra>")
    named = {"paper_mflops": "MFlops as the paper counts", "cumulative_macs": "true cost, M MACs"}[unit]
    fig.update_xaxes(rangemode="tozero", title_text=f"{named}, mean over the clean images")
    fig.update_yaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100])
    return fig


def _cost(summary: dict, unit: str) -> float:
    return summary["forms"]["clean"][unit] * (1 if unit == "paper_mflops" else 1e-6)


def _accuracy(summary: dict, quantity: str) -> float:
    if quantity == "clean":
        return 100 * summary["forms"]["clean"]["accuracy"]
    return 100 * summary["forms"][summary["paper_worst"] or summary["worst_form"]]["accuracy"]


def bars(series: Mapping[str, Mapping[str, tuple]], title: str, caption: str, axis: str,
         span: tuple[float, float] | None = None) -> go.Figure:
    """{series: {group: (value, low, high)}} as grouped bars; low and high are None where there is no interval.

    span: what the axis shows; None = all of it.
    """
    fig = style.figure(title, caption, barmode="group")
    for place, (name, entries) in enumerate(series.items()):
        value, low, high = np.array(list(entries.values()), float).T  # None becomes NaN: no error bar
        fig.add_bar(x=list(entries), y=value, name=name, marker_color=style.CYCLE[place % len(style.CYCLE)],
                    error_y=dict(type="data", symmetric=False, array=high - value, arrayminus=value - low, thickness=1,
                                 width=3, color=style.MUTED),
                    hovertemplate=f"{name}, %{{x}}: %{{y:.3g}}<extra></extra>")
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    fig.update_yaxes(title_text=axis, zeroline=True, zerolinecolor=style.GHOST, range=span)
    return fig


def _dress(fig: go.Figure, title: str, caption: str, **layout):
    base = dict(template=style.TEMPLATE, width=960, margin=dict(l=48, r=20, t=104, b=52))
    fig.update_layout(**base | layout, title_text=style.heading(title, caption))
    fig.update_layout(legend=dict(y=1.12), title_y=style.title_y(fig.layout.height))
    for note in fig.layout.annotations:
        note.update(font=dict(size=12, color=style.INK))
