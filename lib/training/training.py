"""One training under way: its network, optimiser, data, the step it is at, and its files.

Nothing random is remembered: step t draws from streams named by (seed, t), so weights, optimiser and t are all of it.
"""

import functools
import math
import sys
import time
from collections import Counter
from pathlib import Path

import pandas
import torch
from torch import Tensor

from lib import WorkbookError, checkpoints, data, randomness, unknown
from lib.attacks import forms
from lib.models import exits, zoo
from lib.models.network import Network
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.training import objectives
from lib.training.admm import Compression
from lib.training.capture import Captured, Streams
from lib.training.constraints import Averaged, Unconstrained
from lib.training.objectives import OBJECTIVES, Context, Metrics, at_every_width
from lib.training.recipe import Recipe
from lib.training.sparsity import Selection

CONSTRAINTS = {"sss": Selection, "atmc": Compression}
SETTLING = 30  # batches that move an averaged network's batch norm
READ_EVERY = 20  # steps between looks at the losses on a device that runs ahead of the host
VALIDATION_BATCH = 128
FALL = 0.1  # of held-out accuracy, at which one-step training has learned to fool its own attack


class Training:
    """One training under way: network, optimiser, data, the step it is at and what it has reported."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, start: Network | None = None):
        self.recipe, self.folder, self.device = recipe, folder, device
        self.data = data.load(recipe.dataset, device=device, shape=tuple(recipe.network["input_shape"]))
        self.per_epoch, self.total = recipe.per_epoch(len(self.data.train)), recipe.total(len(self.data.train))
        self.network = zoo.build(**recipe.network, seed=recipe.seed)
        if recipe.start is not None:
            if start is None or checkpoints.digest(start.state_dict()) != recipe.start:
                raise WorkbookError(f"{recipe.name} starts from given weights; hand that network to fit(…, start=…), "
                                    "unchanged since the recipe was made")
            self.network.load_state_dict(start.state_dict())
        if len(self.data.classes) != self.network.classes:
            raise WorkbookError(f"{self.data.name} has {len(self.data.classes)} classes, but the network of "
                                f"{recipe.name} has {self.network.classes}; change `classes` in the recipe's network")
        self.network.class_names = self.data.classes
        self.network.to(device, memory_format=torch.channels_last).train()
        self.rate = torch.tensor(0.0, device=device)  # a tensor, so that a captured step can follow the schedule
        kind, told = Unconstrained, dict(recipe.constraint or {})
        if recipe.average_decay is not None:
            kind, told = Averaged, {"total": self.total, "settle": self.settle}
        elif told:
            if (name := told.pop("name")) not in CONSTRAINTS:
                raise unknown("constraint", name, CONSTRAINTS)
            kind = CONSTRAINTS[name]
        self.constraint = kind(self.network, recipe, self.rate, **told)
        self.optimiser, self.deployed = self.constraint.optimiser, self.constraint.deployed
        self.step, self.seconds, self.best, self.fallen = 0, 0.0, -math.inf, False
        self.history: list[dict] = []
        self.sums, self.counts = Counter(), Counter()  # of each reported value over the steps since the last report
        self.unread: list[tuple[int, dict[str, Tensor]]] = []
        self.order: tuple[int, Tensor] | None = None
        self.index = torch.zeros(recipe.batch_size, dtype=torch.int64, device=device)
        self.streams = Streams(recipe.seed, device)
        self.view = objectives.view_of(self.network, recipe)
        self.captured = Captured(self.body, self.streams)
        self.clock = self.saved_at = time.monotonic()

    def stream(self, *labels: str | int) -> torch.Generator:
        return randomness.generator(self.recipe.seed, *labels, device=self.device)

    def indices(self) -> Tensor:
        """Which training images this step sees, (batch_size,)."""
        size = self.recipe.batch_size
        epoch, place = (self.step, 0) if self.recipe.sampler == "iid" else divmod(self.step, self.per_epoch)
        if self.order is None or self.order[0] != epoch:
            source = randomness.generator(self.recipe.seed, "order", epoch)
            self.order = epoch, torch.randperm(len(self.data.train), generator=source).to(self.device)
        return self.order[1][place * size:(place + 1) * size]

    def advance(self) -> None:
        """One step: attack, loss, gradient, update."""
        recipe, step = self.recipe, self.step
        self.rate.fill_(recipe.rate_at(step, self.total, self.per_epoch))
        self.index.copy_(self.indices())
        self.streams.begin(step)
        self.context = Context(recipe, recipe.threat_at(step, self.total), step // self.per_epoch, self.streams,
                               view=self.view)
        metrics = self.captured((self.context.threat, self.context.epoch < recipe.clean_epochs))
        self.step += 1
        self.unread.append((self.step, metrics | self.constraint.after_step(self.step)))
        if self.device.type == "cpu" or len(self.unread) >= READ_EVERY:
            self.read()

    def body(self) -> Metrics:
        """What a step computes on the device: reads and writes nothing but tensors that keep their places."""
        self.optimiser.zero_grad()
        loss, metrics = self.passes(self.network, self.index, self.context)
        (loss + self.constraint.penalty()).backward()
        self.optimiser.step()
        return metrics

    def passes(self, network: Network, index: Tensor, context: Context) -> tuple[Tensor, Metrics]:
        """(loss, what to report) of the training images `index`, augmented and attacked."""
        batch = self.data.train[index]
        how = self.recipe.augmentation or self.data.augmentation
        images = data.augment(batch.images, context.generator("augment"), how)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return at_every_width(OBJECTIVES[self.recipe.objective], network, images, batch.labels, context)

    def settle(self, network: Network) -> None:
        """A training step's forward passes, without an update, on random batches."""
        view, epoch = objectives.view_of(network, self.recipe), math.ceil(self.step / self.per_epoch)
        for k in range(SETTLING):
            stream = functools.partial(self.stream, "average", k)
            index = torch.randint(len(self.data.train), (self.recipe.batch_size,), generator=stream("order"),
                                  device=self.device)
            self.passes(network, index, Context(self.recipe, self.recipe.threat, epoch, stream, view=view))

    def read(self) -> None:
        """Fetch the values of the steps since the last look. Raises WorkbookError at the first that is not finite."""
        if not self.unread:
            return
        values = iter(torch.stack([value for _, metrics in self.unread for value in metrics.values()]).tolist())
        for step, metrics in self.unread:
            for name, value in zip(metrics, values, strict=False):
                if not math.isfinite(value):
                    self.refuse(step)
                self.sums[name] += value
                self.counts[name] += 1
        self.unread = []

    def means(self) -> dict[str, float]:
        """Of what every step since the last report has told."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def refuse(self, step: int):
        raise WorkbookError(f"the loss of {self.recipe.name} is not a finite number at step {step} (the last good "
                            f"state, if any, stays in {self.folder}); train with a learning_rate below "
                            f"{self.recipe.learning_rate:g} or a longer warmup")

    def report(self) -> dict | None:
        """At the end of an epoch, at a validation and at the end: means since the last report, now in the history."""
        validates = self.step % self.recipe.validate_every == 0 or self.step == self.total
        if self.step % self.per_epoch and not validates:
            return None
        self.read()
        row = {"step": self.step, "epoch": round(self.step / self.per_epoch, 2), "learning_rate": self.rate.item()}
        row |= self.means()
        self.sums, self.counts = Counter(), Counter()
        if validates:
            row |= self.validate()
            score = row.get("validation_robust", row["validation_clean"])
            self.fallen = score < self.best - FALL  # as of catastrophic overfitting
            if score > self.best:
                self.best = score
                self.write("best.safetensors", row)
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        self.history.append(row | {"seconds": round(self.seconds, 1)})
        return self.history[-1]

    @torch.no_grad()
    def right(self, network: Network, images: Tensor, labels: Tensor, point: OperatingPoint,
              generator: torch.Generator) -> int:
        """How many images the deployed decision gets right: by the published thresholds, or the last exit."""
        logits, gates = network(images, point, generator), network.paper_thresholds
        answers = logits[-1] if gates is None else exits.routed(logits, gates)[0]
        return (answers.argmax(-1) == labels).sum().item()

    def validate(self) -> dict[str, float]:
        """Accuracy on held-out images: clean at the most accurate point, and under a short attack of the training's own
        form at the most robust one. Attacks always begin at the same starts."""
        split, right = self.data.validation[:self.recipe.validation_images], Counter()
        network = self.deployed().eval()
        target = AttackView(network)
        accurate, robust = network.ends()
        for b, first in enumerate(range(0, len(split), VALIDATION_BATCH)):
            images, labels = split.floats(slice(first, first + VALIDATION_BATCH))
            generator = self.stream("validation", b)
            right["validation_clean"] += self.right(network, images, labels, accurate, generator)
            if self.recipe.validation is not None:
                attacked = forms.craft(self.recipe.attack_form, target, images, labels, self.recipe.validation,
                                       point=robust, generator=generator)
                right["validation_robust"] += self.right(network, attacked, labels, robust, generator)
        self.network.train()
        return {name: count / len(split) for name, count in right.items()}

    def write(self, name: str, metrics: dict) -> Path:
        checkpoints.save(self.folder / name, self.deployed(), recipe=self.recipe.to_json(),
                         recipe_digest=self.recipe.digest(), dataset=self.data.name,
                         data_variant=self.data.variant, training_images=len(self.data.train), step=self.step,
                         total=self.total, finished=self.step == self.total, metrics=metrics,
                         seconds=round(self.seconds, 1), device=self.device.type, threads=torch.get_num_threads(),
                         torch=torch.__version__)
        return self.folder / name

    def values(self) -> dict:
        """What a resumed training needs besides tensors."""
        return {"recipe_digest": self.recipe.digest(), "step": self.step, "seconds": self.seconds,
                "data": [self.data.name, self.data.variant, len(self.data.train)], "history": self.history,
                "threads": torch.get_num_threads(), "sums": self.sums,
                "counts": self.counts, "best": None if self.best == -math.inf else self.best}

    def save(self) -> None:
        """Write the state to resume from, after making sure that it is worth it."""
        self.read()
        self.seconds, self.clock = self.seconds + time.monotonic() - self.clock, time.monotonic()
        if not torch.stack([p.detach().isfinite().all() for p in self.network.parameters()]).all():
            self.refuse(self.step)
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": t for name, t in state.items() if t is not None}
        checkpoints.save_state(self.folder / "state.safetensors", tensors | self.constraint.tensors(), self.values())
        table = pandas.DataFrame(self.history, dtype=object)  # a column for everything that any row reports
        checkpoints.replace(self.folder / "history.csv", table.to_csv(index=False).encode())
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go back to the saved state, where there is one. Raises WorkbookError when it is of other data or damaged."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        tensors, values = checkpoints.load_state(path, self.device)
        if values["recipe_digest"] != self.recipe.digest() or values["data"] != self.values()["data"]:
            raise WorkbookError(f"{path} was trained on {', '.join(map(str, values['data']))} by recipe "
                                f"{values['recipe_digest']}, which is not what is asked now; choose another folder")
        if self.device.type == "cpu" and (before := values.get("threads")) not in (None, torch.get_num_threads()):
            print(f"{self.recipe.name} was begun with {before} threads and goes on with {torch.get_num_threads()}: not "
                  f"bit for bit what it would have become (OMP_NUM_THREADS={before} keeps to them)", file=sys.stderr)
        self.network.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("network.")})
        self.constraint.load(tensors)
        state: dict[int, dict] = {}
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for name, t in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                like = parameters[int(index)]  # fused SGD needs its buffers in the parameter's own memory layout
                state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(t) if t.shape == like.shape else t
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.step, self.seconds, self.history = values["step"], values["seconds"], values["history"]
        self.best = -math.inf if values["best"] is None else values["best"]
        self.sums, self.counts = Counter(values["sums"]), Counter(values["counts"])
