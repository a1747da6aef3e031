"""What thresholds buy: every network's accuracy along all that its exits can cost."""

from collections.abc import Mapping

import plotly.graph_objects as go

from lib.evaluation.between import trade_off
from lib.evaluation.reading import Reading as Numbers
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
