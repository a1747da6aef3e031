"""A study of once-for-all networks: FLOAT, its control, OAT and PGD-AT on the same images at their operating points.

    settings = once_for_all.resolve(globals(), "20_lambda_tradeoff", ("float", "dual_bn"), images=(48, 500, 10_000))
    members = once_for_all.members(settings, once_for_all.obtain(settings, ("float", "dual_bn", "oat")))
    members["float"].read(0.2, 0.5).right("union")      # at λ_n 0.2, λ_th 0.5
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import lib
from lib import WorkbookError, checkpoints, data
from lib.attacks.steps import Threat
from lib.evaluation import points, rows
from lib.evaluation.reading import Reading, Trainings, read
from lib.evaluation.record import Record, View
from lib.models.mixture import mixture
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training import methods, recipes
from lib.workbook import networks, parameters, studies, style
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import suited
from lib.workbook.subject import Subject

FAMILIES = {"pgd_at": "PGD-AT λ", "mixed": "PGD-AT λ 0 and 1 mixed,"}  # a network per λ or weight
SIZES = {"quick": dict(mixes=(0.0, 0.5, 1.0), draws=2), "laptop": dict(mixes=(0.0, 0.5, 1.0), draws=5),
         "paper": dict(mixes=(0.0, 0.25, 0.5, 0.75, 1.0), draws=20)}  # draws of EOT's gradients, and at evaluation
JUDGED = {"cifar10_jpeg": "cifar10_png"}  # trained on a lossy copy, judged on lossless images


@dataclass(frozen=True)
class Member:
    """One method of the study: its network and record, and those of its further trainings.

    family: the method, whatever its weight.  weight: what is built in, PGD-AT's lambda or a mixture's weight; None
    where a knob is.
    """

    method: str
    trained: Trained
    record: Record
    others: tuple["Member", ...] = ()

    @property
    def network(self) -> Network:
        return self.trained.network

    @property
    def runs(self) -> tuple["Member", ...]:
        return (replace(self, others=()), *self.others)

    @property
    def family(self) -> str:
        return next((name for name in FAMILIES if self.method.startswith(name)), self.method)

    @property
    def weight(self) -> float | None:
        return float(self.method.removeprefix(self.family)) if self.family in FAMILIES else None

    @property
    def label(self) -> str:
        return style.label(self.method) if self.weight is None else f"{FAMILIES[self.family]} {self.weight:g}"

    def point(self, lambda_n: float, lambda_th: float = 0.0, width: float | None = None) -> OperatingPoint:
        return points.of_lambda(self.network, lambda_n, lambda_th, width)

    def published(self, lambdas=points.LAMBDAS, switches=points.SWITCHES, width=None) -> list[OperatingPoint]:
        """Where these λ_n and λ_th lead, as far as it was recorded there."""
        return [p for p in points.published(self.network, lambdas, switches, (width,)) if p in self.record.points]

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The λ_n, of the paper's figures and in quarters, that were recorded for λ_th = 0."""
        width = max(self.network.widths) if "width" in self.network.knobs else None
        looked = (0.0, 0.2, 0.25, 0.5, 0.7, 0.75, 1.0)
        return tuple(n for n in looked if self.point(n, 0.0, width) in self.record.points)

    def read(self, *where, **how) -> Reading | Trainings:
        """Its record at a point, or at the point of (lambda_n, lambda_th, width); of all its trainings."""
        point = where[0] if isinstance(where[0], OperatingPoint) else self.point(*where)
        if self.record.num_exits > 1 and point.thresholds is None:
            how = {"thresholds": suited(self.record)} | how
        return read([run.record for run in self.runs] if self.others else self.record, point, **how)


Members = Mapping[str, Member]


def resolve(namespace: dict, notebook: str, methods: Sequence[str], order: Sequence[str] = ("cifar10_jpeg", "digits"),
            **by_preset) -> Settings:
    """`parameters.resolve` for notebooks on these methods, whose network and dataset are parameters, too.

    Shipped weights: the first dataset of `order`, unless one is named, and network of which these methods came along,
    else the quick size is trained.
    """
    by_preset = dict(network=("resnet20", "resnet20", "resnet34"), dataset=("digits", "digits", "cifar10")) | by_preset
    settings = parameters.resolve(namespace, notebook, **by_preset)
    if settings.weights == "train":
        return settings
    allowed = [(settings.dataset,) if "dataset" in settings.named else order,
               (settings.network,) if "network" in settings.named else (settings.network, *recipes.NETWORKS)]
    for settings.dataset, settings.network in product(*allowed):
        if all(networks.shipped(settings, f"{settings.network}-{settings.dataset}-{method}") for method in methods):
            return settings
    return studies.trained_here(namespace, notebook, **by_preset)


def dataset(settings: Settings) -> data.Dataset:
    """The dataset in the shape of the study's networks; of shipped ones what they are judged on, without a download.

    Raises WorkbookError where it is not at hand.
    """
    name = settings.dataset if settings.weights == "train" else JUDGED.get(settings.dataset, settings.dataset)
    shape = studies.recipe(settings, settings.network, "float").network["input_shape"]
    return studies.dataset(settings, name, tuple(shape))


def obtain(settings: Settings, methods: Sequence[str]) -> dict[str, Trained]:
    """{method: its network}, see `studies.trained`."""
    return studies.trained(settings, {method: (settings.network, method) for method in methods})


def mixed(trained: Mapping[str, Trained], weights: Sequence[float] = (0.25, 0.5, 0.75)) -> dict[str, Trained]:
    """PGD-AT's two ends as one network that averages their probabilities; nothing where one of them is missing, or
    where the ends were shipped and the mixture's record was not."""
    if not {"pgd_at0", "pgd_at1"} <= set(trained):
        return {}
    ends = trained["pgd_at0"], trained["pgd_at1"]
    found = {f"mixed{w:g}": Trained(ends[0].name.replace("pgd_at0", f"mixed{w:g}"), mixture(*(
        end.network for end in ends), w), "+".join(end.digest[:16] for end in ends), ends[0].weights) for w in weights}
    came = [method for method, t in found.items() if (lib.ATLASES / f"{t.name}.safetensors").is_file()]
    return found if ends[0].weights == "train" else {method: found[method] for method in came}


def seven(network: Network, threat: Threat) -> tuple[View, ...]:
    """FLOAT's own attack at its points, at every width: PGD-7, whose step is that of OAT's code."""
    at = points.published(network, widths=network.widths if "width" in network.knobs else (None,))
    return points.under([methods.attack(threat.epsilon, 7)], at)


PGD7 = dict(which="pgd7", plan=seven)  # options of `members` and `repeats`


def members(settings: Settings, trained: Mapping[str, Trained], which: str = "", **options) -> dict[str, Member]:
    """{method: network and record}; options: see `planned`, and the threat.  which: of shipped networks another record
    than the one that explorers show, of those that have it."""
    found = {method: t for method, t in trained.items() if not which or t.weights == "train"
             or networks.record_of(t, which).is_file()}
    return {method: Member(method, t, record(settings, t, which, **options)) for method, t in found.items()}


def record(settings: Settings, trained: Trained, which: str = "", **options) -> Record:
    """The record of a network: shipped with its weights, or recorded in this run and kept.

    Raises WorkbookError where it has to be recorded and the dataset is not at hand.
    """
    if (which or not options) and (found := networks.recorded(settings, trained, which)) is not None:
        return found
    try:
        images = dataset(settings)
    except WorkbookError as error:
        raise WorkbookError(f"{trained.name} came without a record of these attacks, images and seed: "
                            f"{error}") from None
    size = SIZES[settings.preset] | options
    todo, draws = planned(trained.network, size.pop("threat", None) or networks.threat_of(settings, images), **size)
    told = hashlib.sha256(repr(todo).encode()).hexdigest()[:8]
    label = f"{trained.name}-{trained.digest[:8]}-{settings.images}-{draws}-{told}-s{settings.seed}"
    return networks.kept(settings.run_dir.parent / "records" / f"{label}.safetensors", trained,
                         networks.first(settings, images, settings.images), todo, images, draws=draws,
                         seed=settings.seed)


def planned(network: Network, threat: Threat, *, draws: int, plan: Callable | None = None,
            **size) -> tuple[Sequence[View], int]:
    """(the views to record, draws): plan(network, threat), else `points.views`; of a network with several widths at all
    of them, and at fewer nodes between the published points."""
    if plan is not None:
        return plan(network, threat), draws
    if "width" in network.knobs:
        size |= dict(widths=network.widths, mixes=(0.0, 1.0), noises=(0.0, 0.4, 1.0))
    return points.views(network, threat, draws=draws, **size), draws


def repeats(settings: Settings, methods: Sequence[str], which: str, plan: Callable,
            seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Member]:
    """{method: its trainings}: of the shipped seeds, with the records of that name, or `settings.seeds` of each trained
    and recorded in this run, alike in all but the method.

    plan: see `record`. Raises WorkbookError where a shipped file is missing, or a record is of other weights.
    """
    found: dict[str, list[Member]] = {method: [] for method in methods}
    if settings.weights == "shipped":
        files = {seed: {method: repeat_files(f"{settings.network}-{settings.dataset}-{method}-laptop-seed{seed}", which)
                        for method in methods} for seed in seeds}
        came = networks.whole(seeds, lambda seed: [path for pair in files[seed].values() for path in pair])
        for seed in networks.trainings(settings, came):
            for method, (weights, kept) in files[seed].items():
                loaded = checkpoints.load(weights)
                trained = Trained(weights.stem, loaded.network, loaded.digest, "shipped")
                made = networks.cut(settings, networks.matching(Record.load(kept), trained))
                found[method].append(Member(method, trained, made))
    else:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            own = Settings(**{**vars(settings), "seed": seed})
            for method, trained in obtain(own, methods).items():
                found[method].append(Member(method, trained, record(own, trained, plan=plan)))
    return {method: replace(runs[0], others=tuple(runs[1:])) for method, runs in found.items()}


def repeat_files(name: str, which: str) -> tuple[Path, Path]:
    """Where the weights and a record of one of several trainings are shipped."""
    weights, records = (folder / "repeats" for folder in (lib.CHECKPOINTS, lib.ATLASES))
    return weights / f"{name}.safetensors", records / f"{name}-{which}.safetensors"


def caption(settings: Settings, members: Members) -> str:
    """What every number of these members stands on, in one line."""
    member = next(iter(members.values()))
    meta, threat = member.record.meta, next(view.threat for view in member.record.views if view.attacked)
    draws = max(m.read(p).draws for m in members.values() for p in m.record.points)
    leaving = f" · thresholds: {suited(member.record)}" if member.record.num_exits > 1 else ""
    return (f"{len(member.runs)} trainings each · " * bool(member.others) + f"{member.record.images:,} test images of "
            f"{style.dataset(meta)} · PGD-{threat.steps}, ε {threat.epsilon:.3g}, step "
            f"{threat.step_size:.3g} · mean over {draws} draws of the noise · seed {meta['seed']} · preset "
            f"{settings.preset}{leaving} · 95 % intervals")


def write(settings: Settings, members: Members) -> Path:
    """All numbers of the members as tidy rows in the run's table; returns its path."""
    for member in (run for m in members.values() for run in m.runs):
        threats = dict.fromkeys(replace(v.threat, draws=1) for v in member.record.views if v.attacked)
        told = dict(experiment=settings.notebook, preset=settings.preset, weights=member.trained.weights)
        rows.append(settings.table, (row for point in member.record.points for threat in threats
                                     for row in rows.of(member.read(point, threat=threat), **told)))
    return settings.table


def subjects(members: Members) -> dict[str, Subject | dict[float, Subject]]:
    """What the explorer shows: a subject per method, of those with a network per lambda one for each."""
    shown: dict = {}
    for m in members.values():
        subject = networks.subject(m.record, m.network)
        if m.weight is None:
            shown[m.label] = subject
        else:
            shown.setdefault(style.label(m.family), {})[m.weight] = subject
    return shown
