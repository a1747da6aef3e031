"""A study: several networks of a table of the paper, attacked alike on the same images and read at thresholds.

    settings = studies.resolve(globals(), "12_rdi_resnet38", {"dataset": {"rdi_resnet38": DEFENCES}}, images=…)
    trained = studies.trained(settings, {"main": ("rdi_resnet38", "main"), …})
    readings = studies.study(settings, trained)
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import data
from lib.evaluation import rows
from lib.evaluation.reading import Reading
from lib.evaluation.reading import read as read_record
from lib.evaluation.record import Record
from lib.training import recipes
from lib.training.recipe import Recipe
from lib.workbook import networks, parameters, style
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.subject import Subject

PREFERRED = ("cifar10", "cifar10_jpeg", "mnist", "fashion_mnist", "digits")  # of shipped networks, the first is taken


@dataclass(frozen=True, eq=False)
class TrainedReading(Reading):
    """A reading that knows its network."""

    trained: Trained | None = None


def resolve(namespace: dict, notebook: str, needs: Mapping[str, Mapping[str, Sequence[str]]],
            order: Sequence[str] = PREFERRED, **by_preset) -> Settings:
    """`parameters.resolve` for a notebook with parameters that name datasets.

    needs: {parameter: {network: defences}}. With shipped weights "auto" means the first dataset of `order` on which all
    of these networks came along; where there is none, the quick size is trained instead, and a line says so.
    """
    settings = parameters.resolve(namespace, notebook, **by_preset)
    for parameter, families in needs.items() if settings.weights == "shipped" else ():
        asked = order if namespace[parameter] == "auto" else (namespace[parameter],)
        found = [name for name in asked if all(networks.shipped(settings, f"{network}-{name}-{defence}")
                                               for network, defences in families.items() for defence in defences)]
        if not found:
            return trained_here(namespace, notebook, **by_preset)
        setattr(settings, parameter, found[0])
    return settings


def trained_here(namespace: dict, notebook: str, **by_preset) -> Settings:
    """What is done instead, and said, where a notebook's networks did not come along: the quick size is trained."""
    print("The networks of this notebook did not come with the repository: these are of preset quick, trained right "
          "here in seconds.\nThey show how it works, not what the paper's networks do.")
    return parameters.resolve({**namespace, "preset": "quick", "weights": "train"}, notebook, **by_preset)


def dataset(settings: Settings, name: str | None = None, shape: tuple[int, int, int] | None = None) -> data.Dataset:
    """The dataset of the settings in the shape of the preset's networks; a shipped notebook downloads nothing."""
    name = name or settings.dataset
    if name == "digits" and shape is None:
        shape = tuple(recipes.find(f"resnet38-{name}-main-{settings.preset}").network["input_shape"])
    return _loaded(name, settings.device, shape, settings.weights == "train")


@functools.lru_cache(maxsize=2)  # each network of a study asks for it
def _loaded(name: str, device: str, shape: tuple[int, int, int] | None, download: bool) -> data.Dataset:
    return data.load(name, device=device, shape=shape, download=download)


def recipe(settings: Settings, network: str, defence: str, name: str | None = None) -> Recipe:
    return networks.recipe(settings, network, name or settings.dataset, defence)


def obtain(settings: Settings, network: str, defence: str, name: str | None = None) -> Trained:
    return networks.obtain(settings, network, name or settings.dataset, defence)


def trained(settings: Settings, asked: Mapping[str, tuple[str, ...]]) -> dict[str, Trained]:
    """{label: its network} for {label: (network, defence) or (network, defence, dataset)}, trained once per run; of
    shipped weights those that came along."""
    found = {}
    for label, (network, defence, *where) in asked.items():
        family = f"{network}-{where[0] if where else settings.dataset}-{defence}"
        if settings.weights == "train" or networks.shipped(settings, family):
            found[label] = obtain(settings, network, defence, *where)
    return found


def study(settings: Settings, trained: Mapping[str, Trained], thresholds: str | None = None,
          **options) -> dict[str, TrainedReading]:
    """{label: its reading}: of the record that came with a network, or of one made here (options: `networks.record`).

    Only then its dataset is opened: a page that shows shipped records needs none.
    """
    found = {}
    for label, one in trained.items():
        record = None if options else networks.recorded(settings, one)
        if record is None:
            images = dataset(settings, one.dataset, one.network.input_shape)
            record = networks.record(settings, one, images, settings.images, **options)
        found[label] = read(settings, one, record, thresholds)
    return found


def read(settings: Settings, trained: Trained, record: Record, source: str | None = None) -> TrainedReading:
    """A record at thresholds of `source` (default: the settings'); a single exit has none."""
    found = read_record(record, thresholds=source or settings.thresholds if record.num_exits > 1 else None)
    return TrainedReading(record, found.point, found.thresholds, found.source, trained=trained)


def write(settings: Settings, readings: Mapping[str, TrainedReading]) -> Path:
    """All numbers of the readings as tidy rows in the run's table; returns its path."""
    told = dict(experiment=settings.notebook, preset=settings.preset)
    for reading in readings.values():
        rows.append(settings.table, rows.of(reading, **told, weights=reading.trained.weights))
    return settings.table


def caption(settings: Settings, readings: Mapping[str, TrainedReading]) -> str:
    """What every number of these readings stands on, in one line."""
    first = next(iter(readings.values()))
    meta, sources = first.record.meta, sorted({r.source for r in readings.values()} - {"none"})
    views = [v for v in first.record.views if v.threat]
    attack = f"{views[0].threat.algorithm.upper()}-{views[0].threat.steps}" if views else "no attack"
    thresholds = f" · thresholds: {', '.join(sources)}" if sources else ""
    return (f"{first.record.images:,} test images of {style.dataset(meta)} · {attack} · "
            f"seed {meta['seed']} · preset {settings.preset}{thresholds} · 95 % intervals")


def subjects(readings: Mapping[str, TrainedReading]) -> dict[str, Subject]:
    """What an explorer shows of these networks, the last one first."""
    return {style.label(label): networks.subject(
                reading.record, None if reading.trained.weights == "record" else reading.trained.network)
            for label, reading in reversed(readings.items())}
