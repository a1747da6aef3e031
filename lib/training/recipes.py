"""Recipes: everything that determines a trained network's weights, composed from network, dataset, defence and preset.

    recipes.find("rdi_smallcnn-mnist-max_average-laptop")

Presets: `paper` is the published schedule (Hu et al. 2020, section 4.1, and the released code where the paper is
silent), `laptop` takes minutes on a CPU core, `quick` takes seconds, and `glance` is `quick` in fewer and cheaper
steps, for notebooks that train several networks. A name and a seed mean one training everywhere.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lib import DATASETS, WorkbookError, data, unknown
from lib.attacks import forms
from lib.attacks.modes import MODES
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.models.conditioning import CONDITIONINGS
from lib.models.view import VIEWS
from lib.training import methods
from lib.training.objectives import OBJECTIVES

PRESETS = ("glance", "quick", "laptop", "paper")


@dataclass(frozen=True)
class Recipe:
    """One training. Fields from `network` to `seed` determine the weights; the last three only what is watched.

    network: arguments of `zoo.build`.  dataset: a name of `data.load`.  defence: "standard", the form of the attack, or
    a method.  objective: a name of `objectives.OBJECTIVES`.  form: of the attack, where `defence` is a method.
    threat: the training attack, None for standard.
    attack_mode: state of the network while it is attacked, see `attacks.modes`.
    attack_view: what is attacked in mode "eval": "folded" or "bf16", a faster copy (`models.view`); None = the network.
    start: digest of the weights to start from, which are handed to `loop.fit`; None = drawn from the seed.
    constraint: {"name": "sss" | "atmc", **its options}, what training holds the weights to; None = nothing.
    precision: of the training passes, "fp32" or "bf16" (autocast; weights, losses and the optimiser stay in float32).
    label_smoothing: of the cross-entropy that is descended, 0 to 1.
    average_decay: of the mean of the weights that is validated and kept (`averaging`), below 1; None = the weights.
    exit_weights: w_i of the loss, one per exit; None = 1 each.  adversarial_weight: share of the adversarial loss.
    split: PGD-AT trains on the "full" batch, clean and attacked, or on disjoint clean and attacked halves, "half".
    clean_epochs: PNI's first epochs, without attack.  alpha_decay: weight decay of trained noise scales.
    iterations or epochs: how long, exactly one of them. An epoch drops the last incomplete batch.
    schedule: "multistep" (x0.1 at each milestone, counted as the length is), "linear" or "cosine" (to 0; cosine falls
    once per epoch), "constant"; before it the rate rises linearly over `warmup`, a share of the iterations.
    epsilon_warmup: share of the iterations over which epsilon and step size of the training attack rise linearly.
    sampler: "epoch" (permutations) or "iid" (each batch the head of a fresh permutation, as the released code).
    augmentation: None = the dataset's.
    validate_every: iterations between validations, each on `validation_images` held-out images under `validation`.
    """

    name: str
    network: dict
    dataset: str
    defence: str
    objective: str
    form: str | None = None
    threat: Threat | None = None
    attack_mode: str = "eval"
    attack_view: str | None = None
    precision: str = "fp32"
    label_smoothing: float = 0.0
    average_decay: float | None = None
    exit_weights: tuple[float, ...] | None = None
    adversarial_weight: float = 0.5
    split: str = "full"
    clean_epochs: int = 0
    iterations: int | None = None
    epochs: float | None = None
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    alpha_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    warmup: float = 0.0
    epsilon_warmup: float = 0.0
    sampler: str = "epoch"
    augmentation: str | None = None
    seed: int = 0
    start: str | None = None
    constraint: dict | None = None
    validate_every: int = 1000
    validation_images: int = 1000
    validation: Threat | None = None

    def __post_init__(self):
        if self.average_decay is not None and (self.constraint or not 0 < self.average_decay < 1):
            raise WorkbookError(f"recipe {self.name}: average_decay {self.average_decay} has to lie between 0 and 1, "
                                "and a constrained training has no average; leave one of them out")
        if (self.iterations is None) == (self.epochs is None):
            raise WorkbookError(f"recipe {self.name} needs either iterations or epochs")
        for name, value, known in (("objective", self.objective, OBJECTIVES),
                                   ("conditioning", self.network.get("conditioning", "none"), CONDITIONINGS),
                                   ("schedule", self.schedule, ("multistep", "linear", "cosine", "constant")),
                                   ("sampler", self.sampler, ("epoch", "iid")),
                                   ("split", self.split, ("full", "half")),
                                   ("precision", self.precision, ("fp32", "bf16")),
                                   ("attack_mode", self.attack_mode, MODES),
                                   ("attack_view", self.attack_view or "folded", VIEWS)):
            if value not in known:
                raise WorkbookError(f"recipe {self.name}: {unknown(name, value, known)}")
        if self.attack_view is not None and self.attack_mode != "eval":
            raise WorkbookError(f"recipe {self.name}: a {self.attack_view} view stands for the network in mode eval; "
                                f"in mode {self.attack_mode} attack the network itself")

    @property
    def label(self) -> str:
        """Name and seed, as the folder of its training is called."""
        return f"{self.name}-seed{self.seed}"

    @property
    def attack_form(self) -> str:
        """What the training attack maximises, a name of `forms.names`."""
        return self.form or self.defence

    def per_epoch(self, images: int) -> int:
        """Iterations in an epoch of `images` training images. Raises WorkbookError when they do not fill one batch."""
        if images < self.batch_size:
            raise WorkbookError(f"recipe {self.name} needs batches of {self.batch_size}, but there are only {images} "
                                "training images; use a smaller batch_size")
        return images // self.batch_size

    def total(self, images: int) -> int:
        """Iterations of the whole training."""
        per_epoch = self.per_epoch(images)
        return self.iterations if self.iterations is not None else max(1, round(self.epochs * per_epoch))

    def rate_at(self, step: int, total: int, per_epoch: int) -> float:
        """Learning rate of iteration `step` (from 0)."""
        rising = round(self.warmup * total)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.schedule == "multistep":
            unit = 1 if self.epochs is None else per_epoch
            return self.learning_rate * 0.1 ** sum(step >= m * unit for m in self.milestones)
        if self.schedule == "linear":
            return self.learning_rate * (total - step) / (total - rising)
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * (step // per_epoch) * per_epoch / total)) / 2
        return self.learning_rate

    def threat_at(self, step: int, total: int) -> Threat | None:
        """The training attack of iteration `step`, weaker while epsilon still rises."""
        rising = round(self.epsilon_warmup * total)
        if self.threat is None or step >= rising:
            return self.threat
        share = (step + 1) / rising
        return dataclasses.replace(self.threat, epsilon=self.threat.epsilon * share,
                                   step_size=self.threat.step_size * share)

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Recipe":
        """The inverse of `to_json`. Raises WorkbookError on fields that this version does not know."""
        values = dict(values)
        try:
            for name in ("threat", "validation"):
                if values.get(name) is not None:
                    values[name] = Threat(**values[name])
            for name in ("exit_weights", "milestones"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return cls(**values)
        except TypeError as error:
            raise WorkbookError(f"this recipe was written by another version of the project ({error})") from error

    def digest(self) -> str:
        """A hash of all that determines the weights. Fields at their default are left out, so that a field added by a
        later version does not rename the recipes of this one."""
        fields = [f for f in dataclasses.fields(self) if f.name not in WATCHED and getattr(self, f.name) != f.default]
        values = {f.name: self.to_json()[f.name] for f in fields}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


WATCHED = ("name", "validate_every", "validation_images", "validation")

# Every network of a recipe's name: arguments of zoo.build, and what the papers train it with.
RDI, PLAIN = ("standard", "main", "average", "max_average"), ("standard", "main")
BACKBONES = {
    "smallcnn": dict(iterations=13_100, milestones=(12_000, 12_900), batch_size=256, learning_rate=0.033,
                     weight_decay=5e-4),
    "resnet38": dict(iterations=55_000, milestones=(32_000, 48_000), learning_rate=0.1, weight_decay=1e-4),
    "mobilenet_v2": dict(iterations=76_000, milestones=(62_000, 70_000), learning_rate=0.05, weight_decay=1e-4),
}
EARLY = {"smallcnn": 2, "resnet38": 6, "mobilenet_v2": 2}  # side exits, each a defence of its own (footnote 1)
EXIT_WEIGHTS = {"rdi_resnet38": (0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 2.0), "rdi_mobilenet_v2": (0.5, 0.5, 1.0)}
EXIT_WEIGHTS["cheap_resnet38"] = EXIT_WEIGHTS["rdi_resnet38"]
NETWORKS = {prefix + name: dict(name=name, exits=exits)
            for prefix, exits in (("rdi_", "rdi"), ("", "none")) for name in BACKBONES}  # fmt: skip
NETWORKS |= {"cheap_resnet38": dict(name="resnet38", exits="cheap")}  # heads that pool first
NETWORKS |= {name: dict(name=name, exits="none") for name in methods.DATASETS}

GREY, COLOUR = ("digits", "mnist", "fashion_mnist"), ("digits", "cifar10", "cifar100", "svhn")
COPIES = {"cifar10_jpeg": "cifar10", "cifar10_png": "cifar10"}  # image folders of a named dataset's images
STUDIED = {*BACKBONES, *methods.DATASETS}  # networks that the short presets make smaller; others stay as they are
FEW = 5_000  # training images of a folder below which it takes the schedules of digits


@functools.cache
def names() -> tuple[str, ...]:
    """Every recipe's name, "<network>-<dataset>-<defence>-<preset>"."""
    return tuple(f"{network}-{dataset}-{defence}-{preset}" for network in NETWORKS for dataset in _datasets(network)
                 for defence in _defences(network) for preset in PRESETS)


def _datasets(network: str) -> tuple[str, ...]:
    if network in methods.DATASETS:
        return methods.DATASETS[network] + tuple(COPIES)
    return GREY if network.endswith("smallcnn") else COLOUR + tuple(COPIES)


def _defences(network: str) -> tuple[str, ...]:
    if NETWORKS[network]["name"] not in BACKBONES:
        return methods.methods(network)
    if NETWORKS[network]["exits"] == "none":
        return PLAIN + methods.methods(network)
    sides = tuple(f"single{k}" for k in range(1, EARLY[NETWORKS[network]["name"]] + 1))
    return RDI + sides + methods.methods(network)


def find(name: str) -> Recipe:
    """The recipe of that name, listed or composed. Raises WorkbookError with the nearest names when there is none."""
    parts = str(name).split("-")
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
    make = methods.fields if defence in methods.METHODS else _fields
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


class Images(NamedTuple):
    """What a recipe has to know of a dataset. like: the named one whose schedules it takes.  dataset: for `data.load`.

    name: in the recipe's name.  count: training images of an image folder, which may be few; None = a named dataset's.
    """

    name: str
    dataset: str
    like: str
    shape: tuple[int, int, int]
    classes: int
    threat: dict
    count: int | None = None


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


def _fields(backbone: str, images: Images, defence: str, preset: str) -> dict:
    """Fields of an RDI recipe; `network` holds only the arguments that depend on dataset and preset."""
    attack = Threat(*(images.threat[name] for name in ("epsilon", "step_size", "train_steps")))
    shape = (1, 28, 28) if backbone == "smallcnn" and images.name == "digits" else methods.shape(images, preset)
    fields = dict(threat=attack, objective="rdi", sampler="iid", attack_mode="authors", schedule="multistep",
                  **BACKBONES.get(backbone, BACKBONES["resnet38"]))
    if preset != "paper":
        fields |= _laptop(backbone, images.like, attack) if preset == "laptop" else _quick(backbone, attack)
    smaller = fields.pop("smaller", {})
    fields["network"] = {"input_shape": list(shape), **(smaller if backbone in STUDIED else {})}
    if defence == "standard":
        fields |= dict(objective="standard", threat=None, attack_mode="eval", attack_view=None, epsilon_warmup=0.0)
        if preset != "paper":  # without the rise of epsilon the high rate of the defended trainings diverges
            fields["learning_rate"] = min(fields["learning_rate"], 0.05)
    else:
        fields["validation"] = Threat(attack.epsilon, attack.epsilon / 4, 10)
    return fields


def _one_cycle(attack: Threat, steps: int, **fields) -> dict:
    """A short training: the rate rises and falls linearly, epsilon rises, few large attack steps in eval mode."""
    threat = dataclasses.replace(attack, steps=steps, step_size=attack.epsilon * 1.7 / steps)
    return dict(threat=threat, attack_mode="eval", iterations=None, milestones=(), schedule="linear", warmup=0.2,
                epsilon_warmup=0.3, sampler="epoch", batch_size=128) | fields


def _laptop(backbone: str, dataset: str, attack: Threat) -> dict:
    if backbone != "smallcnn" and dataset != "digits":
        return methods.one_cycle(attack.epsilon)
    if backbone != "smallcnn":
        return _one_cycle(attack, 3, smaller=dict(width_multiplier=0.5), validate_every=500, validation_images=200,
                          attack_view="folded", epochs=12, batch_size=32, learning_rate=0.05)
    if dataset == "digits":
        return _one_cycle(attack, 4, epochs=18, batch_size=32, learning_rate=0.02, epsilon_warmup=0.4,
                          validate_every=100, validation_images=200)  # at 0.05 max-average does not start
    return _one_cycle(attack, 5, epochs=7, learning_rate=0.1, validate_every=120, validation_images=256)


def _quick(backbone: str, attack: Threat) -> dict:
    smaller = dict(width_multiplier=0.25) | ({} if backbone == "smallcnn" else dict(depth_multiplier=0.34))
    return _one_cycle(attack, 2, smaller=smaller, iterations=100, batch_size=32, learning_rate=0.05, warmup=0.1,
                      epsilon_warmup=0.2, validation_images=100)
