"""The weights that the authors of RDI-Nets released: their shipped record, or the file itself attacked here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lib
from lib import WorkbookError, checkpoints
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.checkpoints import Loaded
from lib.data import Split
from lib.evaluation import recording
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record, combine
from lib.models import released
from lib.workbook import subject
from lib.workbook.once_for_all import Trained
from lib.workbook.session import Session
from lib.workbook.subject import Subject

FILE = "rdi_resnet38_released.pth.tar"  # as it was published
SHIPPED = f"{released.NAME}.safetensors"


class Released(NamedTuple):
    """reading: the record at the paper's thresholds.  restarts: one form, tried again and again on the first images,
    None where none came along.  subject: what an explorer shows, with images and network where they are at hand.
    """

    reading: Reading
    restarts: Record | None
    subject: Subject


def load_or_attack(wb: Session) -> Released:
    """Attacks of the file that is named, or of the released one where weights is "train" and all is at hand; else the
    shipped record, as many of its images and restarts as were named.

    Raises WorkbookError where what was named is not at hand, or neither is.
    """
    name = wb.file or FILE
    path, images = find(name), subject.at_hand("cifar10_png") or subject.at_hand("cifar10")
    here = path is not None and images is not None
    if not here and (wb.file or not (lib.ATLASES / SHIPPED).is_file()):
        lacking = "is neither a file nor below data/datasets" if path is None else "needs the CIFAR-10 test images"
        raise WorkbookError(f"{name} {lacking} (see data/README.md); leave `file` empty to read the shipped record")
    if attacked := bool(wb.file) or (here and wb.weights == "train"):
        threat, few = wb.threat(images), range(wb.seed + 1, wb.seed + 1 + wb.restarts)
        record, restarts = attack(checkpoints.load(path, wb.device), wb.first(images), threat, wb.run_dir /
                                  f"released-{wb.images}-{threat.steps}-{wb.seed}", few, seed=wb.seed)
    else:
        record, restarts = shipped(wb), again(wb, lib.ATLASES / "repeats" / SHIPPED)
    network = path and checkpoints.load(path, wb.device).network
    trained = Trained(released.NAME, network, record.meta["checkpoint"], "file" if attacked else "shipped")
    explored = Subject(record) if images is None else Subject(record, images.test, network and (lambda: network))
    return Released(wb.read(trained, record, "paper"), restarts, explored)


def shipped(wb: Session) -> Record:
    """The shipped record. Raises WorkbookError for another seed than its, or more images."""
    found = Record.load(lib.ATLASES / SHIPPED)
    if found.meta["seed"] != wb.seed:
        raise WorkbookError(f"the shipped record is of seed {found.meta['seed']}, not {wb.seed}; take that "
                            "one, or have the network attacked here (weights = \"train\", with its files at hand)")
    return wb.cut(found)


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


def again(wb: Session, path: Path) -> Record | None:
    """The shipped restarts on the images that were named, as many of them as were named; None where none came along."""
    if not path.is_file():
        return None
    found = Record.load(path)
    if "restarts" in wb.named:
        if wb.restarts > len(found.views):
            raise WorkbookError(f"restarts {wb.restarts} are more than the {len(found.views)} that were recorded")
        found = found.take(range(wb.restarts))
    images = wb.images if "images" in wb.named else found.images
    return found.select(images=slice(0, min(images, found.images)))


def attack(weights: Loaded, images: Split, threat: Threat, folder: Path, restarts: Iterable[int], *, seed: int = 0,
           audited: int = 0) -> tuple[Record, Record]:
    """(every form, restarts of the average attack by these seeds on the first 256) of these images, kept in `folder`.

    No images are held out: the weights have seen all training images, so the thresholds are the published ones.
    """
    told = dict(checkpoint=weights.digest, dataset="cifar10", defence="max_average",
                data_variant=f"lossless, first {len(images):,}")
    every, average = (recording.suite(weights.network, threat, which) for which in (
        ("clean", *forms.names(weights.network.num_exits)), ("average",)))
    record = recording.record(weights.network, images, every, batch_size=50, seed=seed, folder=folder / "record",
                              audited=audited, **told)
    again = [recording.record(weights.network, images[:256], average, batch_size=64, seed=one,
                              folder=folder / f"restart{one}", **told) for one in restarts]
    return record, combine(again)
