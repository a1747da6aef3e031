"""What FLOAT costs beside its rivals: counted parameters and MACs, measured training steps and inference."""

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import torch

from lib import randomness
from lib.evaluation import speeds
from lib.models import zoo
from lib.models.cost import cost
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.training import timing
from lib.training.recipe import Recipe
from lib.workbook import lambda_figures, lambda_study, studies, style, tables
from lib.workbook.parameters import Settings
from lib.workbook.published_float import STEP_RATIOS, TABLE_1

SHAPES = {"resnet34": (3, 32, 32), "wrn40_2": (3, 96, 96), "wrn16_8": (3, 32, 32)}  # CIFAR-10, STL-10, SVHN
METHODS = ("float", "dual_bn", "oat", "pgd_at0.7", "pgd_at_half0.7", "float_slim", "oats")
PAPER_ROW = {"pgd_at0.7": "pgd_at"}
SPOKEN = lambda_study.SPOKEN | {"pgd_at0.7": "PGD-AT, full batch", "pgd_at_half0.7": "PGD-AT, half batches"}


def counted(names=tuple(SHAPES)) -> pd.DataFrame:
    """Table 1 counted from the networks themselves: parameters in millions, conv + linear MACs in G, beside the paper.

    OAT with codes of length 128, as it was trained, and of length 1, which is what the paper's column fits.
    """
    lines = {}
    for name in names:
        for label, options in (("FLOAT", dict(conditioning="float")), ("OAT, d = 128", dict(conditioning="oat")),
                               ("OAT, d = 1", dict(conditioning="oat", code_size=1)), ("plain", {})):
            network = zoo.build(name, input_shape=SHAPES[name], **options)
            found, row = cost(network), f"{name} {label.split(',')[0].lower()}"
            one_bank = found.parameters - bank(network)
            lines[name, label] = {
                "parameters, M": f"{found.parameters / 1e6:.3f}", "with one batch-norm set": f"{one_bank / 1e6:.3f}",
                "paper, M": tables.number(TABLE_1.value(row, "parameters")),
                "G MACs": f"{found.macs / 1e9:.3f}", "paper, G": tables.number(TABLE_1.value(row, "macs"), 3),
                "noise draws a pass, M": tables.number(network.noise_elements / 1e6 or None)}
    table = pd.DataFrame(lines).T
    table.index.names = ["network", "method"]
    return table


def bank(network) -> int:
    """Parameters of a second set of batch norms, 0 where there is one."""
    return sum(norm.weight.numel() + norm.bias.numel() for m in network.modules() if getattr(m, "banks", 1) == 2
               for norm in m.norms[1::2])


def recipes(settings: Settings, methods=METHODS) -> dict[str, Recipe]:
    """One recipe per method, alike in backbone, batch and attack."""
    return {method: studies.recipe(settings, settings.network, method) for method in methods}


def steps(settings: Settings, rounds: int, methods=METHODS) -> list[dict]:
    """Tidy rows of a training step of each method, all with the published 7 attack steps, timed side by side."""
    asked = {method: replace(recipe, threat=replace(recipe.threat, steps=7))
             for method, recipe in recipes(settings, methods).items()}
    return timing.side_by_side(asked, rounds=rounds, device=settings.device, experiment=settings.notebook,
                               preset=settings.preset)


def step_table(rows: list[dict]) -> pd.DataFrame:
    """Step times and ratios to FLOAT: measured, what the number of attacked images alone predicts, and the paper's."""
    found = {(r["defence"], r["metric"]): r for r in rows}
    lines = {}
    for method in dict.fromkeys(r["defence"] for r in rows):
        seconds, ratio = found[method, "step_seconds"], found[method, "step_ratio"]
        predicted = found[method, "step_ratio_predicted"]["value"]
        lines[SPOKEN.get(method, method)] = {
            "ms a step": tables.spread(seconds, 0, unit=1e3),
            "times FLOAT's": tables.spread(ratio),
            "predicted by attacked images": f"{predicted:.2f}", "share explained": explained(ratio["value"], predicted),
            "paper (up to)": tables.number(STEP_RATIOS.value(PAPER_ROW.get(method, method), "times float"))}
    return pd.DataFrame(lines).T


def slim_ratio(rows: list[dict]) -> str:
    """OATS's step in FLOAT-slim's: the paper's 1.90 beside the ratio of our medians, and what is predicted."""
    ratio, predicted = ({r["defence"]: r["value"] for r in rows if r["metric"] == metric}
                        for metric in ("step_ratio", "step_ratio_predicted"))
    paper = STEP_RATIOS.value("oats", "times float_slim")
    return (f"OATS's step takes {ratio['oats'] / ratio['float_slim']:.2f} times FLOAT-slim's (predicted by attacked "
            f"images {predicted['oats'] / predicted['float_slim']:.2f}, paper {paper:.2f})")


def explained(measured: float, predicted: float) -> str:
    """Of the time beyond FLOAT's, the share that attacking more images accounts for; a dash where it takes no longer,
    or attacks no more."""
    if measured < 1.05 or predicted < 1.05:
        return tables.DASH
    share = (predicted - 1) / (measured - 1)
    return f"{100 * share:.0f} %" if share <= 1 else "all"


def inference(settings: Settings, seconds: float, batch_sizes=(1, 32)) -> list[dict]:
    """Tidy rows of inference time: a plain network, FLOAT at its points and folded for deployment, OAT."""
    asked = recipes(settings, ("float", "oat"))
    plain = {k: v for k, v in asked["float"].network.items() if k != "conditioning"}
    made = {kind: zoo.build(**network).to(settings.device).eval() for kind, network in (
        ("plain", plain), ("float", asked["float"].network), ("oat", asked["oat"].network))}
    noisy, folded = OperatingPoint(noise=1.0, batch_norm=1.0), AttackView(made["float"])
    ways = {"plain": (made["plain"], None), "FLOAT, λ_n = 0": (made["float"], OperatingPoint(noise=0.0)),
            "FLOAT, fresh noise": (made["float"], noisy), "FLOAT, frozen draw": (made["float"], noisy.replace(draw=0)),
            "FLOAT, fresh noise, batch norm folded": (folded, noisy), "OAT, λ = 0.2": (made["oat"],
                                                                                      OperatingPoint(code=0.2))}
    source = randomness.generator(settings.seed, "speed images", device=settings.device)
    images = torch.rand(max(batch_sizes), *made["plain"].input_shape, generator=source, device=settings.device)
    return speeds.side_by_side(ways, images, batch_sizes=batch_sizes, seconds=seconds, seed=settings.seed,
                               experiment=settings.notebook, preset=settings.preset)


def inference_table(rows: list[dict]) -> pd.DataFrame:
    """Milliseconds an image and times the plain network's, a column pair per batch size, medians with intervals."""
    lines: dict[str, dict] = {}
    for r in rows:
        what, digits = ("ms an image", 3) if r["metric"] == "latency_ms" else ("times plain", 2)
        lines.setdefault(r["defence"], {})[f"{r['suite']}: {what}"] = tables.spread(r, digits)
    return pd.DataFrame(lines).T


def step_figure(rows: list[dict], caption: str) -> go.Figure:
    """Figs. 8 and 15: a step's time beside FLOAT's, measured and predicted."""
    fig = style.figure("A training step, in FLOAT's", caption, height=400)
    ratios = [r for r in rows if r["metric"] == "step_ratio"]
    predicted = {r["defence"]: r["value"] for r in rows if r["metric"] == "step_ratio_predicted"}
    names = [SPOKEN.get(r["defence"], r["defence"]) for r in ratios]
    fig.add_bar(x=names, y=[r["value"] for r in ratios], name="measured (median, quartiles)", marker_color=style.CLEAN,
                error_y=dict(type="data", symmetric=False, array=[r["high"] - r["value"] for r in ratios],
                             arrayminus=[r["value"] - r["low"] for r in ratios], color=style.INK))
    fig.add_bar(x=names, y=[predicted[r["defence"]] for r in ratios], name="predicted by attacked images alone",
                marker_color=style.GHOST)
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    fig.update_yaxes(title_text="times FLOAT's step")
    return fig


def memory_figure(found: dict[str, lambda_study.Member], caption: str) -> go.Figure:
    """Fig. 1: parameters against both accuracies, at every method's λ_n = 0 and 1; PGD-AT needs a network per λ."""
    fig = style.figure("What has to be stored for the whole trade-off", caption, height=400)
    for name, members in lambda_figures.families(found).items():
        tint = lambda_figures.COLOURS[name]
        stored = sum(m.network.weight_count() for m in members) / 1e3
        ends = [members[0].read(0.0), members[-1].read(1.0)]
        for what, reading, symbol in (("clean", ends[0], "circle"), ("union", ends[1], "diamond")):
            value, error = lambda_figures.bars([reading.right(what)])
            fig.add_scatter(x=[stored], y=value, error_y=error | {"color": tint}, mode="markers",
                            marker=dict(size=13, symbol=symbol, color=tint),
                            name=lambda_figures.label(name), legendgroup=name, showlegend=what == "clean",
                            hovertemplate=f"{lambda_figures.label(name)}: %{{x:.1f}} k parameters, %{{y:.1f}} %")
    fig.update_xaxes(title_text="parameters to store, thousands", rangemode="tozero")
    fig.update_yaxes(title_text="● clean at λ 0, ◆ robust at λ 1, %", range=[-2, 102])
    return fig


def verdicts(steps_: list[dict], latencies: list[dict]) -> pd.DataFrame:
    """The paper's claims on time, by the intervals of the measured ratios."""
    lines = []
    for method, claim in (("oat", "FLOAT's step is faster than OAT's"),
                          ("pgd_at0.7", "… than PGD-AT's on full batches"),
                          ("pgd_at_half0.7", "… than PGD-AT's on half batches (as many attacked images)"),
                          ("dual_bn", "the noise costs training time (control faster)")):
        row = next((r for r in steps_ if (r["defence"], r["metric"]) == (method, "step_ratio")), None)
        if row:
            faster = row["high"] < 1 if method == "dual_bn" else row["low"] > 1
            slower = row["low"] > 1 if method == "dual_bn" else row["high"] < 1
            lines.append(_line(claim, row, faster, slower))
    for row in latencies:
        if row["metric"] == "time_ratio" and row["defence"] == "FLOAT, fresh noise":
            claim = f"noise at inference costs at most 5 % more time than a plain network ({row['suite']})"
            lines.append(_line(claim, row, row["high"] <= 1.05, row["low"] > 1.05))
    return tables.verdicts(*lines)


def _line(claim: str, row: dict, held: bool, not_held: bool) -> dict:
    answer = "held" if held else "did not hold" if not_held else "too small to tell"
    return {"claim": claim, "ratio": f"{row['value']:.2f}", "interval": f"{row['low']:.2f} to {row['high']:.2f}",
            "verdict": answer}
