"""Figures of a study of operating points: accuracy against λ_n, the clean-robust plane, crafted at x evaluated at."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.data import Dataset
from lib.evaluation import points
from lib.evaluation.stats import interval, paired_difference
from lib.workbook import lambda_study, networks, style
from lib.workbook.lambda_study import Member
from lib.workbook.subject import Subject

COLOURS = {"float": "#0072b2", "dual_bn": "#7d8894", "oat": "#e69f00", "pgd_at": "#009e73", "pni": "#cc79a7",
           "mixed": "#56b4e9",
           "float_slim": "#0072b2", "float_narrow": "#009e73", "dual_bn_slim": "#7d8894", "oats": "#e69f00",
           "float_slim_heads": "#56b4e9", "oats_heads": "#cc79a7"}


def colour(member: Member) -> str:
    return COLOURS[member.family]


def families(found: Mapping[str, Member]) -> dict[str, list[Member]]:
    """{family: its networks}, in order."""
    names = dict.fromkeys(member.family for member in found.values())
    return {name: [member for member in found.values() if member.family == name] for name in names}


def label(name: str) -> str:
    return {"pgd_at": "PGD-AT", "mixed": "two networks mixed"}.get(name) or lambda_study.SPOKEN[name]


def subjects(found: Mapping[str, Member], images: Dataset | None) -> dict[str, Subject | dict[float, Subject]]:
    """What the explorer shows: a subject per method; of those with a network per lambda, one for each."""
    shown = {}
    for name, members in families(found).items():
        each = {m.weight: networks.subject(m.trained, m.record, images) for m in members}
        shown[label(name)] = each.get(None) or each
    return shown


def bars(shares: list[np.ndarray]) -> tuple[list[float], dict]:
    """Percentages, and their 95 % intervals as Plotly's asymmetric error bars."""
    value, low, high = 100 * np.array([interval(share) for share in shares]).T
    return value.tolist(), dict(type="data", symmetric=False, array=high - value, arrayminus=value - low, thickness=1,
                                width=0)


def dress(fig: go.Figure, title: str, caption: str, **layout) -> go.Figure:
    base = dict(template=style.TEMPLATE, width=960, height=440, margin=dict(l=56, r=20, t=112, b=52))
    fig.update_layout(**base | layout, title_text=style.heading(title, caption))
    inner = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    fig.update_layout(legend_y=1 + 22 / inner, title_y=style.title_y(fig.layout.height))  # between heading and panels
    for note in fig.layout.annotations:
        note.update(font=dict(size=12, color=style.INK))
    return fig


def trade_off(found: Mapping[str, Member], caption: str, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> go.Figure:
    """Figs. 6, 7 and 13: FLOAT's accuracies against λ_n for every λ_th; all methods in the clean-robust plane."""
    fig = make_subplots(1, 2, horizontal_spacing=0.09, column_widths=[0.46, 0.54], subplot_titles=[
        f"FLOAT against λ_n: {style.tinted('clean', style.CLEAN)}, {style.tinted('attacked', style.ATTACKED)}",
        "every method: up and right is better"])
    for switch, dash in zip(switches, ("solid", "dot", "dash"), strict=False):
        for what, tint in (("clean", style.CLEAN), ("union", style.ATTACKED)):
            value, error = bars([found["float"].read(n, switch).right(what) for n in lambdas])
            fig.add_scatter(x=list(lambdas), y=value, error_y=error | {"color": tint}, mode="lines+markers",
                            line=dict(color=tint, dash=dash), marker_size=7, showlegend=what == "clean",
                            name=f"λ_th {switch:g}", hovertemplate=f"λ_n %{{x}}, λ_th {switch:g}: %{{y:.1f}} %",
                            row=1, col=1)
    for name, members in families(found).items():
        where = [(m, p) for m in members for p in points.published(m.network, lambdas, switches)]
        x, x_error = bars([m.read(p).right("union") for m, p in where])
        y, y_error = bars([m.read(p).right("clean") for m, p in where])
        tint = dict(color=COLOURS[name])
        said = [m.label if m.weight is not None else points.name(p) for m, p in where]
        fig.add_scatter(x=x, y=y, error_x=x_error | tint, error_y=y_error | tint, mode="markers", opacity=0.85,
                        marker=dict(size=10, **tint), name=label(name), text=said, legendgroup=name,
                        hovertemplate="%{text}: clean %{y:.1f}, robust %{x:.1f} %", row=1, col=2)
    fig.update_xaxes(title_text="λ_n", tickvals=list(lambdas), row=1, col=1)
    fig.update_xaxes(title_text="robust accuracy, %: worst of three attacks per image", row=1, col=2)
    fig.update_yaxes(title_text="accuracy, %", range=[-2, 102], row=1, col=1)
    fig.update_yaxes(title_text="clean accuracy, %", row=1, col=2)
    return dress(fig, "Clean and robust accuracy along the knob", caption, height=470)


def crossing(member: Member, caption: str, lambdas=points.LAMBDAS, switches=points.SWITCHES) -> go.Figure:
    """Robust accuracy, crafted at (rows) x evaluated at (columns)."""
    table = lambda_study.crossing(member, lambdas, switches)
    fig = go.Figure(go.Heatmap(z=table.values, x=list(table.columns), y=list(table.index), texttemplate="%{z:.1f}",
                               colorscale=[[0, "#ffffff"], [1, style.CLEAN]], showscale=False, zmin=0,
                               zmax=max(1.0, float(np.nanmax(table.values)) * 1.4), xgap=2, ygap=2,
                               hovertemplate="crafted at %{y}, evaluated at %{x}: %{z:.1f} %<extra></extra>"))
    fig.update_xaxes(title_text="evaluated at", showgrid=False, ticks="", type="category")
    fig.update_yaxes(title_text="crafted at", showgrid=False, ticks="", autorange="reversed", type="category")
    return dress(fig, f"{member.label}: robust accuracy, %, by where the attacker stood", caption, height=400,
                 margin=dict(l=120, r=20, t=84, b=52))


def parts(found: Mapping[str, Member], caption: str) -> go.Figure:
    """What each part of FLOAT adds, in points: paired differences with their intervals."""
    lines = lambda_study.contributions(found)
    names, fig = list(dict.fromkeys(line[0] for line in lines)), go.Figure()
    for quantity, name, tint, shift in (("clean", "clean", style.CLEAN, -0.12),
                                        ("union", "robust", style.ATTACKED, 0.12)):
        gained = [paired_difference(*(reading.right(quantity) for reading in pair))
                  for _, which, *pair in lines if which == quantity]
        value, low, high = (100 * np.array([gain[part] for gain in gained]) for part in ("difference", "low", "high"))
        fig.add_scatter(x=value, y=np.arange(len(names)) + shift, mode="markers", name=name, text=names,
                        marker=dict(size=10, color=tint), hovertemplate="%{text}: %{x:+.1f} points<extra></extra>",
                        error_x=dict(type="data", symmetric=False, array=high - value, arrayminus=value - low,
                                     thickness=1.5, width=0, color=tint))
    fig.add_vline(x=0, line=dict(color=style.GHOST, width=1))
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", ticks="")
    fig.update_xaxes(title_text="difference in accuracy, points")
    dress(fig, "What the noise adds, and what the batch norms do", caption, height=380,
          margin=dict(l=400, r=20, t=96, b=52))
    return fig.update_layout(title=dict(xref="container", x=0.02))
