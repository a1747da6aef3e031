"""Makes the networks and records that come with the repository, from finished trainings:

    python3 -m lib train RECIPE                        the training, in data/runs/<recipe>
    python -m lib.workbook.shipping RECIPE [--images N] [--forms clean,main,...] [--folder DIR]

The weights are stored in half precision and every number is computed from the stored file. A killed recording goes on.
"""

import argparse
from pathlib import Path

import torch

from lib import ATLASES, CHECKPOINTS, RUNS, checkpoints, data
from lib.attacks import forms as attack_forms
from lib.attacks.steps import Threat
from lib.evaluation import atlas
from lib.training import recipes

BATCH = 125  # the fastest on one core; part of the record, since random starts are drawn per batch


def ship(name: str, images: int | None = None, forms: tuple[str, ...] | None = None,
         folder: Path | None = None) -> Path:
    """Store the trained network `name` and the record of its test images (all, or the first `images`).

    forms: default: clean, the paper's, random and gate-aware.  Returns the record's path.
    """
    recipe, folder = recipes.find(name), folder or RUNS / name
    trained = checkpoints.load(folder / "last.safetensors")
    path = CHECKPOINTS / f"{name}.safetensors"
    told = {key: value for key, value in trained.metadata.items() if key not in ("config", "format", "kind", "sha256")}
    checkpoints.save(path, trained.network, dtype=torch.float16, **told)
    shipped = checkpoints.load(path)
    dataset = data.load(recipe.dataset, shape=shipped.network.input_shape)
    threat = Threat(*(dataset.threat[key] for key in ("epsilon", "step_size", "steps")))
    found = atlas.record(
        shipped.network.to(memory_format=torch.channels_last), dataset.test[:images], threat=threat,
        forms=forms or ("clean", *attack_forms.names(shipped.network.num_exits)), seed=0, batch_size=BATCH,
        validation=dataset.validation, folder=folder / "record", checkpoint=shipped.digest, dataset=dataset.name,
        data_variant=dataset.variant, defence=recipe.defence)
    target = ATLASES / f"{name}.safetensors"
    found.save(target)
    return target


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.shipping", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--images", type=int, help="only the first so many test images")
    parser.add_argument("--forms", type=lambda text: tuple(text.split(",")))
    parser.add_argument("--folder", type=Path, help="where the trainings are (default data/runs)")
    args = parser.parse_args(argv)
    for name in args.recipes:
        print(ship(name, args.images, args.forms, args.folder and args.folder / name))


if __name__ == "__main__":
    main()
