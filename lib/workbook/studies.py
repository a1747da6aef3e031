"""A study: several networks of a table of the paper, attacked alike on the same images and read at thresholds.

    settings = studies.resolve(globals(), "12_rdi_resnet38", {"dataset": {"rdi_resnet38": DEFENCES}}, images=…)
    dataset = studies.dataset(settings)
    readings = studies.study(settings, dataset, {"main": ("rdi_resnet38", "main"), …})
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

import lib
from lib import data
from lib.evaluation import rows
from lib.evaluation.reading import Reading as Numbers
from lib.evaluation.reading import read as read_record
from lib.evaluation.record import Record
from lib.models import zoo
from lib.models.cost import MEBI
from lib.models.cost import cost as count
from lib.training import recipes
from lib.training.recipe import Recipe
from lib.workbook import networks, parameters, style, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import TABLES

AS_IN_THE_PAPER = ("mnist", "cifar10", "cifar10_png")  # numbers on these may be set against the paper's
DATASETS = ("cifar10", "cifar10_jpeg", "mnist", "fashion_mnist", "digits")  # of shipped networks, the first is taken
QUANTITIES = ("clean", "paper_worst", "union", "paper_mflops", "attacked_mflops", "saving")
SPOKEN = tables.QUANTITIES | {"paper_mflops": "MFlops as the paper counts, clean images",
                              "attacked_mflops": "MFlops as the paper counts, worst form",
                              "saving": "true saving, clean images, %"}


@dataclass(frozen=True, eq=False)
class Reading(Numbers):
    """A reading that knows its network."""

    trained: Trained | None = None

    @cached_property
    def summary(self) -> dict:
        return tables.summary(self)


def resolve(namespace: dict, notebook: str, needs: Mapping[str, Mapping[str, Sequence[str]]], **by_preset) -> Settings:
    """`parameters.resolve` for a notebook with parameters that name datasets.

    needs: {parameter: {network: defences}}. With shipped weights "auto" means a dataset on which all of these networks
    came along; where there is none, the quick size is trained instead, and a line says so.
    """
    settings = parameters.resolve(namespace, notebook, **by_preset)
    if settings.weights == "shipped":
        found = {name: shipped_dataset(families, namespace[name], settings.preset) for name, families in needs.items()}
        if all(found.values()):
            vars(settings).update(found)
        else:
            settings = trained_here(namespace, notebook, **by_preset)
    return settings


def trained_here(namespace: dict, notebook: str, **by_preset) -> Settings:
    """What is done instead, and said, where a notebook's networks did not come along: the quick size is trained."""
    print("The networks of this notebook did not come with the repository: these are of preset quick, trained right "
          "here in seconds.\nThey show how it works, not what the paper's networks do.")
    return parameters.resolve({**namespace, "preset": "quick", "weights": "train"}, notebook, **by_preset)


def shipped_dataset(families: Mapping[str, Sequence[str]], asked: str, preset: str) -> str | None:
    """The dataset on which all these networks came with the repository: the asked one, or for "auto" the first."""
    names = [f"{network}-{{}}-{defence}" for network, defences in families.items() for defence in defences]
    for name in DATASETS if asked == "auto" else (asked,):
        if all(networks.shipped(lib.CHECKPOINTS, family.format(name), preset) for family in names):
            return name
    return None


def dataset(settings: Settings, name: str | None = None, shape: tuple[int, int, int] | None = None) -> data.Dataset:
    """The dataset of the settings in the shape of the preset's networks; a shipped notebook downloads nothing."""
    name = name or settings.dataset
    if name == "digits" and shape is None:
        shape = tuple(recipes.find(f"resnet38-{name}-main-{settings.preset}").network["input_shape"])
    return data.load(name, device=settings.device, shape=shape, download=settings.weights == "train")


def recipe(settings: Settings, network: str, defence: str, name: str | None = None) -> Recipe:
    return networks.recipe(settings, network, name or settings.dataset, defence)


def obtain(settings: Settings, network: str, defence: str, name: str | None = None) -> Trained:
    return networks.obtain(settings, network, name or settings.dataset, defence)


def study(settings: Settings, images: data.Dataset, asked: Mapping[str, tuple[str, str] | Trained],
          **options) -> dict[str, Reading]:
    """{label: its reading} for {label: (network, defence) or what is trained}; options as for `networks.record`."""
    found = {label: which if isinstance(which, Trained) else obtain(settings, *which, images.name)
             for label, which in asked.items()}
    return {label: read(settings, trained, networks.record(settings, trained, images, settings.images, **options))
            for label, trained in found.items()}


def read(settings: Settings, trained: Trained, record: Record, source: str | None = None) -> Reading:
    """A record at thresholds of `source` (default: the settings'); a single exit has none."""
    found = read_record(record, thresholds=source or settings.thresholds if record.num_exits > 1 else None)
    return Reading(record, found.point, found.thresholds, found.source, trained=trained)


def write(settings: Settings, readings: Mapping[str, Reading]) -> Path:
    """All numbers of the readings as tidy rows in the run's table; returns its path."""
    path = settings.table
    told = dict(experiment=settings.notebook, preset=settings.preset)
    for reading in readings.values():
        rows.append(path, rows.of(reading, **told, weights=reading.trained.weights))
    return path


def comparable(reading: Reading) -> bool:
    """Whether a number may be set against the paper's: its schedule, dataset and PGD steps, and no copy with losses."""
    meta = reading.record.meta
    if meta.get("dataset") not in AS_IN_THE_PAPER or not reading.trained.name.endswith(("-paper", "_released")):
        return False
    steps = data.SOURCES[recipes.COPIES.get(meta["dataset"], meta["dataset"])].threat["steps"]
    return all(v.threat.steps == steps for v in reading.record.views if v.threat and v.threat.algorithm == "pgd")


def caption(settings: Settings, readings: Mapping[str, Reading]) -> str:
    """What every number of these readings stands on, in one line."""
    first = next(iter(readings.values()))
    meta, sources = first.record.meta, sorted({r.source for r in readings.values()} - {"none"})
    views = [v for v in first.record.views if v.threat]
    attack = f"{views[0].threat.algorithm.upper()}-{views[0].threat.steps}" if views else "no attack"
    thresholds = f" · thresholds: {', '.join(sources)}" if sources else ""
    return (f"{first.record.images:,} test images of {meta['dataset']} ({meta['data_variant']}) · {attack} · "
            f"seed {meta['seed']} · preset {settings.preset}{thresholds} · 95 % intervals")


def beside(numbers: int | Sequence[int], settings: Settings, readings: Mapping[str, Reading],
           quantities=QUANTITIES) -> pd.DataFrame:
    """One or several tables of the paper beside the readings, a line per network and quantity.

    The difference is a dash where ours is another dataset, size or copy: two such numbers do not measure the same. Of a
    network of preset quick, which has hardly learned, no number stands there, and a line says why.
    The paper's MFlops stand beside those of attacked images, which they fit (it does not say on which images they are).
    """
    _say_what_is_quick(readings)
    return _beside(numbers, readings, quantities)


def quick(trained: Trained) -> bool:
    """Whether it was trained for seconds only."""
    return bool({"glance", "quick"} & set(trained.name.split("-")))


def _say_what_is_quick(readings: Mapping[str, Reading]):
    if any(quick(reading.trained) for reading in readings.values()):
        print("Networks of preset quick were trained for seconds and have hardly learned: what they reach says\n"
              "nothing of the paper's networks, so a dash stands in its place.")


def _beside(numbers: int | Sequence[int], readings: Mapping[str, Reading], quantities: Sequence[str]) -> pd.DataFrame:
    lines = []
    for label, reading in readings.items():
        for quantity in quantities:
            if reading.record.num_exits == 1 and quantity in ("attacked_mflops", "saving"):
                continue  # the same for every image
            said = published(numbers, label, quantity, reading.record.num_exits)
            found = None if quick(reading.trained) else tables.measured(reading.summary, quantity)
            value, low, high = found or (None, None, None)
            fair = said is not None and value is not None and comparable(reading)
            lines.append({"network": spoken(label), "quantity": SPOKEN.get(quantity, style.spoken(quantity)),
                          "published": tables.number(said), "measured": tables.number(value),
                          "95 % interval": tables.DASH if low is None else f"{low:.1f} to {high:.1f}",
                          "difference": f"{value - said:+.1f}" if fair else tables.DASH})
    return pd.DataFrame(lines).set_index(["network", "quantity"])


def both(ways: Mapping[str, Mapping[str, Reading]], numbers: int | Sequence[int], settings: Settings, label: str,
         quantities: Sequence[str]) -> pd.DataFrame:
    """One network's published numbers beside several ways to run the attack: a line per quantity, a column per way."""
    _say_what_is_quick(next(iter(ways.values())))
    columns = {}
    for name, readings in ways.items():
        table = _beside(numbers, {label: readings[label]}, quantities).droplevel("network")
        columns.setdefault("published", table["published"])
        spans = table["95 % interval"].map(lambda span: "" if span == tables.DASH else f" ({span})")
        columns[name] = table["measured"] + spans
    return pd.DataFrame(columns)


def published(numbers: int | Sequence[int], row: str, quantity: str, num_exits: int) -> float | None:
    """What the first of these tables to state it says; MFlops of a network with early exits are of attacked images."""
    if num_exits > 1:
        quantity = {"attacked_mflops": "paper_mflops", "paper_mflops": ""}.get(quantity, quantity)
    said = (TABLES[n].value(row, quantity) for n in np.atleast_1d(numbers))
    return next((value for value in said if value is not None), None)


def saves(claim: str, reading: Reading, view: str = "clean") -> dict:
    """A verdict: do these images truly cost less than in the plain network?"""
    spent = reading.spent(view)
    return tables.verdict(claim, np.ones_like(spent), spent, unit="% of the MACs")


def spoken(label: str) -> str:
    """A network's name as people say it."""
    return {"main": "main branch", "max_average": "max-average", "resnet38": "ResNet-38", "smallcnn": "SmallCNN",
            "mobilenet_v2": "MobileNetV2", "atmc": "ATMC"}.get(label, label)


def costs(backbone: str, *designs: str, **options) -> pd.DataFrame:
    """What leaving at each exit costs, of untrained networks at full size: a line per exit of each design of exits."""
    lines = []
    for design in designs:
        network = zoo.build(backbone, exits=design, **options)
        counted = count(network)
        for name, leave in zip(style.exit_names(network.num_exits), counted.exits, strict=True):
            lines.append({"exits": design, "leaves at": name, "as the paper counts": f"{leave.paper_mflops:.2f}",
                          "all heads on the way": f"{leave.cumulative_conv_macs / MEBI:.2f}",
                          "true M MACs": f"{leave.cumulative_macs / 1e6:.2f}",
                          "parameters": f"{counted.parameters:,}"})
    return pd.DataFrame(lines).set_index(["exits", "leaves at"])
