"""What thresholds buy: every network's accuracy along all that its exits can cost."""

from collections.abc import Mapping

import plotly.graph_objects as go

from lib.workbook import exit_panels, style
from lib.workbook.studies import Reading, spoken
from lib.workbook.study_figures import colour


def trade_offs(readings: Mapping[str, Reading], caption: str, title: str = "What leaving early buys, %") -> go.Figure:
    """TA (dotted) and the per-image worst case (solid) against true cost; marks where the readings stand.

    The lines go from "nobody leaves early" to "all leave at exit 1", by thresholds chosen on held-out images."""
    fig = style.figure(title, f"{caption}<br>dotted: clean images; solid: per-image worst case", height=470,
                       margin=dict(l=64, r=20, t=112, b=52))
    for place, (label, reading) in enumerate(readings.items()):
        tint, curve = colour(label, place), exit_panels.trade_off(reading.record)
        for which, (dash, told) in {0: ("dot", "clean"), 2: ("solid", "per-image worst case")}.items():
            line = [(_cost(found), exit_panels.trio(found)[which]) for found in curve]
            fig.add_scatter(x=[x for x, _ in line], y=[y for _, y in line], mode="lines", name=spoken(label),
                            line=dict(color=tint, dash=dash, width=2), showlegend=which == 2,
                            hovertemplate=f"{spoken(label)}, {told}: %{{y:.1f}} % at %{{x:.2f}} M<extra></extra>")
        stands = exit_panels.trio(reading.summary)[::2]
        fig.add_scatter(x=[_cost(reading.summary)] * 2, y=stands, mode="markers", showlegend=False,
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


def _cost(found: dict) -> float:
    return found["forms"]["clean"]["cumulative_macs"] / 1e6
