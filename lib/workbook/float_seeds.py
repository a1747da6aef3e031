"""What FLOAT's noise adds, over several trainings: FLOAT and its control without noise, in pairs of the same seed.

    python -m lib.workbook.float_seeds [SEED …]        trains and records the shipped pairs; a kill costs little

Thin ResNet-20s on Fashion-MNIST by their laptop recipes, attacked through a folded copy, which is faster.
"""

import dataclasses
import sys
from collections.abc import Callable

import torch

from lib import ATLASES, CHECKPOINTS, RUNS, checkpoints, data
from lib.attacks.steps import Threat
from lib.evaluation import grid as grids
from lib.evaluation import points
from lib.evaluation.grid import Attack
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training import loop, recipes
from lib.training.recipes import Recipe

METHODS, SEEDS, DATASET = ("float", "dual_bn"), (0, 1, 2), "fashion_mnist"
IMAGES, STEPS, DRAWS = 5000, 20, 5  # of the shipped records; draws: of EOT's gradients, and at evaluation
FULL, QUIET, CLEAN = (OperatingPoint(noise=s, batch_norm=b) for s, b in ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0)))
BN_A, BN_C = OperatingPoint(batch_norm=1.0), OperatingPoint(batch_norm=0.0)


def recipe(method: str, seed: int) -> Recipe:
    return dataclasses.replace(recipes.find(f"resnet20-{DATASET}-{method}-laptop"), seed=seed, attack_view="folded")


def halfway(network: Network) -> OperatingPoint:
    """Between the batch norms, without noise."""
    return OperatingPoint(batch_norm=0.5, **({"noise": 0.0} if "noise" in network.knobs else {}))


def plan(threat: Threat, draws: int = DRAWS) -> Callable[[Network], tuple[Attack, ...]]:
    """What is recorded of a network: at the published points, at (no noise, BN_A), and halfway between the batch norms.

    Clean images; PGD at each point, and that of a point without noise also where there is noise (transfer); where there
    is noise an averaging attacker, elsewhere two restarts instead, so that the suites of both hold three attacks.
    """
    def attacks(network: Network) -> tuple[Attack, ...]:
        at = (*points.published(network), halfway(network))
        noisy = [p for p in at if network.conditions(p).noisy]
        white = [Attack((p, *(q for q in noisy if q != p and points.quiet(q) == p)), threat, p) for p in at]
        averaging = [Attack((p,), dataclasses.replace(threat, draws=draws), p) for p in noisy]
        return (Attack(at), *white, *averaging,
                *(Attack((p,), threat, p, again) for p in at if p not in noisy for again in (1, 2)))

    return attacks


def make(seeds=SEEDS) -> None:
    """Train and record the shipped pairs that are not there yet."""
    images = data.load(DATASET)
    threat = Threat(images.threat["epsilon"], images.threat["step_size"], STEPS)
    for seed in seeds:
        for method in METHODS:
            asked = recipe(method, seed)
            name = f"{asked.name}-seed{seed}.safetensors"
            weights, record = CHECKPOINTS / "repeats" / name, ATLASES / "repeats" / name
            if record.is_file():
                continue
            trained = checkpoints.load(loop.fit(asked, RUNS / "seeds" / weights.stem, progress=False).path)
            told = {k: v for k, v in trained.metadata.items() if k not in ("config", "format", "kind", "sha256")}
            checkpoints.save(weights, trained.network, dtype=torch.float16, **told)
            shipped = checkpoints.load(weights)
            grids.record(shipped.network, images.test[:IMAGES], plan(threat)(shipped.network), draws=DRAWS,
                         folder=RUNS / "seeds" / f"{weights.stem}-record", progress=False, dataset=images.name,
                         data_variant=images.variant, split="test", checkpoint=shipped.digest,
                         defence=method).save(record)
            print(name, flush=True)


if __name__ == "__main__":
    make([int(seed) for seed in sys.argv[1:]] or SEEDS)
