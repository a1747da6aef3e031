"""Figures: numbers with intervals as dots, bars, curves and planes; who leaves where; accuracy against cost."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn

from lib.evaluation.between import threshold_curve
from lib.evaluation.reading import Reading
from lib.evaluation.stats import Number
from lib.models.cost import cost
from lib.models.layers import BatchNorm2d, Chain, Conv2d, FiLM
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import style, tables

OTHERS = ("#0072b2", "#d55e00", "#b8860b", "#56b4e9", "#6b7785")
SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up")
PERCENT = dict(range=[-2, 102], tickvals=[0, 25, 50, 75, 100])
AXES = {"paper_mflops": "MFlops as the paper counts", "cumulative_macs": "true cost, M MACs"}
Series = Mapping[str, Mapping[str, Sequence[float | None]]]  # {name: {group: (value, low, high)}}


def colour(label: str, place: int, others: Sequence[str] = OTHERS) -> str:
    """A network's own colour, by its key or as it is spoken, else the one of its place."""
    own = {style.label(key): tint for key, tint in style.DEFENCES.items()}
    return own.get(style.label(label), others[place % len(others)])


def _bar(numbers: Iterable[Sequence[float | None]], **look) -> tuple[np.ndarray, dict]:
    """Values and their error bars; None, where there is no interval, becomes NaN: no bar."""
    value, low, high = np.array(list(numbers), float).T
    return value, dict(type="data", symmetric=False, array=high - value, arrayminus=value - low, thickness=1,
                       width=0) | look


def dots(series: Series, title: str, caption: str) -> go.Figure:
    """{network: {column: (value, low, high)}} in percent, as dots with intervals, side by side in each column."""
    fig = style.figure(title, caption, scattermode="group", scattergap=0.5)
    for place, (label, entries) in enumerate(series.items()):
        tint, name = colour(label, place), style.label(label)
        value, error = _bar(entries.values(), color=tint)
        fig.add_scatter(x=list(entries), y=value, mode="markers", name=name, marker=dict(size=9, color=tint),
                        error_y=error, hovertemplate=f"{name}, %{{x}}: %{{y:.1f}} %<extra></extra>")
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    return fig.update_yaxes(PERCENT)


def bars(series: Series, title: str, caption: str, axis: str, span: tuple[float, float] | None = None) -> go.Figure:
    """{series: {group: (value, low, high)}} as grouped bars; low and high are None where there is no interval.

    span: what the axis shows; None = all of it.
    """
    fig = style.figure(title, caption, barmode="group")
    for place, (name, entries) in enumerate(series.items()):
        value, error = _bar(entries.values(), width=3, color=style.MUTED)
        fig.add_bar(x=list(entries), y=value, name=name, marker_color=colour(name, place, style.CYCLE),
                    error_y=error, hovertemplate=f"{name}, %{{x}}: %{{y:.3g}}<extra></extra>")
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    return fig.update_yaxes(title_text=axis, zeroline=True, zerolinecolor=style.GHOST, range=span)


def steps(rows: Sequence[Mapping], title: str, caption: str) -> go.Figure:
    """Training steps, rows of `timing.side_by_side`: measured, and by counted passes, in the first one's."""
    series = {"measured (median, quartiles)": "step_ratio", "by counted passes": "step_ratio_predicted"}
    return bars({name: {row["defence"].replace(", ", ",<br>"): [row.get(part) for part in ("value", "low", "high")]
                        for row in rows if row["metric"] == metric} for name, metric in series.items()},
                title, caption, "times the first")


def forms(readings: Mapping[str, Reading], caption: str) -> go.Figure:
    """A dot per network and view with its interval; the last column holds the images right under all of them."""
    series = {label: {style.spoken(view): tables.measured(reading, view) for view in reading.names}
              | {"per image": tables.measured(reading, "union")} for label, reading in readings.items()}
    return dots(series, "Accuracy under each form of the attack, %", caption)


def exits(readings: Mapping[str, Reading], caption: str) -> go.Figure:
    """Fig. 2: the share of images that leaves at each exit, clean and under the paper's worst form, one panel each."""
    shown = {label: r for label, r in readings.items() if r.record.num_exits > 1}
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.03,
                        subplot_titles=[style.label(label) for label in shown])
    for column, reading in enumerate(shown.values(), start=1):
        names = [str(k) for k in range(1, reading.record.num_exits)] + ["main"]
        worst = reading.paper_worst or reading.worst_form
        for view, name, tint in (("clean", "clean", style.CLEAN), (worst, "worst form", style.ATTACKED)):
            fig.add_bar(x=names, y=100 * reading.share(view), name=name, marker_color=tint, showlegend=column == 1,
                        legendgroup=name, row=1, col=column,
                        hovertemplate=f"{style.spoken(view)}, exit %{{x}}: %{{y:.1f}} %<extra></extra>")
        fig.update_xaxes(title_text="exit", ticks="", showgrid=False, type="category", row=1, col=column)
    panels(fig, "Who leaves where, % of the images", caption, height=360, barmode="group")
    return fig.update_yaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100])


def against_cost(readings: Mapping[str, Reading], caption: str, swept: Iterable[str] = (),
                 costs: Mapping[str, float] | None = None, unit: str = "paper_mflops", robust: str = "paper_worst",
                 title: str = "Accuracy against cost, %") -> go.Figure:
    """TA (open) and a worst case (filled) of each network at its mean cost on clean images.

    swept: the networks whose thresholds are moved along their held-out trade-offs, from "nobody leaves early" to "all
    leave at exit 1"; lines pass through what they can do, and beside true costs stands the plain network's.
    costs: {label: cost} where the record does not know it (sparse weights).  unit: paper_mflops | cumulative_macs.
    robust: paper_worst | union.
    """
    worst, some = {"paper_worst": "the paper's", "union": "per-image"}[robust] + " worst case", bool(swept)
    fig = style.figure(title, f"{caption}<br>{'dotted, ' * some}open: clean images; {'solid, ' * some}filled: {worst}",
                       height=440, margin=dict(l=64, r=170, t=96, b=52),
                       legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))
    for place, (label, reading) in enumerate(readings.items()):
        tint, name = colour(label, place), style.label(label)
        curve = threshold_curve(reading.record) if label in swept else ()
        at = (costs or {}).get(label, tables.measured(reading, unit).value)
        for quantity, symbol, dash in (("clean", "circle-open", "dot"), (robust, "circle", "solid")):
            if curve:
                fig.add_scatter(x=[tables.measured(r, unit).value for r in curve],
                                y=[_accuracy(r, quantity) for r in curve], mode="lines", showlegend=False,
                                hoverinfo="skip", line=dict(color=tint, width=1.5, dash=dash))
            fig.add_scatter(x=[at], y=[_accuracy(reading, quantity)], mode="markers", name=name,
                            showlegend=quantity == robust,
                            marker=dict(symbol=symbol, size=11, color=tint, line=dict(width=2)),
                            hovertemplate=f"{name}: %{{y:.1f}} % at %{{x:.3g}}<extra></extra>")
    if some and unit == "cumulative_macs":
        plain = next(iter(readings.values())).plain("trunk") / 1e6
        fig.add_vline(x=plain, line=dict(color=style.GHOST, width=1, dash="dash"), annotation_text="plain network",
                      annotation_position="right", annotation_font=dict(size=11, color=style.MUTED))
    fig.update_xaxes(rangemode="tozero", title_text=f"{AXES[unit]}, mean over the clean images")
    return fig.update_yaxes(PERCENT)


def _accuracy(reading: Reading, quantity: str) -> float:
    """In percent; of records without all of the paper's forms the worst one there is."""
    found = tables.measured(reading, quantity) or tables.measured(reading, reading.worst_form)
    return found.value


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
    tints = {name: style.DEFENCES.get(name, style.CYCLE[i % len(style.CYCLE)]) for i, name in enumerate(names)}
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=list(shown))
    for column, series in enumerate(shown.values(), start=1):
        for name, marks in series.items():
            look = dict(color=tints[name], dash="solid") | (looks or {}).get(name, {})
            before = list(tints.values())[:names.index(name)]  # of many names some share a colour
            symbol = SYMBOLS[before.count(tints[name]) % len(SYMBOLS) if tall else 0]
            first = all(name not in earlier for earlier in list(shown.values())[:column - 1])
            across, up = zip(*((a, u) for _, a, u in marks), strict=True)
            called = style.label(name)
            fig.add_scatter(**_errors("x", across, look["color"]), **_errors("y", up, look["color"]), mode=mode,
                            opacity=0.85, name=called, legendgroup=name, showlegend=first and len(names) > 1,
                            text=[str(mark) for mark, *_ in marks], line=look,
                            marker=dict(size=9, color=look["color"], symbol=symbol),
                            hovertemplate=f"{called}, %{{text}}: %{{y:.1f}} % (%{{x:.3g}})<extra></extra>", row=1,
                            col=column)
    base = dict(height=440, margin=dict(l=64, r=250 if tall else 20, t=112, b=52))
    panels(fig, title, caption, **base | layout)
    if tall:
        fig.update_layout(legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))
    return fig.update_xaxes(title_text=x).update_yaxes(title_text=y, row=1, col=1)


def _errors(axis: str, numbers: Iterable[Number | float], colour: str) -> dict:
    """Percentages with their intervals as one axis of a trace; plain numbers stay as they are."""
    value, error = _bar([np.multiply(100, np.array(n, float)) if isinstance(n, Number) else (n, None, None)
                         for n in numbers], color=colour)
    return {axis: value.tolist(), f"error_{axis}": error}


def differences(shown: Mapping[str, Mapping[str, tuple]], title: str, caption: str) -> go.Figure:
    """{series: {what: (difference, low, high)}} in points, a line per difference."""
    fig, names = style.figure(title, caption, height=380), list(next(iter(shown.values())))
    for (series, entries), tint, shift in zip(shown.items(), (style.CLEAN, style.ATTACKED), (-0.12, 0.12), strict=True):
        value, error = _bar(entries.values(), thickness=1.5, color=tint)
        fig.add_scatter(x=value, y=np.arange(len(names)) + shift, mode="markers", name=series, text=names,
                        marker=dict(size=10, color=tint), hovertemplate="%{text}: %{x:+.1f} points<extra></extra>",
                        error_x=error)
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


def built(network: Network, title: str, caption: str) -> go.Figure:
    """A network as it is built: a bar per stage, as high as its feature maps, its channels in it; above, the exits that
    tap the stages: each head's convolutions, and what leaving there costs, all heads on the way."""
    x, maps, at = torch.zeros(1, *network.input_shape), [], network.eval().conditions(None)
    with torch.no_grad():
        for stage in network.stages:
            maps.append((x := stage(x, at)).shape[1:])
    sizes, last = [height for _, height, _ in maps], network.num_exits
    alone = cost(network, OperatingPoint(exits=(last,)) if last > 1 else None).macs
    fig = style.figure(title, f"{caption}<br>in bars: channels; %: MACs, all heads on the way, of the plain network's",
                       height=400, margin=dict(l=20, r=20, t=84, b=20), xaxis_visible=False)
    fig.add_bar(x=list(range(len(maps))), y=sizes, text=[str(channels) for channels, *_ in maps], textangle=0,
                marker_color=[style.CYCLE[sorted({*sizes}, reverse=True).index(size) % 7] for size in sizes],
                textposition="inside", hovertemplate="stage %{x}: %{text} channels of %{y} x %{y}<extra></extra>")
    for k, (tap, head, leave) in enumerate(zip(network.taps, network.heads, cost(network).exits, strict=True)):
        inside = ["{2}×{3} to {0}".format(*m.weight.shape) for m in head.modules() if isinstance(m, Conv2d)]
        told = (f"<b>{style.exit_names(last)[k]}</b>", *inside, f"{100 * leave.cumulative_macs / alone:.0f} %")
        place = dict(x=tap, y=sizes[tap], ax=k * (len(maps) - 1) / max(1, last - 1), ay=1.3 * max(sizes))
        fig.add_annotation(text="<br>".join(told), **place, axref="x", ayref="y", yanchor="bottom", font_size=11)
    return fig.update_yaxes(visible=False, range=[0, 2.2 * max(sizes)])


def conditioned(networks: Mapping[str, Network], title: str, caption: str) -> go.Figure:
    """{row: network}: its first block as it is built, a box per layer, with what conditions weights and features."""
    fig = style.figure(title, caption, height=100 + 130 * len(networks), margin=dict(l=150, r=20, t=84, b=20),
                       xaxis=dict(visible=False, range=[-0.5, 7.5]))
    for row, network in enumerate(networks.values()):
        block = next(m for m in network.modules() if isinstance(m, Chain) and sum(isinstance(c, Conv2d) for c in m) > 1)
        boxes = [part for layer in block for part in (layer, getattr(layer, "film", None)) if part is not None]
        for place, layer in enumerate(boxes):  # each with an arrow to the next
            on = place + 1 < len(boxes)
            fig.add_annotation(x=place + 0.57 * on, y=row, text=_inside(layer, network), showarrow=on, ax=place, ay=row,
                               axref="x", ayref="y", font_size=11, width=84, height=84, bgcolor=style.RULE,
                               arrowcolor=style.MUTED, arrowhead=2)
    rows = dict(tickvals=list(range(len(networks))), ticktext=list(networks), range=[len(networks) - 0.5, -0.5])
    return fig.update_yaxes(ticks="", showgrid=False, **rows)


def _inside(layer: nn.Module, network: Network) -> str:
    """What a layer is, as far as knobs turn it."""
    if isinstance(layer, Conv2d):
        out, into, size, _ = layer.weight.shape
        noise = "" if layer.alpha is None else "<br>weight + s·α·η"
        return f"<b>conv {size}×{size}</b>{noise}" + "".join(f"<br>{into * w:g} to {out * w:g}" for w in network.widths)
    if isinstance(layer, BatchNorm2d):
        banks = "<b>BN_C | BN_A</b>" if layer.banks == 2 else "<b>BN</b>"
        return banks if len(network.widths) == 1 else "<br>".join(f"{banks}<br>width {w:g}" for w in network.widths)
    film = [*layer.first.weight.shape, *layer.second.weight.shape] if isinstance(layer, FiLM) else ()
    return type(layer).__name__ + ("<br>fc {1} to {0}<br>fc {3} to {2}".format(*film) if film else "")
