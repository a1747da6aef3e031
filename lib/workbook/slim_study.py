"""Two knobs at once: λ and width. FLOAT-slim, its control and OATS, beside a narrow network trained by itself."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lib.evaluation import points
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_figures, lambda_study, networks, studies, tables
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published_float import GAINS

METHODS = ("float_slim", "dual_bn_slim", "oats", "float_slim_heads", "oats_heads")


def narrow(settings: Settings, width: float = 0.5) -> Trained:
    """FLOAT trained by itself at a width of the slim networks: what sharing weights between widths costs."""
    asked = studies.recipe(settings, settings.network, "float")
    network = asked.network | {"width_multiplier": asked.network.get("width_multiplier", 1.0) * width}
    name = asked.name.replace("-float-", "-float_narrow-")
    return networks.train(settings, replace(asked, name=name, network=network))


def costs(found: Mapping[str, Member]) -> pd.DataFrame:
    """Parameters (all widths share them) and true multiply-accumulates of one image at every width."""
    lines = {}
    for member in found.values():
        total = member.network.weight_count()
        lines[member.label] = {"parameters": f"{total:,}"} | {
            f"width {width}, M MACs": f"{member.record.macs(OperatingPoint(width=float(width))) / 1e6:.2f}"
            for width in member.record.meta["costs"]}
    return pd.DataFrame(lines).T.fillna(tables.DASH)


def accuracies(found: Mapping[str, Member], widths=(1.0, 0.5)) -> pd.DataFrame:
    """`lambda_study.accuracies` at every width; the narrow network stands at the width that it replaces."""
    parts = {f"width {w:g}": lambda_study.accuracies(
        {name: m for name, m in found.items() if "width" in m.network.knobs}, width=w) for w in widths}
    alone = {name: m for name, m in found.items() if "width" not in m.network.knobs}
    if alone:
        parts["trained by itself"] = lambda_study.accuracies(alone)
    return pd.concat(parts, names=["width"])


def figure(found: Mapping[str, Member], caption: str, widths=(1.0, 0.5)) -> go.Figure:
    """Fig. 9: the clean-robust plane, a panel per width."""
    fig = make_subplots(1, len(widths), shared_yaxes=True, horizontal_spacing=0.05,
                        subplot_titles=[f"width {w:g}" for w in widths])
    for column, width in enumerate(widths, start=1):
        for method, member in found.items():
            slim = "width" in member.network.knobs
            if not slim and width == max(widths):
                continue
            at = points.published(member.network, widths=(width if slim else None,))
            x, x_error = lambda_figures.bars([member.read(p).right("union") for p in at])
            y, y_error = lambda_figures.bars([member.read(p).right("clean") for p in at])
            tint = dict(color=lambda_figures.colour(member))
            fig.add_scatter(x=x, y=y, error_x=x_error | tint, error_y=y_error | tint, mode="markers", opacity=0.85,
                            marker=dict(size=10, symbol="circle" if slim else "square", **tint), name=member.label,
                            legendgroup=method, showlegend=column == (1 if slim else 2),
                            text=[points.name(p) for p in at],
                            hovertemplate="%{text}: clean %{y:.1f}, robust %{x:.1f} %", row=1, col=column)
    fig.update_xaxes(title_text="robust accuracy, %: worst of three attacks per image")
    fig.update_yaxes(title_text="clean accuracy, %", row=1, col=1)
    return lambda_figures.dress(fig, "One set of weights, two widths", caption, height=440)


def gains(found: Mapping[str, Member], widths=(1.0, 0.5), lambdas=points.LAMBDAS) -> pd.DataFrame:
    """FLOAT-slim beside OATS: the largest gain over λ and widths, as the paper's "up to"."""
    lines, ours, theirs = [], found["float_slim"], found["oats"]
    for quantity, who in (("clean", "clean"), ("robust", "white-box")):
        pairs = [(ours.read(n, 0.0, w), theirs.read(n, 0.0, w)) for n in lambdas for w in widths]
        best = max(pairs, key=lambda pair, who=who: (pair[0].right(who) * 1.0 - pair[1].right(who)).mean())
        measured, interval = lambda_study.difference(*best, who)
        lines.append({"quantity": f"{quantity} accuracy", "published": lambda_study.signed(GAINS.value(
            "FLOAT-slim instead of OATS", quantity)), "measured": measured, "95 % interval": interval,
            "at": points.name(best[0].point)})
    return pd.DataFrame(lines).set_index("quantity")


def verdicts(found: Mapping[str, Member], widths=(1.0, 0.5)) -> pd.DataFrame:
    """Does the wide width pay, does FLOAT-slim beat OATS and its control, what does sharing cost the narrow one?"""
    ours, compared, lines = found["float_slim"], lambda_study.compared, []
    wide, thin = (ours.read(1.0, 0.0, w) for w in (max(widths), min(widths)))
    lines += [compared("FLOAT-slim, λ_n = 1: the full width is more robust than the narrow one", wide, thin),
              compared("… and more accurate on clean images", wide, thin, "clean")]
    for rival in ("oats", "dual_bn_slim", "float_slim_heads"):
        if rival in found:
            lines += [compared(f"FLOAT-slim is more robust than {found[rival].label} (λ 1, width {w:g})",
                               ours.read(1.0, 0.0, w), found[rival].read(1.0, 0.0, w)) for w in widths]
    if "float_narrow" in found:
        alone = found["float_narrow"].read(1.0)
        lines += [compared("a narrow FLOAT trained by itself is more robust than the narrow width (λ 1)", alone, thin),
                  compared("… and more accurate on clean images (λ 0)", found["float_narrow"].read(0.0),
                           ours.read(0.0, 0.0, min(widths)), "clean")]
    return tables.verdicts(*lines)
