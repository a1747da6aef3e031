"""The weights that the authors of RDI-Nets released: their shipped record, or the file itself attacked here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import lib
from lib import WorkbookError, checkpoints, data
from lib.attacks import forms
from lib.evaluation import recording
from lib.evaluation.reading import read
from lib.evaluation.record import Record, combine
from lib.evaluation.stats import wilson
from lib.models import released
from lib.models.network import Network
from lib.workbook import networks, studies, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import TABLES
from lib.workbook.studies import Reading
from lib.workbook.subject import Subject

FILE = "rdi_resnet38_released.pth.tar"  # as it was published
# What the authors' own code says of the first 500 test images, clean, at the paper's thresholds.
REFERENCE = {"right": 426, "leave at each exit": [37, 53, 71, 113, 87, 71, 68],
             "right at each exit": [367, 378, 399, 410, 414, 433, 431]}


@dataclass(frozen=True)
class Released:
    """reading: the record at the paper's thresholds.  restarts: one form, tried again and again on the first images.

    restarts, images, network are None where they are not on this machine.
    """

    reading: Reading
    restarts: Record | None
    images: data.Dataset | None
    network: Callable[[], Network] | None

    @property
    def subject(self) -> Subject:
        record = self.reading.record
        if self.images is None:
            return Subject(record)
        return Subject(record, self.images.test, self.network)


def obtain(settings: Settings) -> Released:
    """Attacks of the file that is named, or of the released one where weights is "train" and all is at hand; else the
    shipped record, as many of its images and restarts as were named.

    Raises WorkbookError where what was named is not at hand, or neither is.
    """
    name, shipped = settings.file or FILE, lib.ATLASES / f"{released.NAME}.safetensors"
    path, images = find(name), networks.at_hand("cifar10_png") or networks.at_hand("cifar10")
    here = path is not None and images is not None
    if not here and (settings.file or not shipped.is_file()):
        lacking = "is neither a file nor below data/datasets" if path is None else "needs the CIFAR-10 test images"
        raise WorkbookError(f"{name} {lacking} (see data/README.md); leave `file` empty to read the shipped record")
    if settings.file or (here and settings.weights == "train"):
        source, (record, restarts, digest) = "file", attack(settings, path, images)
    else:
        source, record = "shipped", networks.cut(settings, networks.of_seed(settings, Record.load(shipped)))
        digest, restarts = record.meta["checkpoint"], again(settings, lib.ATLASES / "repeats" / shipped.name)
    network = None if path is None else lambda: checkpoints.load(path, settings.device).network
    trained = Trained(released.NAME, network and network(), digest, source)
    return Released(studies.read(settings, trained, record, "paper"), restarts, images, network)


def find(name: str) -> Path | None:
    """The file that a person means by `name`."""
    return next(filter(Path.is_file, lib.candidates(name)), None)


def again(settings: Settings, path: Path) -> Record | None:
    """The shipped restarts on the images that were named, as many of them as were named; None where none came along."""
    if not path.is_file():
        return None
    found = Record.load(path)
    if "restarts" in settings.named:
        if settings.restarts > len(found.views):
            raise WorkbookError(f"restarts {settings.restarts} are more than the {len(found.views)} that were recorded")
        found = found.take(range(settings.restarts))
    images = settings.images if "images" in settings.named else found.images
    return found.select(images=slice(0, min(images, found.images)))


def attack(settings: Settings, path: Path, images: data.Dataset) -> tuple[Record, Record, str]:
    """(every form, restarts of the average attack, digest) of the file on the first test images; a kill costs a batch.

    No images are held out: the weights have seen all training images, so the thresholds are the published ones.
    """
    found, threat = checkpoints.load(path, settings.device), networks.threat_of(settings, images)
    told = dict(batch_size=50, checkpoint=found.digest, dataset="cifar10", defence="max_average",
                data_variant=f"lossless, first {settings.images:,}")
    folder = settings.run_dir / f"released-{settings.images}-{threat.steps}"
    every, again = (recording.suite(found.network, threat, which) for which in (
        ("clean", *forms.names(found.network.num_exits)), ("average",)))
    record = recording.record(found.network, networks.first(settings, images, settings.images), every,
                              seed=settings.seed, folder=folder / f"seed{settings.seed}", **told)
    seeds = range(settings.seed + 1, settings.seed + 1 + settings.restarts)
    restarts = [recording.record(found.network, images.test[:min(settings.images, 256)], again, seed=seed,
                                 folder=folder / f"restart{seed}", **told) for seed in seeds]
    return record, combine(restarts), found.digest


def reference(reading: Reading) -> pd.DataFrame:
    """The authors' own counts on the first 500 clean images beside ours; a dash where the record holds fewer."""
    ours = dict.fromkeys(REFERENCE, tables.DASH)
    if reading.record.images >= 500:
        first = read(reading.record.select(("clean",), slice(0, 500)), thresholds=reading.thresholds)
        counts = (int(first.right("clean").sum()), (500 * first.share()).round().astype(int).tolist(),
                  first.alone().sum(1).astype(int).tolist())
        ours = dict(zip(REFERENCE, counts, strict=True))
    return pd.DataFrame({"authors' code": REFERENCE, "here": ours})


def tries(found: Released) -> dict[str, np.ndarray]:
    """Who is right, on the images that have restarts (else on all): under the worst form, and under several forms."""
    reading, again = found.reading, None
    if found.restarts is not None:
        reading = dataclasses.replace(reading, record=reading.record.select(images=slice(0, found.restarts.images)))
        again = read(found.restarts, thresholds=reading.thresholds)
    right = {"worst of the nine forms (the paper's statistic)": reading.right("paper_worst")}
    if again:
        right[f"all of {len(again.names)} restarts of the average attack"] = again.right("union")
    right["all of the nine forms"] = reading.right("paper_union")
    return right | {"all forms, random and gate-aware among them": reading.right("union")}


def control(found: Released) -> pd.DataFrame:
    """`tries` as a table with intervals."""
    lines = {}
    for name, right in tries(found).items():
        low, high = wilson(int(right.sum()), len(right))
        lines[name] = {"images": len(right), "right": int(right.sum()), "accuracy, %": f"{100 * right.mean():.1f}",
                       "95 % interval": f"{100 * low:.1f} to {100 * high:.1f}"}
    return pd.DataFrame(lines).T


def verdicts(found: Released) -> list[dict]:
    """What holds of the claims about the released network, and of its worst case."""
    reading, tried = found.reading, list(tries(found).values())
    worst = reading.paper_worst
    lines = [agrees("the published clean accuracy", reading, "max_average", "clean"),
             agrees("the published worst case", reading, "max_average", "paper_worst"),
             tables.verdict("nine forms break more than the worst of them", tried[0], tried[-2])]
    if found.restarts is not None:
        lines.append(tables.verdict("nine forms break more than as many restarts of one", tried[1], tried[2]))
    return [*lines,
            tables.verdict("an attack that follows the gates breaks more than the worst form",
                           reading.right("paper_worst"), reading.right("gate_aware")),
            tables.saves("leaving early saves true cost on clean images", reading),
            tables.saves("and on attacked ones", reading, worst),
            tables.verdict("attacked images cost more than clean ones", reading.spent(worst), reading.spent(),
                           unit="% of the MACs")]


def agrees(claim: str, reading: Reading, row: str, quantity: str, number: int = 3) -> dict:
    """A verdict: does the published number lie in the 95 % interval of ours?"""
    said, (value, low, high) = TABLES[number].value(row, quantity), tables.measured(reading, quantity)
    return {"claim": claim, "difference": f"{value - said:+.1f} points", "images": reading.record.images,
            "95 % interval": f"{low - said:+.1f} to {high - said:+.1f}",
            "verdict": "held" if low <= said <= high else "did not hold"}
