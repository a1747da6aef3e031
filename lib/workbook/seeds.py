"""Does the ordering of the defences outlast a change of seed? Each defence trained from several seeds, all alike.

    python -m lib.workbook.seeds        trains and records what is missing; a kill costs little

RDI-SmallCNN of half the width on Fashion-MNIST, by the laptop recipes shortened alike; only the records come along.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lib import ATLASES, RUNS, data
from lib.evaluation import recording
from lib.evaluation.record import Record
from lib.training import loop, recipes
from lib.training.recipe import Recipe
from lib.training.recipes import RDI
from lib.workbook import networks, parameters, studies, style, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.studies import Reading

SEEDS, IMAGES, STEPS = (0, 1, 2), 500, 20
SHORT = dict(iterations=300, epochs=None, batch_size=64, learning_rate=0.05, validate_every=10**6)


def recipe(defence: str, seed: int) -> Recipe:
    base = recipes.find(f"rdi_smallcnn-fashion_mnist-{defence}-laptop")
    network = {**base.network, "width_multiplier": 0.5}
    return dataclasses.replace(base, name=f"{base.name}-short", seed=seed, network=network, **SHORT)


def name(defence: str, seed: int) -> str:
    return f"rdi_smallcnn-fashion_mnist-{defence}-seed{seed}"


def place(defence: str, seed: int) -> Path:
    return ATLASES / "repeats" / f"{name(defence, seed)}.safetensors"


def make() -> None:
    """Train and record what is not there yet, seed after seed, so that each finished seed is a whole comparison."""
    images = data.load("fashion_mnist")
    threat = dataclasses.replace(networks.customary(images), steps=STEPS)
    for seed, defence in itertools.product(SEEDS, reversed(RDI)):
        called, asked = name(defence, seed), recipe(defence, seed)
        target = place(defence, seed)
        if target.is_file():
            continue
        network = loop.obtain(asked, RUNS / "seeds" / called)
        found = recording.record(network, images.test[:IMAGES], recording.suite(network, threat), batch_size=125,
                                 held_out=images.validation, folder=RUNS / "seeds" / f"{called}-record",
                                 dataset=images.name, data_variant=images.variant, defence=defence,
                                 training_seed=seed, recipe_digest=asked.digest())
        found.lightened().save(target)
        print(called, flush=True)


def whole() -> list[int]:
    """The seeds of which all four defences came along."""
    return networks.whole(SEEDS, lambda seed: [place(defence, seed) for defence in RDI])


def resolve(namespace: dict, notebook: str, **by_preset) -> Settings:
    """`parameters.resolve`; where fewer than two shipped seeds would be read, the quick size is trained instead."""
    settings = parameters.resolve(namespace, notebook, **by_preset)
    if settings.weights == "shipped" and len(whole()) < 2:
        settings = studies.trained_here(namespace, notebook, **by_preset)
    return settings


def obtain(settings: Settings) -> dict[str, list[Reading]]:
    """{defence: its readings, one per training} at the settings' thresholds: shipped, or trained in this run."""
    found = shipped(settings) if settings.weights == "shipped" else trained(settings)
    records: dict[str, list[Reading]] = {defence: [] for defence in RDI}
    for defence, network, record in found:
        records[defence].append(studies.read(settings, network, record))
    return records


def shipped(settings: Settings) -> Iterator[tuple[str, Trained, Record]]:
    for seed, defence in itertools.product(networks.trainings(settings, whole()), RDI):
        record = networks.cut(settings, Record.load(place(defence, seed)))
        yield defence, Trained(name(defence, seed), None, record.meta.get("checkpoint", ""), "shipped"), record


def trained(settings: Settings) -> Iterator[tuple[str, Trained, Record]]:
    for seed, defence in itertools.product(range(settings.seed, settings.seed + settings.seeds), RDI):
        own = Settings(**{**vars(settings), "seed": seed})
        network = studies.obtain(own, "rdi_smallcnn", defence)
        images = studies.dataset(own, shape=network.network.input_shape)
        yield defence, network, networks.record(own, network, images, settings.images)


def caption(settings: Settings, found: Mapping[str, list[Reading]]) -> str:
    """What every number of these readings stands on, in one line."""
    told = studies.caption(settings, {defence: readings[0] for defence, readings in found.items()})
    return f"{len(found['standard'])} trainings each · {told}"


def write(settings: Settings, found: Mapping[str, list[Reading]]) -> None:
    """The numbers of every training as tidy rows in the run's table."""
    studies.write(settings, {f"{defence} {n}": reading for defence, readings in found.items()
                             for n, reading in enumerate(readings)})


def measured(readings: list[Reading], quantity: str) -> tuple[float, float, float]:
    """(mean, smallest, largest) over the trainings, in the paper's units."""
    every = [tables.measured(reading, quantity)[0] for reading in readings]
    return float(np.mean(every)), min(every), max(every)


def table(found: Mapping[str, list[Reading]]) -> pd.DataFrame:
    """A line per defence: the mean over its trainings, in brackets the smallest and the largest."""
    lines = {}
    for defence, readings in found.items():
        lines[style.label(defence)] = line = {}
        for quantity in ("clean", "paper_worst", "union", "saving"):
            mean, low, high = measured(readings, quantity)
            line[tables.QUANTITIES[quantity]] = f"{mean:.1f} ({low:.1f} to {high:.1f})"
    return pd.DataFrame(lines).T


def series(found: Mapping[str, list[Reading]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """`measured` for `study_figures.dots`."""
    return {defence: {tables.QUANTITIES.get(quantity, style.spoken(quantity)): measured(readings, quantity)
                      for quantity in ("clean", "main", "average", "max_average", "paper_worst", "union")}
            for defence, readings in found.items()}


def verdicts(found: Mapping[str, list[Reading]]) -> pd.DataFrame:
    """The paper's ordering, each step on the same images and seeds; the bootstrap draws both anew."""
    def right(defence: str, quantity: str) -> np.ndarray:
        return np.stack([reading.right(quantity) for reading in found[defence]])

    lines = [tables.verdict(
        f"{style.label(better)} withstands more than {style.label(worse)} (paper's worst case)",
        right(better, "paper_worst"), right(worse, "paper_worst")) for worse, better in itertools.pairwise(RDI)]
    lines.append(tables.verdict("max-average withstands more than average (per image)", right("max_average", "union"),
                                right("average", "union")))
    lines.append(tables.verdict("robustness costs clean accuracy (standard above max-average)",
                                right("standard", "clean"), right("max_average", "clean")))
    return tables.verdicts(*lines)


if __name__ == "__main__":
    make()
