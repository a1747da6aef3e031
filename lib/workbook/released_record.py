"""The weights that the authors of RDI-Nets released: their shipped record, or the file itself attacked here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lib
from lib import WorkbookError, checkpoints, data
from lib.attacks import forms
from lib.evaluation import recording
from lib.evaluation.reading import read
from lib.evaluation.record import Record, combine
from lib.models import released
from lib.models.network import Network
from lib.workbook import networks, studies
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.studies import TrainedReading
from lib.workbook.subject import Subject

FILE = "rdi_resnet38_released.pth.tar"  # as it was published
SHIPPED = f"{released.NAME}.safetensors"


@dataclass(frozen=True)
class Released:
    """reading: the record at the paper's thresholds.  restarts: one form, tried again and again on the first images.

    restarts, images, network are None where they are not on this machine.
    """

    reading: TrainedReading
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
    name = settings.file or FILE
    path, images = find(name), networks.at_hand("cifar10_png") or networks.at_hand("cifar10")
    here = path is not None and images is not None
    if not here and (settings.file or not (lib.ATLASES / SHIPPED).is_file()):
        lacking = "is neither a file nor below data/datasets" if path is None else "needs the CIFAR-10 test images"
        raise WorkbookError(f"{name} {lacking} (see data/README.md); leave `file` empty to read the shipped record")
    if settings.file or (here and settings.weights == "train"):
        source, (record, restarts, digest) = "file", attack(settings, path, images)
    else:
        source, record = "shipped", shipped(settings)
        digest, restarts = record.meta["checkpoint"], again(settings, lib.ATLASES / "repeats" / SHIPPED)
    network = None if path is None else lambda: checkpoints.load(path, settings.device).network
    trained = Trained(released.NAME, network and network(), digest, source)
    return Released(studies.read(settings, trained, record, "paper"), restarts, images, network)


def shipped(settings: Settings) -> Record:
    """The shipped record. Raises WorkbookError for another seed than its, or more images."""
    found = Record.load(lib.ATLASES / SHIPPED)
    if found.meta["seed"] != settings.seed:
        raise WorkbookError(f"the shipped record is of seed {found.meta['seed']}, not {settings.seed}; take that "
                            "one, or have the network attacked here (weights = \"train\", with its files at hand)")
    return networks.cut(settings, found)


def gates(record: Record, thresholds: Sequence[float]) -> np.ndarray | None:
    """(M,) who of every second image is right under the shipped attack that follows the gates at these thresholds; None
    where it did not come along, or was recorded on more images than the record has.

    Raises WorkbookError when it is of other weights or gates.
    """
    path = lib.ATLASES / "repeats" / f"{released.NAME}-gates.safetensors"
    if not path.is_file():
        return None
    found = Record.load(path)
    if found.meta["checkpoint"] != record.meta["checkpoint"] or not found.views[0].exact_at(thresholds):
        raise WorkbookError(f"{path.name} is of other weights or gates; record the released weights again")
    right = read(found, thresholds=thresholds).right("gate_aware")
    return right if len(right) == record.images // 2 else None


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
