"""The same operating points under other attackers: FGSM, both steps of PGD-20, CW∞, larger budgets, AutoAttack."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lib.attacks import autoattack, checks
from lib.attacks.steps import Threat
from lib.data import Dataset
from lib.evaluation import points
from lib.evaluation.reading import read
from lib.evaluation.stats import interval
from lib.operating_point import OperatingPoint
from lib.workbook import lambda_figures, lambda_study, networks, style, tables
from lib.workbook.lambda_study import Member
from lib.workbook.parameters import Settings

BUDGETS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the curve, in the customary epsilon
AUTOATTACK = {"quick": dict(standard=1, rand=1, iterations=5), "laptop": dict(standard=2, rand=1, iterations=100),
              "paper": dict(standard=4, rand=2, iterations=100)}  # how many of its attacks: at paper as published


def threats(dataset: Dataset, preset: str) -> dict[str, Threat]:
    """The paper's attackers by name. PGD-20's step: by its formula, min(1.25 ε, ε + 4/255) / 20, or left at that of its
    7-step training attack; and ε / 4 (2/255 of 8/255). At quick size 10 steps instead of 20."""
    epsilon, steps = dataset.threat["epsilon"], 10 if preset == "quick" else 20
    reach = min(1.25 * epsilon, epsilon + 4 / 255)
    return {"FGSM": Threat(epsilon, algorithm="fgsm"), "PGD-7": Threat(epsilon, reach / 7, 7),
            f"PGD-{steps}, step by formula": Threat(epsilon, reach / steps, steps),
            f"PGD-{steps}, step of training": Threat(epsilon, reach / 7, steps),
            f"PGD-{steps}, step ε/4": Threat(epsilon, epsilon / 4, steps),
            f"CW∞, PGD-{steps}": Threat(epsilon, reach / steps, steps, loss="margin")}


def plan(found: Mapping[str, Threat]):
    """What a record of these threats records: each, white-box at every published point."""
    return lambda network: points.under(list(found.values()), points.published(network))


def right(member: Member, at: OperatingPoint, threat: Threat) -> np.ndarray:
    return read(member.record, at, threat=threat).right("main")


def worst(member: Member, at: OperatingPoint, found: Mapping[str, Threat]) -> np.ndarray:
    """(N,) each image's lowest share over clean and all of these threats."""
    clean = read(member.record, at).right("clean")
    return np.minimum.reduce([clean, *(right(member, at, t) for t in found.values())])


def table(members: Mapping[str, Member], found: Mapping[str, Threat]) -> pd.DataFrame:
    """Accuracy in percent: a line per method and point, a column per attacker, then the worst of all per image."""
    lines = {}
    for member in members.values():
        for at in points.published(member.network):
            line = {"clean": lambda_study.percent(read(member.record, at).right("clean"))}
            line |= {name: lambda_study.percent(right(member, at, t)) for name, t in found.items()}
            line["worst of all, per image"] = lambda_study.percent(worst(member, at, found), True)
            lines[member.label, points.name(at)] = line
    made = pd.DataFrame(lines).T
    made.index.names = ["method", "operating point"]
    return tables._plain(made)


def figure(members: Mapping[str, Member], found: Mapping[str, Threat], caption: str) -> go.Figure:
    """Figs. 10 and 14: each method's most robust point under every attacker."""
    fig = style.figure("The most robust point of each method, attacker by attacker", caption)
    named = [name.replace(", ", "<br>") for name in (*found, "worst of all, per image")]
    for member in members.values():
        at = member.point(1.0)
        value, error = lambda_figures.bars([*(right(member, at, t) for t in found.values()),
                                            worst(member, at, found)])
        tint = lambda_figures.colour(member)
        fig.add_scatter(x=named, y=value, error_y=error | {"color": tint}, mode="markers",
                        marker=dict(size=10, color=tint), name=f"{member.label}, {points.name(at)}")
    fig.update_layout(scattermode="group", scattergap=0.6)
    fig.update_xaxes(type="category", showgrid=False, ticks="")
    fig.update_yaxes(title_text="robust accuracy, %", range=[-2, 102])
    return fig


def budgets(members: Mapping[str, Member], settings: Settings, dataset: Dataset) -> dict[str, list[np.ndarray]]:
    """{method and point: for each of BUDGETS (N,) shares right under PGD}: at λ_n = 0 and 1 of every method."""
    strongest = list(threats(dataset, settings.preset).values())[-2]
    swept = [dataclasses.replace(strongest, epsilon=min(1.0, b * strongest.epsilon), step_size=b * strongest.step_size)
             for b in BUDGETS]
    result = {}
    for member in members.values():
        ends = tuple(dict.fromkeys((member.point(0.0), member.point(1.0))))
        made = lambda_study.record(settings, member.trained, dataset,
                                 plan=lambda network, at=ends: points.under(swept, at))
        for at in ends:
            result[f"{member.label}, {points.name(at)}"] = [
                read(made, at).right("clean"),
                *(read(made, at, threat=t).right("main") for t in swept)]
    return result


def budget_figure(found: Mapping[str, list[np.ndarray]], caption: str) -> go.Figure:
    """Accuracy against ε; a defence whose curve does not reach chance at a large ε hides its gradients."""
    fig = style.figure("Accuracy against the attacker's budget", caption, margin=dict(l=64, r=250, t=72, b=52),
                       legend=dict(orientation="v", x=1.01, xanchor="left", y=1, yanchor="top"))
    for place, (name, shares) in enumerate(found.items()):
        value, error = lambda_figures.bars(shares)
        tint = style.CYCLE[place % len(style.CYCLE)]
        fig.add_scatter(x=[0.0, *BUDGETS], y=value, error_y=error | {"color": tint}, name=name,
                        line=dict(color=tint, dash="dot" if place >= len(style.CYCLE) else "solid"))
    fig.update_xaxes(title_text="ε, in the customary one", tickvals=[0, *BUDGETS])
    fig.update_yaxes(title_text="accuracy, %", range=[-2, 102])
    return fig


def soundness(members: Mapping[str, Member], settings: Settings, dataset: Dataset, images: int = 64) -> pd.DataFrame:
    """Sanity checks of PGD at every method's most robust point: did each hold, and what was measured."""
    x, y = dataset.test[:min(images, settings.images)].floats()
    threat, lines = networks.threat_of(settings, dataset), {}
    for member in members.values():
        subject = checks.Subject(member.network, x, y, point=member.point(1.0), seed=settings.seed)
        found = {"ε 0 changes no answer (images changed)": checks.zero_budget(subject, threat),
                 "gradients are neither 0 nor infinite (share that is)": checks.gradient_health(subject),
                 "the softmax is not saturated (share that is)": checks.saturation(subject),
                 "one step is not the stronger (share only it breaks)": checks.fgsm_within_pgd(subject, threat),
                 "an unlimited budget breaks all (share left)": checks.unbounded(subject, steps=50, restarts=2)}
        lines[member.label] = {name: f"{'yes' if check.passed else 'NO'} ({check.value:.3g})"
                               for name, check in found.items()}
    return pd.DataFrame(lines)


def auto(members: Mapping[str, Member], settings: Settings, dataset: Dataset, images: int,
         draws: int = 20) -> list[dict]:
    """AutoAttack where its conditions allow: standard on points without noise, rand on the noisy one. Each line: (N,)
    "verdict" of AutoAttack itself, "judged" mean over draws, flags. Below preset paper only the first of its attacks
    run, and it says so: few images hardly make it faster, as its thousands of passes follow one another."""
    x, y = dataset.test[:images].floats()
    size, lines = AUTOATTACK[settings.preset], []
    for member in members.values():
        for at in dict.fromkeys((member.point(1.0), points.quiet(member.point(1.0)))):
            noisy = member.network.conditions(at).noisy
            version = "rand" if noisy else "standard"
            ran, iterations = autoattack.ATTACKS[version][:size[version]], size["iterations"]
            found = autoattack.run(member.network, x, y, dataset.threat["epsilon"], version=version, point=at,
                                   seed=settings.seed, attacks=ran, iterations=iterations)
            lines.append({"method": member.label, "point": points.name(at), "version": version,
                          "attacks": "as published" if settings.preset == "paper" else
                          f"{', '.join(ran).upper()}, {iterations} iterations: not AutoAttack",
                          "verdict": found.robust.cpu().numpy(), "flags": "; ".join(found.flags) or tables.DASH,
                          "judged": judged(member, found.adversarial, y, at, draws if noisy else 1)})
    return lines


@torch.inference_mode()
def judged(member: Member, images: torch.Tensor, labels: torch.Tensor, at: OperatingPoint, draws: int) -> np.ndarray:
    """(N,) share of frozen draws in which each image is right."""
    frozen = [at.replace(draw=d) for d in range(draws)] if draws > 1 else [at]
    right = [member.network(images, point)[-1].argmax(-1) == labels for point in frozen]
    return torch.stack(right).float().mean(0).cpu().numpy()


def auto_table(lines: list[dict]) -> pd.DataFrame:
    """Fig. 11: AutoAttack's verdict with its interval, and its images judged over draws."""
    made = pd.DataFrame([{
        "method": line["method"], "operating point": line["point"], "version": line["version"],
        "attacks": line["attacks"], "images": len(line["verdict"]),
        "AutoAttack's verdict": lambda_study.percent(line["verdict"], True),
        "its images, mean over draws": lambda_study.percent(line["judged"]), "its flags": line["flags"]}
        for line in lines])
    return tables._plain(made.set_index(["method", "operating point"]))


def auto_rows(lines: list[dict], settings: Settings, dataset: Dataset) -> list[dict]:
    """The same as tidy rows."""
    common = {"experiment": settings.notebook, "dataset": dataset.name, "data_variant": dataset.variant,
              "split": "test", "seed": settings.seed, "preset": settings.preset, "weights": settings.weights,
              "exit": "main", "epsilon": dataset.threat["epsilon"], "attack_mode": "eval"}
    return [{**common, "defence": line["method"], "evaluated_at": line["point"], "images": len(line["verdict"]),
             "attack": f"autoattack {line['version']} ({line['attacks']})", "metric": metric,
             **interval(line[which])._asdict()}
            for line in lines for metric, which in (("robust_accuracy", "verdict"), ("judged_accuracy", "judged"))]


def verdicts(members: Mapping[str, Member], found: Mapping[str, Threat],
             curve: Mapping[str, list[np.ndarray]]) -> pd.DataFrame:
    """Do the attackers order as they must, does the largest budget leave nothing, and does FLOAT stay ahead?"""
    flt, names = members["float"], list(found)
    at = flt.point(1.0)
    formula, training, cw = (found[names[i]] for i in (2, 3, 5))
    lines = [tables.verdict("FGSM leaves FLOAT's (1, BN_A) more accuracy than PGD", right(flt, at, found["FGSM"]),
                            right(flt, at, formula)),
             tables.verdict("the formula's step leaves more than the training step", right(flt, at, formula),
                            right(flt, at, training)),
             tables.verdict("CW∞ leaves less than PGD on the cross-entropy", right(flt, at, formula),
                            right(flt, at, cw))]
    for rival in ("dual_bn", "oat", "pgd_at1"):
        if rival in members:
            other = members[rival]
            line = tables.verdict(f"at λ = 1, under the worst of all, FLOAT is more robust than {other.label}",
                                  worst(flt, at, found), worst(other, other.point(1.0), found))
            knows = lambda_study.learned(flt.read(at), other.read(1.0))
            lines.append(line if knows else line | {"verdict": "too small to tell: one of them has hardly learned"})
    chance = 1 / flt.network.classes
    leaves = {name: interval(shares[-1]).low <= chance for name, shares in curve.items()}
    failed = [name for name, gone in leaves.items() if not gone]
    lines.append({"claim": f"at {BUDGETS[-1]:g} ε nobody is surely above chance", "difference": tables.DASH,
                  "95 % interval": tables.DASH, "images": len(next(iter(curve.values()))[0]),
                  "verdict": "held" if not failed else f"did not hold for {', '.join(failed)}"})
    return tables.verdicts(*lines)
