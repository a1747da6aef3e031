"""What FLOAT learned, read from its weights: two sets of batch-norm statistics, and a noise strength per layer."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lib import WorkbookError, randomness
from lib.models.layers import BatchNorm2d, Weighted
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_figures, lambda_study, style, tables
from lib.workbook.lambda_study import Member

BANKS = {"BN_C": style.CLEAN, "BN_A": style.ATTACKED}


def statistics(network: Network) -> dict[str, dict[str, np.ndarray]]:
    """{"BN_C", "BN_A": {"mean", "variance": (channels,)}} of the last batch norm before the classifier, full width.

    Raises WorkbookError for a network without two banks.
    """
    last = [m for m in network.modules() if isinstance(m, BatchNorm2d)][-1]
    if last.banks != 2:
        raise WorkbookError(f"{network.config['name']} ({network.conditioning}) has one set of batch norms, not two")
    return {bank: {"mean": norm.running_mean.cpu().numpy(), "variance": norm.running_var.cpu().numpy()}
            for bank, norm in zip(BANKS, last.norms[:2], strict=True)}


def statistics_figure(networks: Mapping[str, Network], caption: str) -> go.Figure:
    """Fig. 3: how running means and variances of the last batch norm are distributed over its channels."""
    fig = make_subplots(1, 2, horizontal_spacing=0.08, subplot_titles=["running mean", "running variance"])
    for name, network in networks.items():
        for bank, values in statistics(network).items():
            for column, which in enumerate(("mean", "variance"), start=1):
                fig.add_box(y=values[which], x=[name] * len(values[which]), name=bank, boxpoints="all", jitter=0.4,
                            pointpos=0, marker=dict(color=BANKS[bank], size=4, opacity=0.6), line_width=1,
                            legendgroup=bank, showlegend=column == 1 and name == next(iter(networks)),
                            offsetgroup=bank, hovertemplate=f"{bank}: %{{y:.3f}}<extra></extra>", row=1, col=column)
    fig.update_layout(boxmode="group")
    return lambda_figures.dress(fig, "The last batch norm's statistics, channel by channel", caption, height=400)


def statistics_table(networks: Mapping[str, Network]) -> pd.DataFrame:
    """Mean and spread over channels of both statistics, a line per network and bank."""
    lines = {(name, bank): {f"{which}: {what}": round(float(f(values[which])), 3) for which in ("mean", "variance")
                            for what, f in (("average", np.mean), ("deviation", np.std))}
             for name, network in networks.items() for bank, values in statistics(network).items()}
    return pd.DataFrame(lines).T


def alphas(network: Network) -> pd.DataFrame:
    """|alpha| of every noisy layer, in the order of depth: the noise's deviation in units of the weights' own.

    Its sign means nothing, as noise is symmetric. With several alphas in a layer, their mean. Raises WorkbookError for
    a network without noise.
    """
    found = [(name, m) for name, m in network.named_modules() if isinstance(m, Weighted) and m.alpha is not None]
    if not found:
        raise WorkbookError(f"{network.config['name']} ({network.conditioning}) carries no noise and has no alpha")
    return pd.DataFrame([{
        "layer": f"{depth} {'linear' if m.weight.dim() == 2 else 'x'.join(map(str, m.weight.shape))}",
        "alpha": float(m.alpha.detach().abs().mean()), "deviation of the weights": float(m.weight.detach().std()),
        "weights": m.weight.numel()} for depth, (name, m) in enumerate(found, start=1)])


def alpha_figure(networks: Mapping[str, Network], caption: str) -> go.Figure:
    """Fig. 12: |alpha| over the depth, with 0.25, where every one began."""
    fig = style.figure("How strong the trained noise is in every layer", caption, height=380)
    for place, (name, network) in enumerate(networks.items()):
        table = alphas(network)
        fig.add_bar(x=table["layer"].str.split().str[0], y=table["alpha"], name=name, text=table["layer"],
                    marker_color=style.CYCLE[place], textposition="none",
                    hovertemplate="layer %{text}: |α| %{y:.3f}<extra></extra>")
    fig.add_hline(y=0.25, line=dict(color=style.GHOST, dash="dot"), annotation_text="start of training")
    fig.update_xaxes(title_text="layer, from the image to the classifier", type="category", showgrid=False)
    fig.update_yaxes(title_text="|α|", rangemode="tozero")
    return fig


def falls(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> dict[str, float]:
    """{"value", "low", "high"}: rank correlation of `values` with their place, 95 % bootstrap over the layers."""
    values = np.asarray(values, float)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=randomness.generator(seed, "layers")).numpy()
    found = [correlation(rows, values[rows]) for rows in drawn if len(set(rows)) > 2]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return {"value": correlation(np.arange(len(values)), values), "low": float(low), "high": float(high)}


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's: Pearson's of the ranks, equal values sharing theirs."""
    return float(pd.Series(first).rank().corr(pd.Series(second).rank()))


def mixing_figure(found: Mapping[str, Member], caption: str) -> go.Figure:
    """Accuracies against the batch-norm mix, without noise and (FLOAT) at full noise."""
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[
        "clean accuracy, %", "robust accuracy, %: worst of three attacks per image"])
    for method in ("float", "dual_bn"):
        for noise in (0.0, 1.0) if method == "float" else (None,):
            member = found[method]
            at = sorted((p for p in member.record.points if p.noise == noise), key=lambda p: p.batch_norm)
            said = f"{member.label}" + ("" if noise is None else f", s {noise:g}")
            for column, what in enumerate(("clean", "union"), start=1):
                value, error = lambda_figures.bars([member.read(p).right(what) for p in at])
                tint = lambda_figures.colour(member)
                fig.add_scatter(x=[p.batch_norm for p in at], y=value, error_y=error | {"color": tint}, name=said,
                                line=dict(color=tint, dash="dot" if noise else "solid"), legendgroup=said,
                                showlegend=column == 1, hovertemplate="mix %{x:.2f}: %{y:.1f} %", row=1, col=column)
    fig.update_xaxes(title_text="batch norm: 0 is BN_C, 1 is BN_A", tickvals=[0, 0.25, 0.5, 0.75, 1])
    return lambda_figures.dress(fig, "Between the two batch norms: a continuous knob that needs no noise", caption)


def rescaling_figure(pni: Member, caption: str) -> go.Figure:
    """Fig. 4: PNI's accuracies as its trained noise is scaled by λ_n at inference."""
    fig = style.figure("PNI: what its one batch norm allows when the noise is scaled", caption, height=380)
    at = sorted(pni.record.points, key=lambda p: p.noise)
    for what, name, tint in (("clean", "clean", style.CLEAN), ("white-box", "PGD", style.ATTACKED),
                             ("union", "worst of three, per image", style.UNION)):
        value, error = lambda_figures.bars([pni.read(p).right(what) for p in at])
        fig.add_scatter(x=[p.noise for p in at], y=value, error_y=error | {"color": tint}, name=name, line_color=tint)
    fig.update_xaxes(title_text="λ_n", tickvals=[p.noise for p in at])
    fig.update_yaxes(title_text="accuracy, %", range=[-2, 102])
    return fig


def verdicts(found: Mapping[str, Member], seed: int = 0) -> pd.DataFrame:
    """What Figs. 3, 4 and 12 claim, and whether half-way between the batch norms lies a point worth having."""
    control, pni, compared = found["dual_bn"], found.get("pni"), lambda_study.compared
    ends = [control.read(OperatingPoint(batch_norm=b)) for b in (0.0, 0.5, 1.0)]
    lines = [compared("half-way between the batch norms is more robust than BN_C", ends[1], ends[0]),
             compared("… and more accurate on clean images than BN_A", ends[1], ends[2], "clean"),
             depth_verdict(found["float"].network, seed)]
    if pni is not None:
        ends = [pni.read(OperatingPoint(noise=s)) for s in (0.0, 1.0)]
        lines += [compared("PNI: less noise gives more clean accuracy", ends[0], ends[1], "clean"),
                  compared("PNI: more noise gives more robustness", ends[1], ends[0])]
    return tables.verdicts(*lines)


def depth_verdict(network: Network, seed: int = 0) -> dict:
    """Is |alpha| large in early layers and small in late ones? A line of `tables.verdicts`."""
    table = alphas(network)
    found = falls(table["alpha"].to_numpy(), seed)
    answer = "held" if found["high"] < 0 else "did not hold" if found["low"] > 0 else "too small to tell"
    return {"claim": "|α| falls with depth (rank correlation)", "difference": f"{found['value']:+.2f}",
            "95 % interval": f"{found['low']:+.2f} to {found['high']:+.2f}", "images": f"{len(table)} layers",
            "verdict": answer}
