"""What FLOAT's noise adds, over several trainings: FLOAT and its control without noise, in pairs of the same seed.

    python -m lib.workbook.float_seeds [SEED …]        trains and records the shipped pairs; a kill costs little

Thin ResNet-20s on Fashion-MNIST by their laptop recipes, attacked through a folded copy, which is faster. Two records
of each: PGD alone on many images, and on fewer of them the whole suite, whose averaging attacker takes longest.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib import ATLASES, CHECKPOINTS, RUNS, checkpoints, data
from lib.attacks.steps import Threat
from lib.evaluation import points, recording
from lib.evaluation.reading import Trainings
from lib.evaluation.record import Record, View
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training import loop, recipes
from lib.training.recipe import Recipe
from lib.workbook import float_anatomy, lambda_study, networks, shipping, studies, tables
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings

METHODS, SEEDS, DATASET = ("float", "dual_bn"), (0, 1, 2), "fashion_mnist"
IMAGES, STEPS = {"pgd": 5000, "suite": 1000}, 20  # of the shipped records
DRAWS = 5  # of EOT's gradients, and at evaluation


@dataclass(frozen=True)
class Repeated(Member):
    """Several trainings of one method as one member: what it reads has a row per training, (S, N).

    trained and record are those of the first.
    """

    runs: tuple[Member, ...]

    @classmethod
    def of(cls, runs: Sequence[Member]) -> "Repeated":
        return cls(runs[0].method, runs[0].trained, runs[0].record, tuple(runs))

    def read(self, *where, **how) -> Trainings:
        return Trainings(tuple(run.read(*where, **how) for run in self.runs))


def recipe(method: str, seed: int) -> Recipe:
    base = recipes.find(f"resnet20-{DATASET}-{method}-laptop")
    return dataclasses.replace(base, name=f"{base.name}-folded", seed=seed, attack_view="folded")


def halfway(network: Network) -> OperatingPoint:
    """Between the batch norms, without noise."""
    return OperatingPoint(batch_norm=0.5, **({"noise": 0.0} if "noise" in network.knobs else {}))


def plan(which: str, threat: Threat, draws: int = DRAWS) -> Callable[[Network], tuple[View, ...]]:
    """What is recorded of a network: at the published points, at (no noise, BN_A), and halfway between the batch norms.

    "pgd": clean images; PGD at each point, and that of a point without noise also where there is noise (transfer);
    elsewhere a restart instead, so that every point meets two attacks.  "suite": on top, where there is noise an
    averaging attacker, elsewhere a second restart.
    """
    def attacks(network: Network) -> tuple[View, ...]:
        at = (*points.published(network), halfway(network))
        noisy = [p for p in at if network.conditions(p).noisy]
        met = [(q, p) for p in at for q in (p, *(q for q in noisy if q != p and points.quiet(q) == p))]
        found = [View("main", q, threat, p) for q, p in met]
        if which == "suite":
            found += [View("main", p, dataclasses.replace(threat, draws=draws)) for p in noisy]
        return (*points.clean(at), *found, *(View("main", p, threat, restart=again) for p in at if p not in noisy
                                             for again in {"pgd": (1,), "suite": (1, 2)}[which]))

    return attacks


def name(method: str, seed: int) -> str:
    return f"resnet20-{DATASET}-{method}-laptop-seed{seed}"


def weights(called: str) -> Path:
    return CHECKPOINTS / "repeats" / f"{called}.safetensors"


def record(called: str, which: str) -> Path:
    return ATLASES / "repeats" / f"{called}-{which}.safetensors"


def make(seeds=SEEDS) -> None:
    """Train and record the shipped pairs that are not there yet."""
    images = data.load(DATASET)
    threat = dataclasses.replace(networks.customary(images), steps=STEPS)
    for called, asked in ((name(method, seed), recipe(method, seed)) for seed in seeds for method in METHODS):
        if not weights(called).is_file():
            shipping.halved(loop.fit(asked, RUNS / "seeds" / called).path, weights(called))
        shipped = checkpoints.load(weights(called))
        for which, count in IMAGES.items():
            if not record(called, which).is_file():
                todo = plan(which, threat)(shipped.network)
                made = recording.record(shipped.network, images.test[:count], todo, draws=DRAWS,
                                        folder=RUNS / "seeds" / f"{called}-{which}", dataset=images.name,
                                        defence=asked.defence, data_variant=images.variant, checkpoint=shipped.digest)
                made.lightened().save(record(called, which))
                print(called, which, flush=True)


def obtain(settings: Settings, which: str = "suite") -> dict[str, Repeated]:
    """{method: its trainings}: the shipped pairs, or `settings.seeds` pairs trained and recorded in this run.

    which: "suite" or "pgd", see `plan`.

    Raises WorkbookError where a shipped file is missing, or a record is of other weights.
    """
    return {method: Repeated.of(shipped(settings, method, which) if settings.weights == "shipped"
                                else trained(settings, method, which)) for method in METHODS}


def shipped(settings: Settings, method: str, which: str) -> list[Member]:
    """Of each seed asked for whose pair came along. Raises WorkbookError where none did."""
    whole = networks.whole(SEEDS, lambda seed: [record(name(m, seed), w) for m in METHODS for w in IMAGES])
    members = []
    for called in (name(method, seed) for seed in networks.trainings(settings, whole)):
        loaded = checkpoints.load(weights(called))
        found = Trained(called, loaded.network, loaded.digest, "shipped")
        read = networks.matching(Record.load(record(called, which)), found)
        members.append(Member(method, found, networks.cut(settings, read)))
    return members


def trained(settings: Settings, method: str, which: str) -> list[Member]:
    images, members, draws = lambda_study.dataset(settings), [], lambda_study.SIZES[settings.preset]["draws"]
    for seed in range(settings.seed, settings.seed + settings.seeds):
        own = Settings(**{**vars(settings), "seed": seed})
        found = studies.obtain(own, settings.network, method)
        asked = plan(which, networks.threat_of(settings, images), draws)
        members.append(Member(method, found, lambda_study.record(own, found, images, plan=asked, draws=draws)))
    return members


def caption(settings: Settings, found: Mapping[str, Repeated]) -> str:
    """What every number of these members stands on, in one line."""
    return f"{len(found['float'].runs)} trainings each · {lambda_study.caption(settings, found)}"


def write(settings: Settings, found: Mapping[str, Repeated]) -> None:
    """The numbers of every training as tidy rows in the run's table."""
    lambda_study.write(settings, {f"{method} {n}": run for method, member in found.items()
                                  for n, run in enumerate(member.runs)})


def alphas(found: Mapping[str, Repeated]) -> pd.DataFrame:
    """FLOAT's |alpha| layer by layer, a column per training; every one began at 0.25."""
    columns = [float_anatomy.alphas(run.network).set_index("layer")["alpha"] for run in found["float"].runs]
    return pd.DataFrame({f"training {n}": column for n, column in enumerate(columns, start=1)}).round(4)


def by_training(found: Mapping[str, Repeated]) -> pd.DataFrame:
    """What each part adds, training by training, in points: do they all say the same?"""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for n in range(len(found["float"].runs)):
        for what, quantity, *pair in lambda_study.contributions({method: m.runs[n] for method, m in found.items()}):
            said = lines.setdefault((what, {"union": "robust"}.get(quantity, quantity)), {})
            more, less = (reading.measured(quantity).value for reading in pair)
            said[f"training {n + 1}"] = f"{100 * (more - less):+.1f}"
    return pd.DataFrame(lines).T


def verdicts(suite: Mapping[str, Repeated], pgd: Mapping[str, Repeated]) -> pd.DataFrame:
    """Over all trainings: FLOAT's own claims under the whole suite; on many images under PGD, what each of its parts
    adds, and whether half-way between the control's batch norms is worth having."""
    low, middle, high = (pgd["dual_bn"].read(OperatingPoint(batch_norm=b)) for b in (0.0, 0.5, 1.0))
    between = (lambda_study.compared("control, half-way between the batch norms: more robust than BN_C", middle, low),
               lambda_study.compared("… and more accurate on clean images than BN_A", middle, high, "clean"))
    parts = tables.verdicts(*lambda_study.parts(pgd), *between)
    return tables.stacked(lambda_study.verdicts({"float": suite["float"]}), parts)


if __name__ == "__main__":
    make([int(seed) for seed in sys.argv[1:]] or SEEDS)
