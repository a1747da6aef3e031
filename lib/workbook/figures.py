"""What thresholds buy: every network's accuracy along all that its exits can cost."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.evaluation.between import trade_off
from lib.evaluation.reading import Reading as Numbers
from lib.evaluation.stats import Number
from lib.workbook import style
from lib.workbook.studies import Reading, spoken
from lib.workbook.study_figures import colour


def trade_offs(readings: Mapping[str, Reading], caption: str, title: str = "What leaving early buys, %") -> go.Figure:
    """TA (dotted) and the per-image worst case (solid) against true cost; marks where the readings stand.

    The lines go from "nobody leaves early" to "all leave at exit 1", by thresholds chosen on held-out images."""
    fig = style.figure(title, f"{caption}<br>dotted: clean images; solid: per-image worst case", height=470,
                       margin=dict(l=64, r=20, t=112, b=52))
    for place, (label, reading) in enumerate(readings.items()):
        tint, curve = colour(label, place), trade_off(reading.record)
        for what, (dash, told) in {"clean": ("dot", "clean"), "union": ("solid", "per-image worst case")}.items():
            fig.add_scatter(x=[_cost(r) for r in curve], y=[_accuracy(r, what) for r in curve], mode="lines",
                            name=spoken(label), line=dict(color=tint, dash=dash, width=2), showlegend=what == "union",
                            hovertemplate=f"{spoken(label)}, {told}: %{{y:.1f}} % at %{{x:.2f}} M<extra></extra>")
        stands = [_accuracy(reading, what) for what in ("clean", "union")]
        fig.add_scatter(x=[_cost(reading)] * 2, y=stands, mode="markers", showlegend=False,
                        marker=dict(size=10, color=tint, line=dict(color="white", width=2)),
                        hovertemplate=f"{spoken(label)}, {reading.source}: %{{y:.1f}} % at %{{x:.2f}} M<extra></extra>")
    plain = next(iter(readings.values())).plain("trunk") / 1e6
    dearest = max(r.record.exit_costs().cumulative((0,) * len(r.thresholds))[-1] for r in readings.values())
    fig.add_vline(x=plain, line=dict(color=style.GHOST, width=1, dash="dash"), annotation_text="plain network",
                  annotation_position="right", annotation_font=dict(size=11, color=style.MUTED))
    fig.update_layout(legend=dict(y=1.02))
    fig.update_xaxes(range=[0, 1.06 * dearest / 1e6],
                     title_text="true cost, M MACs, mean over the clean images")
    fig.update_yaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100])
    return fig


def _cost(reading: Numbers) -> float:
    return reading.cost("cumulative_macs") / 1e6


def _accuracy(reading: Numbers, what: str) -> float:
    return 100 * reading.measured(what).value


# Along knobs, of shares with intervals. Series are named by method, or in words; looks: {series: {"color", "dash"}}.


def curves(shown: Mapping[str, Mapping[str, Mapping[float, Number]]], title: str, caption: str, x: str, y: str,
           looks: Mapping[str, Mapping[str, str]] | None = None, **layout) -> go.Figure:
    """{panel: {series: {x: number}}}: percentages along a knob with their intervals, a panel beside the other."""
    return _marks({panel: {name: [(at, at, n) for at, n in entries.items()] for name, entries in series.items()}
                   for panel, series in shown.items()}, title, caption, x, y, looks, "lines+markers", **layout)


def plane(shown: Mapping[str, Mapping[str, Mapping[str, tuple[Number | float, Number]]]], title: str, caption: str,
          x: str, y: str, looks: Mapping[str, Mapping[str, str]] | None = None, **layout) -> go.Figure:
    """{panel: {series: {mark: (across, up)}}}: two numbers against each other, a panel beside the other."""
    return _marks({panel: {name: [(mark, *two) for mark, two in entries.items()] for name, entries in series.items()}
                   for panel, series in shown.items()}, title, caption, x, y, looks, "markers", **layout)


def _marks(shown, title: str, caption: str, x: str, y: str, looks, mode: str, **layout) -> go.Figure:
    names = list(dict.fromkeys(name for series in shown.values() for name in series))
    tall = len(names) > 5  # too many for a legend above
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=list(shown))
    for column, series in enumerate(shown.values(), start=1):
        for name, marks in series.items():
            place = names.index(name)
            look = dict(color=style.DEFENCES.get(name, style.CYCLE[place % len(style.CYCLE)]), dash="solid")
            look |= (looks or {}).get(name, {})
            first = all(name not in before for before in list(shown.values())[:column - 1])
            across, up = zip(*((a, u) for _, a, u in marks), strict=True)
            called = style.label(name)
            fig.add_scatter(**_errors("x", across, look["color"]), **_errors("y", up, look["color"]), mode=mode,
                            opacity=0.85, name=called, legendgroup=name, showlegend=first and len(names) > 1,
                            text=[str(mark) for mark, *_ in marks], line=look, marker=dict(size=9, color=look["color"]),
                            hovertemplate=f"{called}, %{{text}}: %{{y:.1f}} % (%{{x:.3g}})<extra></extra>", row=1,
                            col=column)
    base = dict(height=440, margin=dict(l=64, r=250 if tall else 20, t=112, b=52))
    panels(fig, title, caption, **base | layout)
    if tall:
        fig.update_layout(legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))
    return fig.update_xaxes(title_text=x).update_yaxes(title_text=y, row=1, col=1)


def _errors(axis: str, numbers: Iterable[Number | float], colour: str) -> dict:
    """Percentages with their intervals as one axis of a trace; plain numbers stay as they are."""
    parts = [np.multiply(100, np.array(n, float)) if isinstance(n, Number) else (n, np.nan, np.nan) for n in numbers]
    value, low, high = np.array(parts, float).T
    return {axis: value.tolist(), f"error_{axis}": dict(type="data", symmetric=False, array=high - value, thickness=1,
                                                        arrayminus=value - low, width=0, color=colour)}


def differences(shown: Mapping[str, Mapping[str, tuple]], title: str, caption: str) -> go.Figure:
    """{series: {what: (difference, low, high)}} in points, a line per difference."""
    fig, names = style.figure(title, caption, height=380), list(next(iter(shown.values())))
    for (series, entries), tint, shift in zip(shown.items(), (style.CLEAN, style.ATTACKED), (-0.12, 0.12), strict=True):
        value, low, high = np.array(list(entries.values()), float).T
        fig.add_scatter(x=value, y=np.arange(len(names)) + shift, mode="markers", name=series, text=names,
                        marker=dict(size=10, color=tint), hovertemplate="%{text}: %{x:+.1f} points<extra></extra>",
                        error_x=dict(type="data", symmetric=False, array=high - value, arrayminus=value - low,
                                     thickness=1.5, width=0, color=tint))
    fig.add_vline(x=0, line=dict(color=style.GHOST, width=1))
    fig.update_xaxes(title_text="difference in accuracy, points")
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", ticks="")
    return fig.update_layout(margin=dict(l=400, r=20, t=96, b=52), title=dict(xref="container", x=0.02))


def heatmap(table: pd.DataFrame, title: str, caption: str, x: str, y: str) -> go.Figure:
    """A table of percentages, rows from above."""
    fig = style.figure(title, caption, height=400, margin=dict(l=120, r=20, t=84, b=52))
    fig.add_heatmap(z=table.values, x=list(table.columns), y=list(table.index), texttemplate="%{z:.1f}", xgap=2, ygap=2,
                    colorscale=[[0, style.PAPER], [1, style.CLEAN]], showscale=False, zmin=0,
                    zmax=max(1.0, float(np.nanmax(table.values)) * 1.4),
                    hovertemplate=f"{y} %{{y}}, {x} %{{x}}: %{{z:.1f}} %<extra></extra>")
    fig.update_xaxes(title_text=x, showgrid=False, ticks="", type="category")
    return fig.update_yaxes(title_text=y, showgrid=False, ticks="", autorange="reversed", type="category")


def boxes(table: pd.DataFrame, values: Sequence[str], across: str, series: str, title: str, caption: str) -> go.Figure:
    """How columns of a table are distributed, a panel each, a dot a line; across, series: columns of names."""
    fig = make_subplots(1, len(values), horizontal_spacing=0.08, subplot_titles=list(values))
    for column, which in enumerate(values, start=1):
        for place, (name, lines) in enumerate(table.groupby(series, sort=False)):
            fig.add_box(x=lines[across], y=lines[which], name=name, boxpoints="all", jitter=0.4, pointpos=0,
                        line_width=1, marker=dict(color=style.CYCLE[place], size=4, opacity=0.6), legendgroup=name,
                        offsetgroup=name, showlegend=column == 1, row=1, col=column,
                        hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>")
    return panels(fig, title, caption, height=400, boxmode="group")


def panels(fig: go.Figure, title: str, caption: str, **layout) -> go.Figure:
    """Several panels side by side in the house style."""
    base = dict(template=style.TEMPLATE, width=960, margin=dict(l=48, r=20, t=104, b=52))
    fig.update_layout(**base | layout, title_text=style.heading(title, caption))
    fig.update_layout(legend=dict(y=1.12), title_y=style.title_y(fig.layout.height))
    return fig.update_annotations(font=dict(size=12, color=style.INK))
