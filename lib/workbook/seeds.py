"""Does the ordering of the defences outlast a change of seed? Each defence trained from several seeds, all alike.

    python -m lib.workbook.seeds        trains and records what is missing; a kill costs little

RDI-SmallCNN of half the width on Fashion-MNIST, by the laptop recipes shortened alike; only the records come along.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib import ATLASES, RUNS, data
from lib.attacks.steps import Threat
from lib.evaluation import atlas
from lib.evaluation.views import Atlas
from lib.training import loop, recipes
from lib.training.recipes import RDI, Recipe
from lib.workbook import studies, tables
from lib.workbook.networks import Trained
from lib.workbook.studies import Reading

FOLDER, SEEDS, IMAGES, STEPS = ATLASES / "repeats", (0, 1, 2), 1000, 20
SHORT = dict(iterations=300, epochs=None, batch_size=64, learning_rate=0.05, validate_every=10**6)


def recipe(defence: str, seed: int) -> Recipe:
    base = recipes.find(f"rdi_smallcnn-fashion_mnist-{defence}-laptop")
    return replace(base, seed=seed, network={**base.network, "width_multiplier": 0.5}, **SHORT)


def path(defence: str, seed: int) -> Path:
    return FOLDER / f"rdi_smallcnn-fashion_mnist-{defence}-seed{seed}.safetensors"


def make() -> None:
    """Train and record what is not there yet, seed after seed, so that each finished seed is a whole comparison."""
    images = data.load("fashion_mnist")
    threat = Threat(images.threat["epsilon"], images.threat["step_size"], STEPS)
    for seed in SEEDS:
        for defence in reversed(RDI):
            target, asked = path(defence, seed), recipe(defence, seed)
            if target.is_file():
                continue
            network = loop.obtain(asked, RUNS / "seeds" / target.stem, progress=False)
            found = atlas.record(network, images.test[:IMAGES], threat=threat, batch_size=125, progress=False,
                                 validation=images.validation, folder=RUNS / "seeds" / f"{target.stem}-record",
                                 dataset=images.name, data_variant=images.variant, defence=defence,
                                 training_seed=seed, recipe_digest=asked.digest())
            found.save(target)
            print(target.name, flush=True)


def load() -> dict[str, list[Reading]]:
    """{defence: its readings, a seed each} of the seeds that are there for every defence, at calibrated thresholds."""
    whole = [seed for seed in SEEDS if all(path(defence, seed).is_file() for defence in RDI)]
    found = {defence: [Atlas.load(path(defence, seed)) for seed in whole] for defence in RDI}
    return {defence: [Reading(Trained(path(defence, seed).stem, None, ""), record, record.thresholds("calibrated"),
                              "calibrated") for seed, record in zip(whole, records, strict=True)]
            for defence, records in found.items()}


def caption(found: dict[str, list[Reading]]) -> str:
    record = found["standard"][0].atlas
    return (f"{len(record.labels):,} test images of {record.meta['dataset']} · PGD-{STEPS}, epsilon 0.1 · "
            f"{len(found['standard'])} seeds of {SHORT['iterations']} iterations each · thresholds: calibrated")


def table(found: dict[str, list[Reading]]) -> pd.DataFrame:
    """In percent, the mean over the seeds and in brackets each seed: a line per defence."""
    lines = {}
    for defence, readings in found.items():
        line = {}
        for quantity in ("clean", "paper_worst", "union", "saving"):
            every = [reading.measured(quantity)[0] for reading in readings]
            said = f"{np.mean(every):.1f} ({', '.join(f'{value:.1f}' for value in every)})"
            line[studies.SPOKEN[quantity]] = said
        lines[studies.spoken(defence)] = line
    return pd.DataFrame(lines).T


def verdicts(found: dict[str, list[Reading]]) -> list[dict]:
    """The paper's ordering, each step on the same images and seeds; the bootstrap draws both anew."""
    def right(defence: str, quantity: str) -> np.ndarray:
        return np.stack([reading.right(quantity) for reading in found[defence]])

    lines = [tables.verdict(
        f"{studies.spoken(better)} withstands more than {studies.spoken(worse)} (paper's worst case)",
        right(better, "paper_worst"), right(worse, "paper_worst")) for worse, better in itertools.pairwise(RDI)]
    lines.append(tables.verdict("max-average withstands more than average (per image)", right("max_average", "union"),
                                right("average", "union")))
    return [*lines, tables.verdict("robustness costs clean accuracy (standard above max-average)",
                                   right("standard", "clean"), right("max_average", "clean"))]


if __name__ == "__main__":
    make()
