"""The figure of the exit-threshold explorer: built once, then only its numbers move."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.evaluation import routing
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.workbook import style, tables
from lib.workbook.strip import Strip

WORST, UNION = "paper's worst case", "per-image worst case"
PASSING = np.linspace(0, 1, 13) ** 2  # shares of the images at an exit that leave there, along the trade-off curve
TOP, GAP, ROW, PANEL = 96, 76, 46, 276  # heights in pixels: head, between the rows, one strip row, the upper panels


def rows_of(reading: Reading) -> list[str]:
    """What the accuracy panel lists, top to bottom: every view, then the two worst cases."""
    return [*(style.plain(style.spoken(name)) for name in reading.names), WORST, UNION]


def accuracies(found: dict) -> list[tuple[float, float, float]]:
    """(value, low, high) in percent for each of `rows_of`; without the paper's K + 3 forms its row holds NaN."""
    worst = found["forms"].get(found["paper_worst"])
    entries = [(f["accuracy"], f["low"], f["high"]) for f in found["forms"].values()]
    entries.append((worst["accuracy"], worst["low"], worst["high"]) if worst else (np.nan,) * 3)
    entries.append((found["union_accuracy"], found["union_low"], found["union_high"]))
    return [tuple(100 * v for v in entry) for entry in entries]


def trade_off(record: Record) -> list[dict]:
    """Summaries from "nobody leaves early" to "all leave at exit 1": the same share of those who arrive leaves at every
    exit, by thresholds chosen on the held-out images. [] where the record has none."""
    if record.held_out is None or record.num_exits == 1:
        return []
    early, entropy = np.arange(record.num_exits - 1), record.held().entropy
    passing = (routing.calibrate(entropy, list(q * (1 - q) ** early)) for q in PASSING)
    return [tables.summary(read(record, thresholds=thresholds)) for thresholds in passing]


def build(reading: Reading, curve: list[dict], title: str, subtitle: str, columns: int) -> go.Figure:
    """The figure with everything that does not move: axes, the reference (`reading`), the trade-off `curve`."""
    record = reading.record
    names, exits = rows_of(reading), style.exit_names(record.num_exits)
    strip = ROW * record.num_exits
    inner = PANEL + GAP + strip
    blue, red, dark = style.CLEAN, style.ATTACKED, style.UNION
    heads = ["accuracy, %", f"who leaves where, % — {style.tinted('clean', blue)}, {style.tinted('attacked', red)}",
             f"{style.tinted('TA', blue)}, {style.tinted('ATA (worst form)', red)}, "
             f"{style.tinted('per image', dark)}, % — against cost", "pictures"]
    fig = make_subplots(2, 3, specs=[[{}, {}, {}], [{"colspan": 3}, None, None]], horizontal_spacing=0.075,
                        vertical_spacing=GAP / inner, column_widths=[0.32, 0.27, 0.41],
                        row_heights=[PANEL, strip], subplot_titles=heads)
    fig.update_layout(template=style.TEMPLATE, width=1000, height=inner + TOP + 12, barmode="group", showlegend=False,
                      margin=dict(l=136, r=16, t=TOP, b=12), title_text=style.heading(title, subtitle),
                      title_y=style.title_y(inner + TOP + 12))
    for note, x in zip(fig.layout.annotations, (0.0, 0.346, 0.65, 0.0), strict=True):
        note.update(font=dict(size=12, color=style.INK), x=x, xanchor="left")
    _accuracy_panel(fig, names, tables.summary(reading))
    _exits_panel(fig, exits)
    _trade_off_panel(fig, reading, curve)
    _strip_panel(fig, exits, columns)
    return fig


def _accuracy_panel(fig: go.Figure, names: list[str], ghost: dict):
    fig.add_scatter(x=[v for v, _, _ in accuracies(ghost)], y=names, mode="markers", name="reference", row=1, col=1,
                    marker=dict(symbol="line-ns", size=13, line=dict(color=style.GHOST, width=2)),
                    hovertemplate="%{y}: %{x:.1f} % (reference)<extra></extra>")
    fig.add_scatter(y=names, mode="markers", name="now", row=1, col=1, marker=dict(size=9, opacity=1),
                    error_x=dict(type="data", symmetric=False, thickness=1.4, width=0, color=style.MUTED),
                    hovertemplate="%{y}: %{x:.1f} %<extra></extra>")
    fig.update_xaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100], row=1, col=1)
    fig.update_yaxes(range=[len(names) - 0.4, -0.6], row=1, col=1, ticks="", showgrid=True)


def _exits_panel(fig: go.Figure, exits: list[str]):
    for name, colour in (("clean", style.CLEAN), ("attacked", style.ATTACKED)):
        fig.add_bar(x=exits, name=name, marker_color=colour, row=1, col=2, textposition="outside", cliponaxis=False,
                    textfont=dict(size=10, color=style.MUTED),
                    hovertemplate="%{x}: %{y:.1f} % of the images<extra></extra>")
    fig.update_yaxes(range=[0, 108], tickvals=[0, 25, 50, 75, 100], row=1, col=2)
    fig.update_xaxes(range=[-0.6, len(exits) - 0.4], ticks="", showgrid=False, row=1, col=2)


def _trade_off_panel(fig: go.Figure, reading: Reading, curve: list[dict]):
    cost = [f["forms"][reading.names[0]]["cumulative_macs"] / 1e6 for f in curve]
    points = np.array([trio(f) for f in curve]).reshape(-1, 3).T
    colours = [style.CLEAN, style.ATTACKED, style.UNION]
    for label, colour, y in zip(("TA", "worst", "per image"), colours, points, strict=True):
        fig.add_scatter(x=cost, y=y, mode="lines", name=f"curve {label}", line=dict(color=colour, width=1.6),
                        opacity=0.45, row=1, col=3, hovertemplate="%{y:.1f} % at %{x:.2f} M MACs<extra></extra>")
    fig.add_scatter(mode="markers", name="point", row=1, col=3,
                    marker=dict(size=12, opacity=1, color=colours, line=dict(color="white", width=2)),
                    hovertemplate="%{y:.1f} % at %{x:.2f} M MACs<extra></extra>")
    costs = reading.record.exit_costs()
    plain, top = reading.plain("trunk") / 1e6, costs.cumulative((0,) * (len(costs.heads) - 1))[-1] / 1e6
    fig.add_scatter(x=[plain, plain], y=[-2, 102], mode="lines", name="plain network", row=1, col=3, hoverinfo="skip",
                    line=dict(color=style.GHOST, width=1, dash="dot"))
    fig.update_xaxes(range=[0, 1.06 * max(plain, top)], row=1, col=3,
                     title_text="true cost of a clean image, M MACs (dotted: plain network)")
    fig.update_yaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100], row=1, col=3)


def _strip_panel(fig: go.Figure, exits: list[str], columns: int):
    fig.add_scatter(mode="markers+text", name="pictures", row=2, col=1, textfont=dict(size=14),
                    marker=dict(size=30, opacity=0, symbol="square"), hovertemplate="%{hovertext}<extra></extra>")
    axes = dict(showgrid=False, ticks="", showline=False)
    fig.update_xaxes(range=[0, columns], showticklabels=False, row=2, col=1, **axes)
    fig.update_yaxes(range=[len(exits), 0], tickvals=[k + 0.5 for k in range(len(exits))], ticktext=exits,
                     row=2, col=1, **axes)


def trio(found: dict) -> tuple[float, float, float]:
    """TA, the worst form's ATA and the per-image worst case, in percent."""
    forms = found["forms"]
    worst = forms[found["paper_worst"] or found["worst_form"]]["accuracy"]
    return 100 * next(iter(forms.values()))["accuracy"], 100 * worst, 100 * found["union_accuracy"]


def update(fig: go.Figure, reading: Reading, found: dict, form: str, strip: Strip, pixels: np.ndarray | None,
           classes) -> None:
    """Move the numbers of `fig` to what `reading` says, whose summary is `found`; `form`: the attack looked at."""
    trace = {t.name: t for t in fig.data}
    clean = reading.names[0]
    now = accuracies(found)
    now_trace, names = trace["now"], rows_of(reading)
    now_trace.x = [v for v, _, _ in now]
    now_trace.error_x.array, now_trace.error_x.arrayminus = [h - v for v, _, h in now], [v - low for v, low, _ in now]
    special = {clean: style.CLEAN, WORST: style.ATTACKED, UNION: style.UNION}
    now_trace.marker.color = [special.get(key, style.ATTACKED) for key in (*reading.names, WORST, UNION)]
    now_trace.marker.size = [13 if name in (style.spoken(form), WORST, UNION) else 8 for name in names]
    for label, view in (("clean", clean), ("attacked", form)):
        share = 100 * np.asarray(found["forms"][view]["exits"]) / found["images"]
        trace[label].y, trace[label].text = share, [f"{s:.0f}" for s in share]
    fig.layout.yaxis4.ticktext = [f"{name} · {s:.0f} %" for name, s in
                                  zip(style.exit_names(reading.record.num_exits), share, strict=True)]
    trace["point"].x, trace["point"].y = [found["forms"][clean]["cumulative_macs"] / 1e6] * 3, trio(found)
    x, y, which = strip.places()
    pictures = trace["pictures"]
    pictures.x, pictures.y, pictures.customdata = x, y, which
    pictures.hovertext = [_about(reading, form, i, strip) for i in which]
    head = "surest first" if form == clean else f"under {style.spoken(form)}, surest first"
    fig.layout.annotations[-1].text = (f"{len(which)} of {found['images']:,} images, {head}; "
                                       f"{style.tinted('framed', style.ATTACKED)} where the answer is wrong")
    pictures.text = [""] * len(which) if pixels is not None else [classes[reading.record.labels[i]] for i in which]
    if pixels is not None:
        fig.layout.images = [dict(source=strip.picture(pixels), xref="x4", yref="y4", x=0, y=0, sizex=strip.columns,
                                  sizey=len(strip.rows), sizing="stretch", layer="below")]


def _about(reading: Reading, form: str, index: int, strip: Strip) -> str:
    record = reading.record
    said = ", ".join(str(p) for p in record.prediction[reading.first(form)][:, index])
    verdict = "right" if strip.right[index] else "wrong"
    return f"image {index + record.meta['images'][0]}, true class {record.labels[index]}<br>exits say {said}: {verdict}"
