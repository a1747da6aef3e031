"""The attackers of Tables 6 to 10, in both readings where paper and released code differ, and C&W beside them."""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from lib import data
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.workbook import networks, style, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.studies import Reading

WRM, WRM_BATCH = 0.3, 128  # "perturbation size": the loss's weight, no radius; the released form depends on the batch
FGSM, FGSM_RELEASED, SINHA, SINHA_RELEASED = "FGSM", "FGSM, released code", "WRM", "WRM, released code"


def options(settings: Settings, dataset: data.Dataset) -> dict[str, dict]:
    """{attacker: what `studies.study` needs for it}, from the dataset's customary budget; in fewer steps at quick."""
    usual, steps = networks.threat_of(settings, dataset), 20
    if settings.preset == "quick":
        usual, steps = dataclasses.replace(usual, steps=5, step_size=usual.epsilon / 2), 10
    found = {
        "PGD": usual, "C&W": dataclasses.replace(usual, loss="margin"),
        FGSM: Threat(usual.epsilon, algorithm="fgsm"), FGSM_RELEASED: Threat(usual.epsilon, algorithm="fgsm_authors"),
        SINHA: Threat(WRM, steps=steps, algorithm="wrm", random_start=False),
        SINHA_RELEASED: Threat(WRM, steps=steps, algorithm="wrm_authors"),
    }
    return {name: dict(threat=threat, batch_size=WRM_BATCH) for name, threat in found.items()}


def moved(trained: Trained, images: data.Split, attacks: Mapping[str, dict], seed: int) -> pd.DataFrame:
    """How far each attacker moves an image's pixels, in units of 1/255: the largest change, mean over the images."""
    network, (floats, labels) = trained.network, images.floats()
    lines = {}
    for name, about in attacks.items():
        made = forms.suite(network, floats, labels, about["threat"], ("main", "average"), seed=seed)
        lines[name] = {f"largest change of a pixel, {style.spoken(form)}":
                       f"{255 * (found - floats).abs().flatten(1).amax(1).mean().item():.1f}"
                       for form, found in made.items()}
    return pd.DataFrame(lines).T


def overview(found: Mapping[str, Mapping[str, Reading]]) -> pd.DataFrame:
    """ATA in percent, the paper's worst case with its interval: a line per attacker, a column per network."""
    def told(reading: Reading) -> str:
        value, low, high = tables.measured(reading, "paper_worst")
        return f"{value:.1f} ({low:.0f} to {high:.0f})"

    clean = {style.label(label): tables.number(tables.measured(reading, "clean")[0], 1)
             for label, reading in next(iter(found.values())).items()}
    lines = {name: {style.label(label): told(reading) for label, reading in readings.items()}
             for name, readings in found.items()}
    return pd.DataFrame({"no attack (TA)": clean} | lines).T


def worst_cases(found: Mapping[str, Mapping[str, Reading]]) -> dict[str, dict[str, tuple]]:
    """{network: {attacker: (ATA, low, high)}}, what `study_figures.dots` draws."""
    labels = next(iter(found.values()))
    return {label: {name: tables.measured(readings[label], "paper_worst") for name, readings in found.items()}
            for label in labels}
