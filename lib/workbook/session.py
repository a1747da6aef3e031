"""A notebook's session: its parameters, and the networks, records and readings that they lead to.

    wb = session.open(globals(), "12_rdi_resnet38", {"rdi_resnet38": RDI}, images=…)
    readings = wb.readings(wb.load_all({"main": ("rdi_resnet38", "main"), …}))    # at thresholds
    members = wb.members(wb.load_all(("float", "dual_bn")))                       # at operating points
    wb.write(readings)
    caption = wb.caption(readings)

Networks and records come with the repository, or are made in this run and kept.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import lib
from lib import WorkbookError, checkpoints, data, locks
from lib.attacks.steps import Threat
from lib.data import Dataset, Split
from lib.evaluation import recording, rows
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.models.network import Network
from lib.training import loop, recipes
from lib.training.recipe import Recipe
from lib.workbook import once_for_all, parameters, style, tables
from lib.workbook.once_for_all import Member, Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import suited
from lib.workbook.subject import Subject

SIZES = ("laptop", "paper", "quick")  # shipped networks: which size is taken where the asked one was not shipped
PREFERRED = ("cifar10", "cifar10_jpeg", "mnist", "fashion_mnist", "digits")  # of shipped networks, the first is taken
JUDGED = {"cifar10_jpeg": "cifar10_png"}  # trained on a lossy copy, judged on lossless images


def open(namespace: dict, notebook: str, needs: Mapping[str, Sequence[str]] | Sequence[str] = (),
         order: Sequence[str] = PREFERRED, **by_preset) -> "Session":
    """`parameters.resolve`; a dataset that is left open becomes the first of `order` for which all that is needed came.

    needs: {network: defences}; or methods, of a network that is a parameter, too, and where left open resnet20 or the
    first that came along. Where nothing did, the quick size is trained instead, and a line says so.
    """
    if methods := not isinstance(needs, Mapping) and needs:
        by_preset = dict(network=("resnet20", "resnet20", "resnet34"), dataset=("digits", "digits", "cifar10")
                         ) | by_preset
    wb = Session(**vars(parameters.resolve(namespace, notebook, **by_preset)))
    if wb.weights == "train" or not needs:
        return wb
    datasets = (wb.dataset,) if "dataset" in wb.named else order
    networks = ((wb.network,) if "network" in wb.named else (wb.network, *recipes.NETWORKS)) if methods else (None,)
    for wb.dataset, network in itertools.product(datasets, networks):
        if all(wb.shipped(one, defence) for one, defences in ({network: needs} if methods else needs).items()
               for defence in defences):
            vars(wb).update({"network": network} if methods else {})
            return wb
    return trained_here(namespace, notebook, **by_preset)


def trained_here(namespace: dict, notebook: str, **by_preset) -> "Session":
    """What is done instead, and said, where a notebook's networks did not come along: the quick size is trained."""
    print("The networks of this notebook did not come with the repository: these are of preset quick, trained right "
          "here in seconds.\nThey show how it works, not what the paper's networks do.")
    return open({**namespace, "preset": "quick", "weights": "train"}, notebook, **by_preset)


class Session(Settings):
    """The checked parameters, and what is done with them. Everything raises WorkbookError for what is not at hand."""

    def replace(self, **parameters) -> "Session":
        """The same with other parameters."""
        return Session(**vars(self) | parameters)

    @property
    def quick(self) -> bool:
        """Whether attacks are of quick size: where networks are trained so. Shipped records hold the whole ones."""
        return (self.preset, self.weights) == ("quick", "train")

    def data(self, name: str | None = None, shape: tuple[int, int, int] | None = None) -> Dataset:
        """The dataset in the shape of the preset's networks; of shipped ones what they are judged on, no download."""
        name, train = name or self.dataset, self.weights == "train"
        if name == "digits" and shape is None:
            shape = tuple(recipes.find(f"resnet38-digits-main-{self.preset}").network["input_shape"])
        return _loaded(name if train else JUDGED.get(name, name), self.device, shape, train)

    def recipe(self, network: str, defence: str, dataset: str | None = None) -> Recipe:
        """The recipe of a network at the preset and seed; a quick notebook trains at a `glance`."""
        preset = "glance" if self.preset == "quick" else self.preset
        return dataclasses.replace(recipes.compose(network, dataset or self.dataset, defence, preset), seed=self.seed)

    def shipped(self, network: str, defence: str, dataset: str | None = None) -> Path | None:
        """Its weights or its record, at the preset or nearest size ("main-laptop-r007": that file); None to train."""
        family, sizes = f"{network}-{dataset or self.dataset}-{defence}", [f"-{size}" for size in (self.preset, *SIZES)]
        files = (place / f"{family}{size}.safetensors" for size in (sizes if "-" not in defence else [""])
                 for place in (lib.CHECKPOINTS, lib.ATLASES))
        return next(filter(Path.is_file, files), None) if self.weights == "shipped" else None

    def load(self, network: str, defence: str, dataset: str | None = None) -> Trained:
        """The network of one recipe: shipped, or trained once per run."""
        if self.weights == "train":
            return self.train(self.recipe(network, defence, dataset))
        if path := self.shipped(network, defence, dataset):
            return Trained.load(path, device=self.device)
        raise WorkbookError(f"no {network}-{dataset or self.dataset}-{defence} came along; set weights = \"train\"")

    def load_all(self, wanted: Mapping[str, Sequence[str]] | Sequence[str]) -> dict[str, Trained]:
        """{label: its network} for {label: (network, defence) or (network, defence, dataset)}, or for methods of the
        session's network; of shipped weights those that came along, of a dataset that was named at least one."""
        each = wanted if isinstance(wanted, Mapping) else {method: (self.network, method) for method in wanted}
        found = {label: one for label, one in each.items() if self.weights == "train" or self.shipped(*one)}
        named, of = self.named & {"dataset", "grey"}, {(*one, self.dataset)[2] for one in found.values()}
        if lacking := {vars(self)[name] for name in named} - of:
            raise WorkbookError(f"no network of {min(lacking)} came with the repository; set weights = \"train\"")
        return {label: self.load(*one) for label, one in found.items()}

    def train(self, recipe: Recipe, start: Network | None = None) -> Trained:
        """The network of a recipe: shipped under its name, or trained once per run and kept. Raises WorkbookError when
        training stopped early, and for a changed recipe under the name of the unchanged one."""
        if recipe.name in recipes.names():
            own = dataclasses.replace(recipes.find(recipe.name), seed=recipe.seed)
            if own.digest() != recipe.digest():
                raise WorkbookError(f"{recipe.name} is the name of another training ({own.difference(recipe)}); give "
                                    "this one a name of its own")
        if self.weights == "shipped" and (path := lib.CHECKPOINTS / f"{recipe.name}.safetensors").is_file():
            return Trained.load(path, device=self.device)
        folder = self.networks / f"{recipe.name}-{recipe.digest()}"
        with locks.beside(folder):
            sound(folder / "last.safetensors", "network"), sound(folder / "state.safetensors", "state")
            loop.load_or_fit(recipe, folder, start=start, device=self.device)
        return Trained.load(folder / "last.safetensors", "train", self.device, recipe.name)

    def threat(self, dataset: Dataset) -> Threat:
        """The customary attack; at `quick` size with half the steps, each twice as long."""
        usual = customary(dataset)
        steps = usual.steps if not self.quick else max(5, usual.steps // 2)
        return dataclasses.replace(usual, step_size=usual.step_size * usual.steps / steps, steps=steps)

    def record(self, trained: Trained, which: str = "", *, plan: Callable | None = None, threat: Threat | None = None,
               batch_size: int = 250, **options) -> Record:
        """The record of a network: shipped with its weights, where nothing but `which` is asked for (then no dataset is
        opened), or else made in this run and kept, to be taken up again after a kill.
        plan: (network, threat) -> views; default: `once_for_all.views` of once-for-all methods, else `recording.suite`,
        with its options (forms, thresholds, mode, point).  threat: default `threat`.  which: see `recorded`.
        """
        if (which or not (plan or threat or options)) and (found := self.recorded(trained, which)) is not None:
            return found
        if trained.weights == "record":
            raise WorkbookError(f"the record of {trained.name} came with the repository, its weights did not: nothing "
                                "else can be attacked; leave seed and images as they are, or set weights = \"train\"")
        own = Path(self.dataset).name.replace("-", "_") == trained.dataset  # it may be a folder of somebody's own
        name, shape = self.dataset if own else trained.dataset, trained.network.input_shape
        try:
            source = self.data(name, shape)
        except WorkbookError as error:
            raise WorkbookError(f"{trained.name} came without a record of these attacks, images and seed {self.seed}: "
                                f"{str(error).partition(';')[0]}; see data/README.md, or ask for the usual") from None
        images, how = self.first(source), dict(seed=self.seed, batch_size=batch_size)
        if once_for_all.at_points(trained.defence):
            how["draws"] = once_for_all.SIZES[self.preset]["draws"]
            plan = plan or functools.partial(once_for_all.views, preset=self.preset)
        views = (plan or recording.suite)(trained.network, threat or self.threat(source), **options)
        told = hashlib.sha256(repr((trained.digest, views, how)).encode()).hexdigest()[:8]
        stem = f"{trained.name}-{which or trained.digest[:8]}-{len(images)}-{told}"
        with locks.beside(path := self.run_dir.parent / "records" / f"{stem}.safetensors"):
            if not sound(path, "record"):
                held_out = _loaded(name, self.device, shape, self.weights == "train").validation  # as it was trained
                trained.attack(source, images, views, held_out=None if "draws" in how else held_out,
                               folder=path.with_suffix(""), **how).save(path)
        return Record.load(path)

    def recorded(self, trained: Trained, which: str = "") -> Record | None:
        """The record shipped with a network, cut to the images named; None where it is of another seed, or of fewer.
        which: not the one that explorers show, but another of that name. Raises WorkbookError for another's weights."""
        path = trained.shipped_record(which)
        if self.weights != "shipped" or not path.is_file():
            return None
        found = trained.own(Record.load(path))
        enough = "images" not in self.named or self.images <= found.images
        return self.cut(found) if found.meta["seed"] == self.seed and enough else None

    def cut(self, record: Record) -> Record:
        """The first images of a shipped record, as many as were named. Raises WorkbookError where it has fewer."""
        if "images" not in self.named:
            return record
        if self.images > record.images:
            raise WorkbookError(f"images {self.images} are more than the {record.images:,} of the shipped record; "
                                "give fewer, or set weights = \"train\"")
        return record.select(images=slice(0, self.images))

    def first(self, dataset: Dataset) -> Split:
        """The first test images. Raises WorkbookError where so many were named and there are fewer."""
        if "images" in self.named and self.images > len(dataset.test):
            raise WorkbookError(f"images {self.images} are more than the {len(dataset.test):,} test images of "
                                f"{dataset.name}")
        return dataset.test[:self.images]

    def trainings(self, files: Callable[[int], Iterable[Path]]) -> list[int]:
        """The trainings asked for, by seed, of those of which all `files` came along: from `seed` on, `seeds` of them
        where named. Raises WorkbookError where some of them did not."""
        came = [seed for seed in range(10) if all(path.is_file() for path in files(seed))]
        wanted = (list(range(self.seed, self.seed + self.seeds)) if "seeds" in self.named else
                  [seed for seed in came if seed >= self.seed])
        if not wanted or not set(wanted) <= set(came):
            raise WorkbookError(f"of seed {self.seed} and those that follow not enough came with the repository, which "
                                f"has {', '.join(map(str, came)) or 'none'}; set weights = \"train\" to train them")
        return wanted

    def readings(self, trained: Mapping[str, Trained], thresholds: str | None = None, **options) -> dict[str, Reading]:
        """{label: the reading of its record}, see `read` and `record`."""
        return {label: self.read(one, self.record(one, **options), thresholds) for label, one in trained.items()}

    def read(self, trained: Trained, record: Record, source: str | None = None) -> Reading:
        """A record at thresholds of `source` (default: the session's); a single exit has none."""
        found = read(record, thresholds=source or self.thresholds if record.num_exits > 1 else None)
        return dataclasses.replace(found, trained=trained)

    def members(self, trained: Mapping[str, Trained], which: str = "",
                plan: Callable | None = None) -> dict[str, Member]:
        """{method: network and record}, see `record`; of a shipped record `which` those that came along."""
        return {method: Member(method, one, self.record(one, which, plan=plan)) for method, one in trained.items()
                if not which or one.weights == "train" or one.shipped_record(which).is_file()}

    def repeats(self, methods: Sequence[str], which: str, plan: Callable | None = None) -> dict[str, Member]:
        """{method: its trainings}: those whose records `which` came along, with weights or without, or `seeds` of each
        trained and recorded in this run (plan: see `record`), alike in all but the method."""
        if self.weights == "shipped":
            def files(seed: int) -> list[tuple[Path, Path]]:
                names = (f"{self.network}-{self.dataset}-{method}-laptop-seed{seed}" for method in methods)
                return [(lib.CHECKPOINTS / f"repeats/{name}.safetensors",
                         lib.ATLASES / f"repeats/{name}-{which}.safetensors") for name in names]

            seeds = self.trainings(lambda seed: (kept for _, kept in files(seed)))
            runs = [{m: Member(m, one := Trained.load(weights if weights.is_file() else kept, name=weights.stem),
                               self.cut(one.own(Record.load(kept))))
                     for m, (weights, kept) in zip(methods, files(seed), strict=True)} for seed in seeds]
        else:
            each = [self.replace(seed=seed) for seed in range(self.seed, self.seed + self.seeds)]
            runs = [own.members(own.load_all(methods), plan=plan) for own in each]
        return {method: dataclasses.replace(first, others=tuple(run[method] for run in runs[1:]))
                for method, first in runs[0].items()}

    def write(self, shown: Mapping[str, Reading | Member]) -> Path:
        """All numbers of readings, or of members at all their points, as tidy rows in the table; returns its path."""
        for one in shown.values():
            told = dict(experiment=self.notebook, preset=self.preset, weights=one.trained.weights)
            each = one.readings() if isinstance(one, Member) else (one,)
            rows.append(self.table, (row for reading in each for row in rows.of(reading, **told)))
        return self.table

    def caption(self, shown: Mapping[str, Reading | Member]) -> str:
        """What every number of these stands on, in one line."""
        first = next(iter(shown.values()))
        record, trainings, sources = first.record, "", {r.source for r in shown.values() if isinstance(r, Reading)}
        threat = getattr(first, "threat", None) or next((view.threat for view in record.views if view.attacked), None)
        attack = f"{threat.algorithm.upper()}-{threat.steps}" if threat else "no attack"
        if isinstance(first, Member):
            draws = max(m.read(p).draws for m in shown.values() for p in m.record.points)
            attack += f", ε {threat.epsilon:.3g}, step {threat.step_size:.3g} · mean over {draws} draws of the noise"
            sources = {suited(record) if record.num_exits > 1 else "none"}
            trainings = f"{len(first.runs)} trainings each · " * bool(first.others)
        thresholds = f" · thresholds: {', '.join(sorted(sources - {'none'}))}" if sources - {"none"} else ""
        return (f"{trainings}{record.images:,} test images of {style.dataset(record.meta)} · {attack} · "
                f"seed {record.meta['seed']} · preset {self.preset}{thresholds} · 95 % intervals" +
                tables.doubted({k: v.readings() if isinstance(v, Member) else (v,) for k, v in shown.items()}))


@functools.lru_cache(maxsize=2)  # each network of a study asks for it
def _loaded(name: str, device: str, shape: tuple[int, int, int] | None, download: bool) -> Dataset:
    return data.load(name, device=device, shape=shape, download=download)


def customary(dataset: Dataset) -> Threat:
    """The dataset's usual evaluation attack."""
    return Threat(*(dataset.threat[name] for name in ("epsilon", "step_size", "steps")))


def sound(path: Path, kind: str) -> bool:
    """Whether a run's file is there and whole. A damaged one is put aside, and said, so that it is made again."""
    try:
        return path.is_file() and bool(checkpoints.read(path, kind))
    except WorkbookError:
        path.replace(path.with_name(f"{path.name}.damaged"))
        print(f"{path} is damaged: it is put aside and made again")
        return False


def subjects(shown: Mapping[str, Member | Reading]) -> dict[str, Subject | dict[float, Subject]]:
    """What the explorer shows: a subject per method, of those with a network per lambda one for each; of readings one
    per network, the last one first."""
    found: dict = {}
    for label, one in shown.items() if isinstance(next(iter(shown.values())), Member) else reversed(shown.items()):
        subject = Subject.of(one.record, None if one.trained.weights == "record" else one.trained.network)
        if isinstance(one, Member) and one.weight is not None:
            found.setdefault(style.label(one.family), {})[one.weight] = subject
        else:
            found[style.label(label)] = subject
    return found
