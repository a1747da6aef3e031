"""Recipes composed from network, dataset, defence and preset.

    recipes.find("rdi_smallcnn-mnist-max_average-laptop")

Presets: `paper` is the published schedule (Hu et al. 2020, section 4.1, and the released code where the paper is
silent), `laptop` takes minutes on a CPU core, `quick` takes seconds, and `glance` is `quick` in fewer and cheaper
steps, for notebooks that train several networks. A name and a seed mean one training everywhere.
"""

import difflib
import functools
import re
from pathlib import Path

import torch

from lib import DATASETS, WorkbookError, data, unknown
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.training import methods, sparsity
from lib.training.methods import Images
from lib.training.recipe import Recipe

PRESETS = ("glance", "quick", "laptop", "paper")

# Every network of a listed name: arguments of zoo.build.
RDI, PLAIN = ("standard", "main", "average", "max_average"), ("standard", "main")
EARLY = {"smallcnn": 2, "resnet38": 6, "mobilenet_v2": 2}  # side exits, each a defence of its own (footnote 1)
EXIT_WEIGHTS = {"rdi_resnet38": (0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 2.0), "rdi_mobilenet_v2": (0.5, 0.5, 1.0)}
EXIT_WEIGHTS["cheap_resnet38"] = EXIT_WEIGHTS["rdi_resnet38"]
NETWORKS = {prefix + name: dict(name=name, exits=exits)
            for prefix, exits in (("rdi_", "rdi"), ("", "none")) for name in methods.BACKBONES}
NETWORKS |= {"cheap_resnet38": dict(name="resnet38", exits="cheap")}  # heads that pool first
NETWORKS |= {name: dict(name=name, exits="none") for name in methods.TRAINED_ON}

GREY, COLOUR = ("digits", "mnist", "fashion_mnist"), ("digits", "cifar10", "cifar100", "svhn")
COPIES = {"cifar10_jpeg": "cifar10", "cifar10_png": "cifar10"}  # image folders of a named dataset's images
FEW = 5_000  # training images of a folder below which it takes the schedules of digits


@functools.cache
def names() -> tuple[str, ...]:
    """Every recipe's name, "<network>-<dataset>-<defence>-<preset>"."""
    return tuple(f"{network}-{dataset}-{defence}-{preset}" for network in NETWORKS for dataset in _datasets(network)
                 for defence in _defences(network) for preset in PRESETS)


def _datasets(network: str) -> tuple[str, ...]:
    if network in methods.TRAINED_ON:
        return methods.TRAINED_ON[network] + tuple(COPIES)
    return GREY if network.endswith("smallcnn") else COLOUR + tuple(COPIES)


def _defences(network: str) -> tuple[str, ...]:
    if NETWORKS[network]["name"] not in methods.BACKBONES:
        return methods.methods(network)
    if NETWORKS[network]["exits"] == "none":
        return PLAIN + methods.methods(network)
    sides = tuple(f"single{k}" for k in range(1, EARLY[NETWORKS[network]["name"]] + 1))
    return RDI + sides + methods.methods(network)


def find(name: str) -> Recipe:
    """The recipe of that name, listed or composed; one of `sparsity.published` by its ending, "-r007".

    Raises WorkbookError with the nearest names when there is none.
    """
    parts = str(name).split("-")
    if len(parts) == 5 and parts[-1] in sparsity.PUBLISHED_WIDTHS:
        return sparsity.published(find("-".join(parts[:-1])), parts[-1])
    if name in names():
        return _composed(*parts)
    near = difflib.get_close_matches(str(name), names(), 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "a name is <network>-<dataset>-<defence>-<preset>"
    if len(parts) != 4:
        raise WorkbookError(f"there is no recipe '{name}'; {hint}")
    try:
        return compose(*parts)
    except WorkbookError as error:
        raise WorkbookError(f"there is no recipe '{name}'; {hint if near else error}") from error


def compose(network: str, dataset: str | Path, defence: str, preset: str = "laptop") -> Recipe:
    """The recipe of any four: a listed one, or another, whose network is built once, without weights, as a check.

    network: a registered one, "mine" or "module:mine", with exits of a design as "rdi_mine".  dataset: a name, or the
    path of an image folder.  defence: "standard", an attack form, or a name of `methods.METHODS`.
    Raises WorkbookError for unknown names, and for what cannot be built or attacked so.
    """
    recipe = _composed(network, dataset, defence, preset)
    if recipe.name not in names():
        with torch.device("meta"):
            exits = zoo.build(**recipe.network, seed=None).num_exits
        if recipe.threat is not None:
            forms.find(recipe.attack_form, exits)
    return recipe


def _composed(network: str, dataset: str | Path, defence: str, preset: str) -> Recipe:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    known = tuple(dict.fromkeys((*RDI, *forms.FORMS, *methods.METHODS)))
    if defence not in known and not re.fullmatch("single[1-9]", defence):
        raise unknown("method", defence, known)
    built, images = NETWORKS.get(network) or _own(network), described(dataset)  # a module may add both
    make = methods.fields if defence in methods.METHODS else methods.rdi_fields
    fields = make(built["name"], images, defence, "quick" if preset == "glance" else preset)
    if preset == "glance" and built["name"] != "smallcnn":
        one = fields["threat"] and Threat(fields["threat"].epsilon, 1.25 * fields["threat"].epsilon, 1)
        fields |= dict(iterations=40, threat=one, learning_rate=0.1 if one else 0.05)
    if built["exits"] != "none" and fields.get("form"):
        fields["form"] = "average"
    fields["network"] = {**built, "classes": images.classes, **fields["network"]}
    if images.count is not None:  # an image folder may be smaller than any batch
        fields["batch_size"] = min(fields.get("batch_size", Recipe.batch_size), images.count)
    return Recipe(name=f"{network.rpartition(':')[2]}-{images.name}-{defence}-{preset}", dataset=images.dataset,
                  defence=defence, exit_weights=EXIT_WEIGHTS.get(network), **fields)


def _own(network: str) -> dict:
    """A registered network, as it is or with exits of the design before its name, as arguments of `zoo.build`."""
    module, colon, own = network.rpartition(":")
    exits, _, rest = own.partition("_")
    for name, design in ((network, "none"), (f"{module}{colon}{rest}", exits)):
        try:
            return dict(name=zoo.find(name), exits=design)
        except zoo.Missing:
            raise
        except WorkbookError:
            continue
    raise unknown("network", network, dict.fromkeys((*NETWORKS, *zoo.BACKBONES)))


def described(dataset: str | Path) -> Images:
    """A named dataset, or an image folder, which is read. Raises WorkbookError as `data.load`."""
    if dataset == "digits":
        return Images(dataset, dataset, dataset, (3, 16, 16), 10, data.DIGITS_THREAT)
    if source := data.SOURCES.get(like := COPIES.get(dataset, dataset)):
        return Images(dataset, dataset, like, source.shape, source.classes, source.threat)
    folder, found = data.find_folder(str(dataset)), data.load(dataset)
    inside = folder.is_relative_to(place := DATASETS.resolve())
    like = "digits" if len(found.train) < FEW else "mnist" if found.shape[0] == 1 else "cifar10"
    return Images(found.name.replace("-", "_"), str(folder.relative_to(place) if inside else folder), like, found.shape,
                  len(found.classes), found.threat, len(found.train))
