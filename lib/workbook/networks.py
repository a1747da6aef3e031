"""Where a notebook's networks and records come from: shipped with the repository, or made in this run and kept."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

import lib
from lib import WorkbookError, checkpoints, data, locks
from lib.attacks.steps import Threat
from lib.evaluation import recording
from lib.evaluation.record import Record, View
from lib.models import zoo
from lib.models.network import Network
from lib.training import loop, recipes
from lib.training.folder import difference
from lib.training.recipe import Recipe
from lib.workbook.parameters import Settings
from lib.workbook.subject import Subject

SIZES = ("laptop", "paper", "quick")  # shipped networks: which size is taken where the asked one was not shipped


@dataclass(frozen=True)
class Trained:
    """A network, the recipe it came from ("rdi_smallcnn-digits-main-laptop"), and the digest of its file.

    weights: where they were read from: "shipped", "train" (trained in this run), "file" (one that was named), or
    "record": they did not come along, only what they answered did, and `network` has shapes alone (device "meta").
    """

    name: str
    network: Network
    digest: str
    weights: str = "train"

    @property
    def dataset(self) -> str:
        return self.name.split("-")[1]

    @property
    def defence(self) -> str:
        return self.name.split("-")[2]

    @property
    def quick(self) -> bool:
        """Whether it was trained for seconds only, and has hardly learned."""
        return bool({"glance", "quick"} & set(self.name.split("-")))


def shipped(settings: Settings, family: str) -> Path | None:
    """The weights of "<network>-<dataset>-<defence>", where they stayed away its record, at the settings' preset, else
    of the nearest size that came along."""
    files = (place / f"{family}-{size}.safetensors" for size in (settings.preset, *SIZES)
             for place in (lib.CHECKPOINTS, lib.ATLASES))
    return next(filter(Path.is_file, files), None)


def whole(seeds: Iterable[int], files: Callable[[int], Iterable[Path]]) -> list[int]:
    """The seeds of which all files came along."""
    return [seed for seed in seeds if all(path.is_file() for path in files(seed))]


def obtain(settings: Settings, network: str, dataset: str, defence: str) -> Trained:
    """The network of one recipe: shipped, or trained once per run.

    Raises WorkbookError when it was not shipped, or its training stopped before its end.
    """
    if settings.weights == "train":
        return train(settings, recipe(settings, network, dataset, defence))
    family = f"{network}-{dataset}-{defence}"
    path = shipped(settings, family)
    if path is None:
        raise WorkbookError(f"no {family} network came with the repository; set weights = \"train\" to train it")
    if path.parent == lib.ATLASES:
        meta = Record.load(path).meta
        with torch.device("meta"):
            return Trained(path.stem, zoo.build(**meta["model"], seed=None), meta["checkpoint"], "record")
    loaded = checkpoints.load(path, settings.device)
    return Trained(path.stem, loaded.network, loaded.digest, "shipped")


def recipe(settings: Settings, network: str, dataset: str, defence: str) -> Recipe:
    """The recipe of a network at the settings' preset and seed; a quick notebook trains at a `glance`."""
    preset = "glance" if settings.preset == "quick" else settings.preset
    return dataclasses.replace(recipes.compose(network, dataset, defence, preset), seed=settings.seed)


def train(settings: Settings, asked: Recipe, start: Network | None = None) -> Trained:
    """The network of a recipe, trained once per run and kept.

    Raises WorkbookError when training stopped early, and for a changed recipe under the name of the unchanged one.
    """
    if asked.name in recipes.names():
        own = dataclasses.replace(recipes.find(asked.name), seed=asked.seed)
        if own.digest() != asked.digest():
            raise WorkbookError(f"{asked.name} is the name of another training ({difference(own, asked)}); give this "
                                "one a name of its own")
    folder = settings.networks / f"{asked.name}-{asked.digest()}"
    with waiting_for(folder):
        sound(folder / "last.safetensors", "network"), sound(folder / "state.safetensors", "state")
        loop.obtain(asked, folder, start=start, device=settings.device)
    loaded = checkpoints.load(folder / "last.safetensors", settings.device)
    return Trained(asked.name, loaded.network, loaded.digest)


def sound(path: Path, kind: str) -> bool:
    """Whether a run's file is there and whole. A damaged one is put aside, and said, so that it is made again."""
    try:
        return path.is_file() and bool(checkpoints.read(path, kind))
    except WorkbookError:
        path.replace(path.with_name(f"{path.name}.damaged"))
        print(f"{path} is damaged: it is put aside and made again")
        return False


def waiting_for(folder: Path) -> AbstractContextManager[None]:
    """Hold what is made in `folder`; whoever comes second waits and then finds it made."""
    return locks.held(folder.with_name(f".{folder.name}.lock"))


def customary(dataset: data.Dataset) -> Threat:
    """The dataset's usual evaluation attack."""
    return Threat(*(dataset.threat[name] for name in ("epsilon", "step_size", "steps")))


def threat_of(settings: Settings, dataset: data.Dataset, **changes) -> Threat:
    """The customary attack; at `quick` size with half the steps, each twice as long."""
    usual = customary(dataset)
    steps = usual.steps if settings.preset != "quick" else max(5, usual.steps // 2)
    return dataclasses.replace(usual, **{"step_size": usual.step_size * usual.steps / steps, "steps": steps} | changes)


def record_of(trained: Trained, which: str = "") -> Path:
    """Where a network's record is shipped: the one that explorers show, or another."""
    return lib.ATLASES / (f"repeats/{trained.name}-{which}.safetensors" if which else f"{trained.name}.safetensors")


def recorded(settings: Settings, trained: Trained, which: str = "") -> Record | None:
    """The record shipped with a network, cut to the images named; None where it is of another seed, or of fewer.

    which: see `record_of`. Raises WorkbookError when it was made with other weights than these.
    """
    path = record_of(trained, which)
    if settings.weights != "shipped" or not path.is_file():
        return None
    found = matching(Record.load(path), trained)
    enough = "images" not in settings.named or settings.images <= found.images
    return cut(settings, found) if found.meta["seed"] == settings.seed and enough else None


def cut(settings: Settings, found: Record) -> Record:
    """The first images of a shipped record, as many as were named. Raises WorkbookError where it has fewer."""
    if "images" not in settings.named:
        return found
    if settings.images > found.images:
        raise WorkbookError(f"images {settings.images} are more than the {found.images:,} of the shipped record; "
                            "give fewer, or set weights = \"train\"")
    return found.select(images=slice(0, settings.images))


def trainings(settings: Settings, came: Sequence[int]) -> list[int]:
    """The shipped trainings asked for, by seed: from `seed` on, `seeds` of them where named.

    Raises WorkbookError where they are not among those that came along.
    """
    later = [seed for seed in came if seed >= settings.seed]
    wanted = list(range(settings.seed, settings.seed + settings.seeds)) if "seeds" in settings.named else later
    if not wanted or not set(wanted) <= set(came):
        raise WorkbookError(f"of seed {settings.seed} and those that follow not enough came with the repository, which "
                            f"has {', '.join(map(str, came)) or 'none'}; set weights = \"train\" to train them")
    return wanted


def first(settings: Settings, dataset: data.Dataset, images: int) -> data.Split:
    """The first test images. Raises WorkbookError where so many were named and there are fewer."""
    if "images" in settings.named and images > len(dataset.test):
        raise WorkbookError(f"images {images} are more than the {len(dataset.test):,} test images of {dataset.name}")
    return dataset.test[:images]


def record(settings: Settings, trained: Trained, dataset: data.Dataset | None, images: int, **options) -> Record:
    """Attack the first `images` test images, or take the record that was shipped with the network's weights.

    The shipped one is read where it is of the seed and the number of images asked for. A record made here is kept in
    the run folder and taken up again after a kill; `options` as for `recording.suite` (forms, threat, thresholds, mode,
    point) and `recording.record` (batch_size, seed).
    """
    if not options and (found := recorded(settings, trained)) is not None:
        return found
    if dataset is None:
        raise WorkbookError(f"{trained.name} came without a record of {images} images and seed {settings.seed}, and "
                            "its dataset is not on this machine; see data/README.md for how to get it")
    options = dict(threat=threat_of(settings, dataset), seed=settings.seed) | options
    label = "-".join([trained.name, trained.digest[:8], str(images), *(str(v) for v in _said(options))])
    how = {name: options.pop(name) for name in ("seed", "batch_size") if name in options}
    return kept(settings.run_dir / "records" / f"{label}.safetensors", trained, first(settings, dataset, images),
                recording.suite(trained.network, **options), dataset, held_out=dataset.validation, **how)


def kept(path: Path, trained: Trained, images: data.Split, views: Sequence[View], dataset: data.Dataset,
         **how) -> Record:
    """The record of these views that is kept at `path`, made once; how: as for `recording.record`.

    Raises WorkbookError for a network whose weights did not come along.
    """
    if trained.weights == "record":
        raise WorkbookError(f"the record of {trained.name} came with the repository, its weights did not: nothing else "
                            "can be attacked; leave seed and images as they are, or set weights = \"train\"")
    with waiting_for(path):
        if not sound(path, "record"):
            recording.record(trained.network, images, views, folder=path.with_suffix(""), dataset=dataset.name,
                             data_variant=dataset.variant, checkpoint=trained.digest, defence=trained.defence,
                             **how).save(path)
    return Record.load(path)


def _said(options: dict) -> list:
    """What tells two records of one network apart, short enough for a file's name."""
    threat, forms = options["threat"], options.get("forms")
    algorithm = threat.algorithm if threat.loss == "ce" else f"{threat.algorithm}_{threat.loss}"
    return [algorithm, f"{threat.epsilon:.3g}", threat.steps, f"s{options['seed']}",
            *(f"{name}_{options[name]}" for name in ("mode", "point") if options.get(name)),
            *(f"{gate:.6g}" for gate in options.get("thresholds") or ()), *(forms or ("paper",))]


def matching(found: Record, trained: Trained) -> Record:
    """Raises WorkbookError when a record was made with other weights than these."""
    if found.meta.get("checkpoint") != trained.digest:
        raise WorkbookError(f"the record of {trained.name} was made with other weights; record it again")
    return found


def at_hand(name: str, **options) -> data.Dataset | None:
    """The dataset where its files are on this machine, else None (nothing is downloaded)."""
    try:
        return data.load(name, download=False, **options)
    except WorkbookError:
        return None


def explorable(folder: Path | str | None = None) -> dict[str, Subject]:
    """Every record below `folder` (a run's), or the shipped ones but repeats: name -> what an explorer shows.

    Images are added where the dataset is on this machine, the network where its weights came along.
    """
    paths = sorted(Path(folder).rglob("*.safetensors") if folder else lib.ATLASES.glob("*.safetensors"))
    found = {}
    for path in paths:
        try:
            record = Record.load(path)
        except WorkbookError:  # weights and states of the same run
            continue
        weights = lib.CHECKPOINTS / f"{path.stem}.safetensors"
        found[path.stem] = subject(record, (lambda file=weights: checkpoints.load(file).network) if weights.is_file()
                                   else None)
    if not found:
        raise WorkbookError(f"there is no record in {folder or lib.ATLASES}; run one with "
                            "`python3 -m lib run`, or record one with `evaluate … --save-record FILE`")
    return found


def subject(record: Record, network: Network | Callable[[], Network] | None = None) -> Subject:
    """What an explorer shows of a record; the images, which have to be the very ones that it is of, are read when they
    are looked for, as the network is where a function gives it."""
    def images() -> data.Split | None:
        dataset = at_hand(record.meta.get("dataset") or "", shape=tuple(record.meta["model"]["input_shape"]))
        return dataset.test if dataset and dataset.variant == record.meta.get("data_variant") else None

    return Subject(record, images, (lambda: network) if isinstance(network, Network) else network)
