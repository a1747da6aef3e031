"""The explorer's figure: built once for a network, then only its numbers move.

Panels as the network's knobs ask for them: accuracy under every attack; along lambda_n; against cost, or clean against
robust; who leaves where; and pictures of single images, framed where the answer is wrong.
"""

import contextlib
import html
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib import WorkbookError
from lib.evaluation import points
from lib.evaluation.between import Spot, nearest, threshold_curve, view_for
from lib.workbook import microscope, style
from lib.workbook.explorer import Explorer

ALONG = [round(v, 9) for v in np.linspace(0, 1, 41).tolist()]
WIDTH, LEFT, TOP, PANEL, GAP, ROW = 840, 134, 78, 190, 62, 31  # pixels: margins, upper panels, a row of pictures
BLOCK, WIDE = 8, 20  # pictures in a row: of an exit, for clean and attacked images each; of a network with one exit
ANSWERS = ("pinned, clean", "pinned, attacked", "here, clean", "here, attacked")
COLOURS = {"clean": style.CLEAN, "attacked": style.ATTACKED, "union": style.UNION}
TERMS = {"TA": "accuracy on clean images", "ATA": "accuracy under an attack",
         "per-image worst case": "an image counts where it survives every attack of the suite, and unattacked",
         "paper's worst case": "the lowest ATA over the paper's forms of attack",
         "true cost": "multiply-accumulates of an image, all heads on the way included"}


def spoken(attack: str, exits: int = 2) -> str:
    """An attack as people say it: "on main exit", "average, EOT"; with one exit "PGD", "EOT-PGD"."""
    names = {"union": "worst per image", "paper_worst": "paper's worst case", "worst": "right in every draw"}
    if exits == 1:
        names |= {"main": "PGD", "EOT": "EOT-PGD", "noise-free transfer": "transfer from no noise"}
    form, _, who = attack.partition(", ")
    return names.get(attack) or style.plain(style.spoken(form) + (who and f", {who}"))


def lines(explorer: Explorer) -> list[str]:
    """What the accuracy panel lists, top to bottom."""
    single = [attack for attack in explorer.subject.attacks if attack not in ("union", "paper_worst")]
    last = [attack for attack in ("paper_worst", "union") if attack in explorer.subject.attacks]
    return ["clean", *single, *last, *["strong"] * (explorer.subject.record.strong is not None)]


def drawn(explorer: Explorer) -> go.Figure:
    """The figure at the present setting: everything that does not move, and `update`."""
    subject, exits = explorer.subject, explorer.subject.record.num_exits
    panels = ["accuracy", *["along"] * explorer.turns, "cost" if subject.early else "plane"]
    under = [{}, {"colspan": len(panels) - 1}] if subject.early else [{"colspan": len(panels)}, None]
    clean, attacked = (style.tinted(name, COLOURS[name]) for name in ("clean", "attacked"))
    heads = {"accuracy": "accuracy, % (│ pinned)", "along": f"along λ_n, %: {clean}, {attacked}",
             "cost": f"{clean}, {attacked}, worst per image, %", "plane": "recorded points, ◆ here, ◇ pinned"}
    rows = (exits if subject.early else len(ANSWERS)) * ROW
    height = TOP + PANEL + GAP + rows + 8
    titles = [*(heads[panel] for panel in panels), *["who leaves where, %"] * bool(subject.early), "pictures"]
    fig = make_subplots(2, len(panels), specs=[[{}] * len(panels), under + [None] * (len(panels) - 2)],
                        column_widths=[0.3, 0.34, 0.36] if len(panels) == 3 else [0.38, 0.62], subplot_titles=titles,
                        row_heights=[PANEL, rows], horizontal_spacing=0.065, vertical_spacing=GAP / (height - TOP - 8))
    fig.update_layout(template=style.TEMPLATE, width=WIDTH, height=height, margin=dict(l=LEFT, r=14, t=TOP, b=8),
                      showlegend=len(explorer.subjects) > 1 and "plane" in panels, barmode="group",
                      title_text=style.heading(*map(style.plain, (explorer.here.network, subject.title()))),
                      title_y=style.title_y(height), legend=dict(y=1 + 8 / (height - TOP), font_size=10))
    for note, axis in zip(fig.layout.annotations, fig.select_xaxes(), strict=True):
        note.update(font=dict(size=12, color=style.INK), x=axis.domain[0], xanchor="left")
    for column, panel in enumerate(panels, 1):
        PANELS[panel](fig, explorer, column)
    _pictures_panel(fig, explorer, 1 + bool(subject.early))
    update(fig, explorer)
    return fig


def _accuracy_panel(fig: go.Figure, explorer: Explorer, column: int):
    names = [spoken(line, explorer.subject.record.num_exits) for line in lines(explorer)]
    for name, marker in (("reference", dict(symbol="line-ns", size=13, line=dict(color=style.GHOST, width=2))),
                         ("now", dict(size=8))):
        fig.add_scatter(y=names, mode="markers", name=name, showlegend=False, marker=marker, row=1, col=column,
                        hovertemplate="%{y}: %{x:.1f} %" + f" ({name})<extra></extra>")
    fig.data[-1].error_x = dict(type="data", symmetric=False, thickness=1.4, width=0, color=style.MUTED)
    fig.update_xaxes(range=[-2, 102], tickvals=[0, 25, 50, 75, 100], row=1, col=column)
    fig.update_yaxes(range=[len(names) - 0.4, -0.6], row=1, col=column, ticks="", dtick=1,
                     tickfont_size=min(12, 150 // len(names)))


def _along_panel(fig: go.Figure, explorer: Explorer, column: int):
    for name in ("clean", "attacked"):
        fig.add_scatter(x=ALONG, mode="lines", line=dict(color=COLOURS[name]), name=f"{name} along", showlegend=False,
                        hovertemplate="λ_n %{x:.2f}: %{y:.1f} %<extra></extra>", row=1, col=column)
    fig.add_scatter(y=[-5, 105], mode="lines", line=dict(color=style.GHOST, dash="dot"), name="knob",
                    showlegend=False, hoverinfo="skip", row=1, col=column)
    fig.update_xaxes(range=[-0.03, 1.03], title_text="λ_n", row=1, col=column)


def _plane_panel(fig: go.Figure, explorer: Explorer, column: int):
    for colour, name in enumerate(explorer.subjects):
        fig.add_scatter(mode="markers", marker=dict(size=6, color=style.CYCLE[colour % len(style.CYCLE)], opacity=0.5),
                        name=style.plain(name), hovertemplate="clean %{y:.1f}, robust %{x:.1f} %", row=1, col=column)
    _points(fig, column, [style.INK], "clean %{y:.1f}, robust %{x:.1f} %")
    fig.update_xaxes(title_text="robust accuracy, %", row=1, col=column)
    fig.update_yaxes(title_text="clean accuracy, %", row=1, col=column)


def _cost_panel(fig: go.Figure, explorer: Explorer, column: int):
    record, tints = explorer.subject.record, list(COLOURS.values())
    for name, colour in COLOURS.items():
        fig.add_scatter(mode="lines", name=f"{name} curve", line=dict(color=colour, width=1.6), opacity=0.45, row=1,
                        col=column, showlegend=False, hovertemplate="%{y:.1f} % at %{x:.2f} M MACs<extra></extra>")
    _points(fig, column, tints, "%{y:.1f} % at %{x:.2f} M MACs")
    plain, costs = record.costs()["trunk"][-1] / 1e6, record.exit_costs()
    fig.add_scatter(x=[plain, plain], y=[-5, 105], mode="lines", name="plain network", row=1, col=column,
                    hoverinfo="skip", showlegend=False, line=dict(color=style.GHOST, width=1, dash="dot"))
    fig.update_xaxes(range=[0, 1.05 * max(plain, (costs.trunk[-1] + costs.heads.sum()) / 1e6)], row=1, col=column,
                     title_text="true cost, M MACs (dotted: plain)")


def _points(fig: go.Figure, column: int, colours: list[str], hover: str):
    for name, symbol in (("pinned", "diamond-open"), ("here", "diamond")):
        fig.add_scatter(mode="markers", name=name, showlegend=False, row=1, col=column,
                        hovertemplate=f"{name}: {hover}<extra></extra>",
                        marker=dict(size=12, symbol=symbol, color=colours, line=dict(width=1.5)))


PANELS = {"accuracy": _accuracy_panel, "along": _along_panel, "plane": _plane_panel, "cost": _cost_panel}


def _pictures_panel(fig: go.Figure, explorer: Explorer, column: int):
    subject, exits = explorer.subject, style.exit_names(explorer.subject.record.num_exits)
    labels = exits if subject.early else ANSWERS
    bare = dict(showgrid=False, ticks="", showline=False)
    if subject.early:
        for name in ("attacked", "clean"):  # bars of a group stand from below
            fig.add_bar(y=exits, orientation="h", name=name, marker_color=COLOURS[name], textposition="outside",
                        cliponaxis=False, textfont=dict(size=9, color=style.MUTED), row=2, col=1, showlegend=False,
                        hovertemplate="%{y}: %{x:.1f} % of the images<extra></extra>")
        fig.update_xaxes(range=[0, 108], showticklabels=False, row=2, col=1, **bare)
        fig.update_yaxes(range=[len(exits) - 0.5, -0.5], row=2, col=1, ticks="")
    fig.add_scatter(mode="markers+text", name="pictures", row=2, col=column, showlegend=False,
                    textfont=dict(size=10), marker=dict(size=24, opacity=0, symbol="square"),
                    hovertemplate="%{hovertext}<extra></extra>")
    columns = 2 * BLOCK + 1 if subject.early else WIDE
    fig.update_xaxes(range=[0, columns], showticklabels=False, row=2, col=column, **bare)
    fig.update_yaxes(range=[len(labels), 0], tickvals=[k + 0.5 for k in range(len(labels))], ticktext=list(labels),
                     showticklabels=not subject.early, row=2, col=column, **bare)


def update(fig: go.Figure, explorer: Explorer):
    """Move what moves. Raises WorkbookError where nothing is recorded around the present setting."""
    trace, here, before = {t.name: t for t in fig.data}, explorer.spot(), None
    subject, attack, every = explorer.subject, explorer.here.attack, lines(explorer)
    value, low, high = ([_percent(here, line, part) for line in every] for part in ("value", "low", "high"))
    trace["now"].x = value  # the strong suite was not run at every setting
    trace["now"].error_x.update({side: [None if v is None else abs(end - v) for v, end in zip(value, ends, strict=True)]
                                 for side, ends in (("array", high), ("arrayminus", low))})
    trace["now"].marker.update(size=[12 if line == attack else 8 for line in every], color=[
        COLOURS.get(line, style.UNION if line == "strong" else style.ATTACKED) for line in every])
    with contextlib.suppress(WorkbookError):
        before = explorer.spot(explorer.pinned)
    trace["reference"].x = [_percent(before, line) for line in every]
    if "knob" in trace:
        for name, values in explorer.along(ALONG).items():
            trace[f"{name} along"].y = [v if v is None else 100 * v for v in values]
        trace["knob"].x = [explorer.here.lambda_n] * 2
        _zoom(fig, trace["clean along"], [trace["clean along"].y, trace["attacked along"].y])
    if subject.early:
        _update_exits(fig, trace, explorer, here, before)
    else:
        _update_plane(fig, trace, explorer, here, before)
    _update_pictures(fig, trace["pictures"], explorer, here, before)


def _percent(spot: Spot | None, what: str, part: str = "value") -> float | None:
    """None where it was not attacked so."""
    with contextlib.suppress(WorkbookError):
        return spot and 100 * getattr(spot.number(what), part)


def _update_exits(fig: go.Figure, trace: dict, explorer: Explorer, here, before):
    attack, record = explorer.here.attack, explorer.subject.record
    curve = threshold_curve(record, nearest(record, explorer.here.at))  # of the nearest recorded point
    for name, view in (("clean", "clean"), ("attacked", attack)):
        share = [float(100 * s) for s in here.share(view)]
        trace[name].x, trace[name].text = share, [f"{s:.0f}" for s in share]
    for name, spot in (("here", here), ("pinned", before)):
        if spot is not None:
            trace[name].x = [spot.cost("cumulative_macs") / 1e6] * 3
            trace[name].y = [_percent(spot, what) for what in ("clean", attack, "union")]
    cost = tuple(reading.cost("cumulative_macs") / 1e6 for reading in curve)
    for name, what in (("clean", "clean"), ("attacked", attack), ("union", "union")):
        line = tuple(100 * Spot(((1.0, reading),)).number(what).value for reading in curve)
        if (trace[f"{name} curve"].x, trace[f"{name} curve"].y) != (cost, line):
            trace[f"{name} curve"].update(x=cost, y=line)
    _zoom(fig, trace["here"], [trace["here"].y, *(trace[f"{name} curve"].y for name in COLOURS)])


def _update_plane(fig: go.Figure, trace: dict, explorer: Explorer, here, before):
    attack = explorer.here.attack
    for name in explorer.subjects:
        known, line = explorer.recorded(name), trace[style.plain(name)]
        line.x, line.y = ([100 * pair[axis] for pair in known] for axis in (1, 0))
    for name, spot in (("here", here), ("pinned", before)):
        if spot is not None:
            trace[name].x, trace[name].y = ([_percent(spot, what)] for what in (attack, "clean"))
    shown = [trace[name] for name in (*map(style.plain, explorer.subjects), "here")]
    _zoom(fig, trace["here"], [t.y for t in shown])
    _zoom(fig, trace["here"], [t.x for t in shown], "xaxis")


def _zoom(fig: go.Figure, trace, values: list, axis: str = "yaxis"):
    """Where the points are, to the next ten percent."""
    if held := [v for line in values for v in line or () if v is not None]:
        low, high = 10 * math.floor((min(held) - 1) / 10), 10 * math.ceil((max(held) + 1) / 10)
        name = axis + (getattr(trace, axis) or axis)[1:]
        fig.layout[name].range = [max(-3, low), 103 if high >= 100 else high]


def _update_pictures(fig: go.Figure, pictures, explorer: Explorer, here, before):
    subject, record, attack = explorer.subject, explorer.subject.record, explorer.here.attack
    rows, sample = (record.num_exits, 2 * BLOCK + 1) if subject.early else (len(ANSWERS), WIDE), record.sampled
    cells = []
    if subject.early:
        for block, view in enumerate(("clean", attack)):
            cells += microscope.by_exit(here.nearest, view_for(here.nearest, view), sample, block * (BLOCK + 1), BLOCK)
    else:
        sample = sample[::max(1, len(sample) // WIDE)][:WIDE]
        for row, (spot, view) in enumerate((spot, view) for spot in (before, here) for view in ("clean", attack)):
            if _percent(spot, view) is not None:
                cells += microscope.in_a_row(spot.nearest, view_for(spot.nearest, view), sample, row)
    first, names = record.meta["images"][0], [style.plain(name) for name in subject.classes]
    pictures.x, pictures.y = [c.column + 0.5 for c in cells], [c.row + 0.5 for c in cells]
    pictures.customdata = [first + c.index for c in cells]
    pictures.hovertext = [f"image {first + c.index}: {names[record.labels[c.index]]}<br>answer: {names[c.answer]}, "
                          f"{'right' if c.right else 'wrong'}" for c in cells]
    drawn = []
    if subject.pixels is not None:
        strip = microscope.picture(cells, *rows, subject.pixels)
        drawn = [dict(source=strip, xref=pictures.xaxis, yref=pictures.yaxis, x=0, y=0, sizex=rows[1], sizey=rows[0],
                      sizing="stretch", layer="below")]
    fig.layout.images = drawn
    pictures.text = [""] * len(cells) if drawn else [names[c.answer][:4] for c in cells]
    pictures.textfont.color = [style.INK if c.right else style.ATTACKED for c in cells]
    under = spoken(view_for(here.nearest, attack), record.num_exits)
    wrong = style.tinted("framed" if drawn else "red", style.ATTACKED)
    where = f"clean | attacked ({under}), surest first" if subject.early else f"some images, attacked: {under}"
    fig.layout.annotations[-1].text = f"{where}; {wrong} where wrong"


def tiles(explorer: Explorer) -> str:
    """The numbers that matter at the present setting as HTML, beside those of the pinned one."""
    spot, here, subject = explorer.spot(), explorer.here, explorer.subject
    exits, reading = subject.record.num_exits, spot.nearest
    moved = replace(explorer.pinned, attack=here.attack, threat=here.threat) != here

    def pinned(number: Callable[[Spot], str]) -> list[str]:
        if moved:
            with contextlib.suppress(WorkbookError):  # pinned on a network that was not attacked so
                return [f"pinned {number(explorer.spot(explorer.pinned))}"]
        return []

    def accuracy(name: str, attack: str, colour: str) -> dict:
        number, worst = spot.number(attack), attack == spot.robust
        return dict(name=name, colour=colour,
                    value=f"{spot.mark(attack)}{100 * number.value:.1f} %{reading.flag(attack)}",
                    notes=[f"{100 * number.low:.1f} to {100 * number.high:.1f}",
                           *([f"strong suite, {len(reading.right(attack).T)} images"] if attack == "strong" else []),
                           *pinned(lambda b: f"{100 * b.number(b.robust if worst else attack).value:.1f}")])

    def cost(attack: str, images: str, colour: str) -> dict:
        true, paper = spot.cost("cumulative_macs", attack), spot.cost("paper_mflops", attack)
        return dict(name="true cost" + f", {images}" * (exits > 1), value=f"{true / 1e6:.2f} M MACs", colour=colour,
                    notes=[saving(1 - true / reading.plain("trunk")),
                           f"paper: {paper:.2f}, {saving(1 - paper / reading.plain('paper_mflops'))}",
                           *pinned(lambda before: f"{before.cost('cumulative_macs', attack) / 1e6:.2f} M")])

    shown = [accuracy("TA", "clean", style.CLEAN)]
    if here.attack not in ("union", "paper_worst"):
        shown.append(accuracy(f"ATA, {html.unescape(spoken(here.attack, exits))}", here.attack, style.ATTACKED))
    if "paper_worst" in subject.attacks:
        shown.append(accuracy("paper's worst case", "paper_worst", style.ATTACKED))
    shown += [accuracy("per-image worst case", spot.robust, style.LIVE_INK), cost("clean", "clean", style.CLEAN)]
    if exits > 1:
        shown.append(cost(here.attack, "attacked", style.ATTACKED))
    exact = "recorded or computed here" if len(spot.around) == 1 else "≈ interpolated between recorded points"
    bound = "; ≤ no attacker was tried who knew these thresholds" if "≤" in spot.mark(spot.robust) else ""
    draws = f", mean of {reading.draws} draws" if reading.draws > 1 else ""
    doubts = f"; do not trust numbers with ! ({', '.join(reading.doubts)})" if reading.doubts else ""
    lacking = "" if subject.pixels else f"Pictures need the images: {subject.missing}"
    where = (f"{points.name(here.at) if here.at.used() else here.network}: {exact}{bound}{doubts}; "
             f"{reading.record.images:,} images{draws}, 95 % intervals. {lacking}")
    return style.render("tiles.html", tiles=shown, terms=TERMS, where=where, code=explorer.code, font=style.FONT,
                        muted=style.LIVE_MUTED, pinned=explorer.pinned_code if moved else "")


def saving(share: float) -> str:
    """A saving in words: "saves 12.3 %", or "4.2 % more"."""
    return f"saves {100 * share:.1f} %" if share >= 0 else f"{-100 * share:.1f} % more"
