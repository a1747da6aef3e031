"""The house style: one template of figures, colours for colour-blind eyes, names as people say them, and HTML."""

import html
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go

INK, MUTED, RULE, PAPER = "#1f2933", "#6b7785", "#e3e7ec", "#ffffff"
CLEAN, ATTACKED, UNION, GHOST = "#0072b2", "#d55e00", "#1f2933", "#9aa5b1"  # Okabe and Ito's blue and vermilion
DEFENCES = {"standard": "#7d8894", "main": "#cc79a7", "average": "#e69f00", "max_average": "#009e73", "plain": INK,
            "pruned": "#0072b2", "atmc": "#d55e00"}
DEFENCES |= {"float": "#0072b2", "dual_bn": "#7d8894", "oat": "#e69f00", "pni": "#cc79a7", "pgd_at": "#009e73",
             "mixed": "#56b4e9", "share_stats": "#009e73", "share_affine": "#cc79a7", "float_slim": "#0072b2",
             "dual_bn_slim": "#7d8894", "oats": "#e69f00", "float_narrow": "#009e73",
             "float_slim_heads": "#56b4e9", "oats_heads": "#cc79a7"}
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#7d8894")
LIVE_INK, LIVE_MUTED = f"var(--jp-ui-font-color1, {INK})", f"var(--jp-ui-font-color2, {MUTED})"  # as JupyterLab's theme
FONT = "Inter, 'Helvetica Neue', 'Liberation Sans', Arial, 'DejaVu Sans Condensed', sans-serif"
EXPLORER = "explorer.html"  # in the folder of a run's notebook: its explorer as a page without a kernel
HTML = Path(__file__).parent / "templates"
_FILLED = jinja2.Environment(loader=jinja2.FileSystemLoader(HTML), autoescape=True, trim_blocks=True)

pd.set_option("display.max_colwidth", None, "display.width", 200, "display.max_rows", 200)  # tables show whole texts
_AXIS = dict(gridcolor=RULE, linecolor=GHOST, zeroline=False, ticks="outside", ticklen=4, tickcolor=RULE,
             title=dict(font=dict(size=12, color=MUTED), standoff=8), automargin=False, fixedrange=True)

TEMPLATE = go.layout.Template(
    layout=dict(
        font=dict(family=FONT, size=12, color=INK), colorway=CYCLE, paper_bgcolor=PAPER, plot_bgcolor=PAPER,
        title=dict(x=0, xref="paper", xanchor="left", y=0.97, yanchor="top", font=dict(size=16)),
        xaxis=_AXIS, yaxis=_AXIS, margin=dict(l=64, r=20, t=72, b=52), hovermode="closest",
        hoverlabel=dict(bgcolor=PAPER, bordercolor=RULE, font=dict(family=FONT, size=12, color=INK)),
        legend=dict(orientation="h", yanchor="bottom", y=1.01, x=1, xanchor="right", font=dict(size=11, color=MUTED)),
        bargap=0.35, bargroupgap=0.08,
    ))

_SPOKEN = {"clean": "clean images", "main": "on main exit", "average": "average", "max_average": "max-average",
           "random": "random", "gate_aware": "gate-aware", "slow_keep": "slowed, label kept",
           "slow_break": "slowed, label broken", "slow_free": "slowed", "strong": "strong suite"}

_LABELS = {"main": "main branch", "max_average": "max-average", "resnet38": "ResNet-38", "smallcnn": "SmallCNN",
           "mobilenet_v2": "MobileNetV2", "atmc": "ATMC", "float": "FLOAT", "dual_bn": "control (dual BN, no noise)",
           "share_stats": "two affines, one statistics", "share_affine": "two statistics, one affine", "oat": "OAT",
           "pni": "PNI", "pgd_at": "PGD-AT", "mixed": "two networks mixed", "float_slim": "FLOAT-slim",
           "dual_bn_slim": "slim control (no noise)", "oats": "OATS", "float_narrow": "FLOAT, half as wide, by itself",
           "float_slim_heads": "FLOAT-slim, a head per width", "oats_heads": "OATS, a head per width (SOLAR)"}

_DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN",
             "cifar10_jpeg": "CIFAR-10", "cifar10_png": "CIFAR-10"}
_VARIANTS = {"image folder cifar10_jpeg": "JPEG copy", "image folder cifar10_png": "lossless"}


def dataset(meta: dict) -> str:
    """What a record's images are, by its metadata: "digits, embedded", "CIFAR-10, lossless"."""
    name, variant = meta.get("dataset", "dataset not stated"), meta.get("data_variant", "variant not stated")
    return f"{_DATASETS.get(name, name)}, {_VARIANTS.get(variant, variant.replace('training images', 'for training'))}"


def label(network: str) -> str:
    """A network's, defence's or method's name as people say it."""
    return _LABELS.get(network, network)


def spoken(form: str) -> str:
    """A view's name as people say it: "single2" is "on exit 2", "max_average 3" is "max-average 3"."""
    base, _, again = form.partition(" ")
    name = f"on exit {base.removeprefix('single')}" if base.startswith("single") else _SPOKEN.get(base, base)
    return f"{name} {again}".strip()


def tinted(text: str, colour: str) -> str:
    """Text in the colour of the marks it names, so that a figure needs no legend."""
    return f"<span style='color:{colour}'>{text}</span>"


def plain(text) -> str:
    """Text from a file or a parameter, without effect as markup: for every widget, figure and page that shows it."""
    return html.escape(str(text))


def rgb(colour: str) -> list[int]:
    """Red, green and blue, 0 to 255, of "#rrggbb"."""
    return [int(colour[i:i + 2], 16) for i in (1, 3, 5)]


def heading(title: str, subtitle: str) -> str:
    return f"<b>{title}</b><br><span style='font-size:12px;color:{MUTED}'>{subtitle}</span>"


def exit_names(num_exits: int) -> list[str]:
    return [f"exit {k}" for k in range(1, num_exits)] + ["main"]


def figure(title: str, subtitle: str, **layout) -> go.Figure:
    """An empty figure in the house style; the subtitle says how many images, which seeds and what the bars mean."""
    top = 96 + 18 * subtitle.count("<br>")  # the legend's line has to fit below the subtitle
    base = dict(template=TEMPLATE, title_text=heading(title, subtitle), width=960, height=430,
                margin=dict(l=64, r=20, t=top, b=52)) | layout
    base.setdefault("title_y", title_y(base["height"]))
    return go.Figure(layout=base)


def title_y(height: float) -> float:
    """Where a title of two lines stands whole, 28 pixels below the upper edge."""
    return 1 - 28 / height


def render(template: str, **values) -> str:
    """The HTML of a template in HTML; whatever is filled in is escaped."""
    return _FILLED.get_template(template).render(values)
