"""The λ explorer's figure: the clean-robust plane, accuracies along λ_n, and images answered at two points."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib import WorkbookError
from lib.evaluation import points
from lib.evaluation.reading import read
from lib.workbook import lambda_figures, style
from lib.workbook.strip import as_pixels, png_uri

ALONG, GAP, ROWS = np.linspace(0, 1, 41), 4, ("pinned, clean", "pinned, attacked", "here, clean", "here, attacked")


def build(explorer) -> go.Figure:
    """Everything that does not move: one trace of recorded points per method, and empty traces for what does."""
    clean, attacked = style.tinted("clean", style.CLEAN), style.tinted("attacked", style.ATTACKED)
    fig = make_subplots(2, 2, specs=[[{}, {}], [{"colspan": 2}, None]], row_heights=[0.66, 0.34],
                        vertical_spacing=0.13, horizontal_spacing=0.08, column_widths=[0.56, 0.44],
                        subplot_titles=["recorded points, ◆ here, ◇ pinned", f"along λ_n: {clean}, {attacked}", ""])
    for name, members in explorer.families.items():
        where = [(m, p) for m in members for p in m.record.points]
        fig.add_scatter(x=[100 * read(m.record, p).right("union").mean() for m, p in where],
                        y=[100 * read(m.record, p).right("clean").mean() for m, p in where], mode="markers",
                        marker=dict(size=7, color=lambda_figures.COLOURS[name], opacity=0.45),
                        name=lambda_figures.label(name),
                        text=[m.label if m.weight is not None else points.name(p) for m, p in where],
                        hovertemplate="%{text}: clean %{y:.1f}, robust %{x:.1f} %", row=1, col=1)
    for name, symbol in (("pinned", "diamond-open"), ("here", "diamond")):
        fig.add_scatter(x=[0], y=[0], mode="markers", name=name, showlegend=False,
                        marker=dict(size=15, symbol=symbol, color=style.INK, line=dict(width=2)),
                        error_x=dict(type="data", symmetric=False, array=[0], arrayminus=[0], thickness=1, width=0),
                        error_y=dict(type="data", symmetric=False, array=[0], arrayminus=[0], thickness=1, width=0),
                        hovertemplate=f"{name}: clean %{{y:.1f}}, robust %{{x:.1f}} %<extra></extra>", row=1, col=1)
    for name, tint in (("clean along", style.CLEAN), ("attacked along", style.ATTACKED)):
        fig.add_scatter(x=ALONG, y=ALONG * 0, mode="lines", line=dict(color=tint, shape="linear"), name=name,
                        showlegend=False, hovertemplate="λ_n %{x:.2f}: %{y:.1f} %<extra></extra>", row=1, col=2)
    fig.add_scatter(x=[0, 0], y=[0, 100], mode="lines", line=dict(color=style.GHOST, dash="dot"), name="knob",
                    showlegend=False, hoverinfo="skip", row=1, col=2)
    fig.add_scatter(x=[], y=[], mode="text", name="answers", showlegend=False, hoverinfo="skip", row=2, col=1)
    pictures(fig, explorer)
    fig.update_xaxes(title_text="robust accuracy, %", range=[-3, 103], row=1, col=1)
    fig.update_yaxes(title_text="clean accuracy, %", range=[-3, 103], row=1, col=1)
    fig.update_xaxes(title_text="λ_n", range=[-0.03, 1.03], row=1, col=2)
    fig.update_yaxes(range=[-3, 103], row=1, col=2)
    return lambda_figures.dress(fig, "One network, many operating points", explorer.caption, height=640,
                                margin=dict(l=110, r=20, t=104, b=10))


def sample(explorer) -> np.ndarray:
    """Which of the recorded images are shown: evenly spread."""
    from lib.workbook.lambda_explorer import PICTURES

    count = min(explorer.member.record.images, explorer.most)
    return np.unique(np.linspace(0, count - 1, PICTURES).round().astype(int))


def pictures(fig: go.Figure, explorer) -> None:
    """The sampled images in a row; where the dataset is not at hand their labels stand alone."""
    chosen = sample(explorer)
    labels = explorer.member.record.labels[chosen]
    fig.update_xaxes(range=[0, len(chosen)], showgrid=False, ticks="", tickvals=np.arange(len(chosen)) + 0.5,
                     ticktext=[str(v) for v in labels], side="top", showticklabels=True, title_text="", row=2, col=1)
    fig.update_yaxes(range=[-len(ROWS), 3.4], showgrid=False, ticks="", row=2, col=1, linecolor=style.PAPER,
                     tickvals=[-r - 0.5 for r in range(len(ROWS))] + [1.7], ticktext=[*ROWS, "image"])
    if explorer.images is None:
        return
    first = explorer.member.record.meta["images"][0]
    pixels = as_pixels(explorer.images.test.images[first + chosen].cpu())
    padded = np.pad(pixels, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    strip = np.concatenate(list(padded), axis=1)
    fig.add_layout_image(source=png_uri(strip, 2 if strip.shape[0] < 30 else 1), xref="x3", yref="y3", x=0, y=3.3,
                         sizex=len(chosen), sizey=3.2, xanchor="left", yanchor="top", sizing="stretch", layer="below")


def update(fig: go.Figure, explorer) -> None:
    """Move what moves."""
    traces = {trace.name: trace for trace in fig.data}
    here, pinned = explorer.spot(), explorer.spot(*explorer.pinned)
    for name, spot in (("here", here), ("pinned", pinned)):
        for axis, found in (("x", spot.robust), ("y", spot.clean)):
            traces[name][axis] = [100 * found["value"]]
            traces[name][f"error_{axis}"].update(array=[100 * (found["high"] - found["value"])],
                                                 arrayminus=[100 * (found["value"] - found["low"])])
    clean, robust = along(explorer)
    traces["clean along"].y, traces["attacked along"].y = clean, robust
    traces["knob"].x = [explorer.lambda_n] * 2
    chosen = sample(explorer)
    labels = explorer.member.record.labels[chosen]
    said = np.concatenate([pinned.said[:, chosen], here.said[:, chosen]])
    grid = [(c + 0.5, -r - 0.5) for r in range(len(ROWS)) for c in range(len(chosen))]
    traces["answers"].update(
        x=[x for x, _ in grid], y=[y for _, y in grid], text=[str(v) for v in said.flatten()],
        textfont=dict(size=13, color=[style.INK if right else style.ATTACKED for right in (said == labels).flatten()]))


def along(explorer) -> tuple[list, list]:
    """Accuracies in percent along λ_n at the present λ_th and width; None where the record has no nodes."""
    clean, robust = [], []
    for n in ALONG:
        try:
            member = min(explorer.families[explorer.family], key=lambda m, n=n: abs((m.weight or 0.0) - n))
            spot = explorer.spot(member, member.point(float(n), explorer.lambda_th, explorer._width()))
            clean, robust = [*clean, 100 * spot.clean["value"]], [*robust, 100 * spot.robust["value"]]
        except WorkbookError:
            clean, robust = [*clean, None], [*robust, None]
    return clean, robust
