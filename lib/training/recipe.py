"""A recipe: everything that determines a trained network's weights, checked when it is made."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from lib import WorkbookError, unknown
from lib.attacks.decision import MODES
from lib.attacks.steps import Threat
from lib.models.conditioning import CONDITIONINGS
from lib.models.view import VIEWS
from lib.training.objectives import OBJECTIVES


@dataclass(frozen=True)
class Recipe:
    """One training. Fields from `network` to `seed` determine the weights; the last three only what is watched.

    network: arguments of `zoo.build`.  dataset: a name of `data.load`.  defence: "standard", the form of the attack, or
    a method.  objective: a name of `objectives.OBJECTIVES`.  form: of the attack, where `defence` is a method.
    threat: the training attack, None for standard.
    attack_mode: state of the network while it is attacked, see `attacks.decision`.
    attack_view: what is attacked in mode "eval": "folded" or "bf16", a faster copy (`models.view`); None = the network.
    start: digest of the weights to start from, which are handed to `loop.fit`; None = drawn from the seed.
    constraint: {"name": "sss" | "atmc", **its options}, what training holds the weights to; None = nothing.
    precision: of the training passes, "fp32" or "bf16" (autocast; weights, losses and the optimiser stay in float32).
    label_smoothing: of the cross-entropy that is descended, 0 to 1.
    average_decay: of the mean of the weights that is validated and kept (`constraints`), below 1; None = the weights.
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

    def difference(self, wanted: "Recipe") -> str:
        """The fields in which it trains another network than the wanted one, in words."""
        own, theirs = self.to_json(), wanted.to_json()
        names = [name for name in own if name not in WATCHED and own[name] != theirs[name]]
        return ", ".join(f"{name} {own[name]} instead of {theirs[name]}" for name in names)


WATCHED = ("name", "validate_every", "validation_images", "validation")
