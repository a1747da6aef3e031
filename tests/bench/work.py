"""What is timed: each piece of work in its plain form, and the same work done by the engine in one or several ways.

`GROUPS` names the rows that share one plain form. Making a group's `Work` checks first that both sides do the same:
equal where it can be equal, otherwise an attained loss that is as high.
"""

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

import lib
from lib import WorkbookError, checkpoints, data
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.evaluation import latency, recording, tuning
from lib.evaluation.record import Record
from lib.models import exits, released, zoo
from lib.models.view import VIEWS, AttackView
from lib.operating_point import OperatingPoint
from lib.randomness import generator
from lib.training import objectives, recipes
from lib.training.recipe import Recipe
from tests.bench import reference

THREAT, BATCH = Threat(8 / 255, 2 / 255, 10), 32
FEW = Threat(8 / 255, 2 / 255, 5)
SHORT, ONE = Threat(8 / 255, 2 / 255, 3), Threat(8 / 255, 2 / 255, 1)  # for the checks before the timing


class Engine(NamedTuple):
    """One way of doing a group's work, and what is known of its result."""

    run: Callable
    note: str


class Work(NamedTuple):
    """The plain form, and by the name of its row each engine that is compared with it."""

    plain: Callable
    engines: dict[str, Engine]
    parts: Sequence = ((),)  # arguments of the calls that make up one turn, all sides taking turns at each
    turns: int = 1  # in a round


def require(held: bool, sentence: str):
    if not held:
        raise WorkbookError(f"nothing is timed, because {sentence}")


def batch(size: int = BATCH):
    source = generator(0, "bench", size)
    return torch.rand(size, 3, 32, 32, generator=source), torch.randint(0, 10, (size,), generator=source)


def bf16_note() -> str:
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "" if fast else "; no avx512_bf16 here: emulated"


def attacks(rows: Sequence[str]) -> Work:
    """Max-average attacks: bit-equal on the network itself (NCHW), at least as strong within bounds on its views."""
    plain, ours = reference.twins()
    x, y = batch()

    def slow(threat=THREAT):
        return reference.max_average(plain, x, y, threat, [generator(0, "start")] * 7)

    def of(target):
        return lambda threat=THREAT: forms.craft("max_average", target, x, y, threat, generator=generator(0, "start"))

    expected, engines = slow(SHORT), {}
    for row in rows:
        if row == "attack_exact":
            engines[row] = Engine(of(ours), "bit-equal, NCHW")
            require(torch.equal(of(ours)(SHORT), expected), "the attack is not bit-equal to the plain form")
            continue
        kind, tolerance = {"attack_folded": ("folded", 0.005), "attack_bf16": ("bf16", 0.01)}[row]
        fast = of(AttackView(ours, VIEWS[kind]))
        with torch.no_grad():
            attained, least = (reference.total_loss(plain, found, y).mean() for found in (fast(SHORT), expected))
        gap = (attained / least - 1).item()
        require(gap > -tolerance, f"{row} attains {-gap:.2%} less loss than the plain form")
        engines[row] = Engine(fast, f"attained loss {gap:+.2%}" + (bf16_note() if kind == "bf16" else ""))
    return Work(slow, engines)


STEPS = {"step_batch": dict(attack_mode="batch"), "step_authors": dict(attack_mode="authors"),
         "step_folded": dict(attack_mode="eval", attack_view="folded"),
         "step_bf16": dict(attack_mode="eval", attack_view="bf16")}


def attacked(form: str, x, y, threat: Threat, seed: int) -> Callable:
    """The plain form of an attack, as a function of the network."""
    source, plain = generator(seed, "step"), {"main": lambda *a: reference.single(*a, 6), "average": reference.average}
    if form == "max_average":
        return lambda network: reference.max_average(network, x, y, threat, [source] * 7)
    return lambda network: plain[form](network, x, y, threat, source)


def training_steps(rows: Sequence[str], form: str = "max_average", ways: Mapping[str, dict] = STEPS) -> Work:
    """Whole training steps, SGD included, against the released form in train mode.

    Attacks in modes batch and authors have its losses (checked in NCHW); in mode eval the problem is another, usual
    one, and a view's loss is held against that of the network itself.
    """
    plain, ours = reference.twins()
    x, y = batch()
    recipe = recipes.find(f"rdi_resnet38-cifar10-{form}-paper")
    recipe = replace(recipe, learning_rate=0.01)  # at 0.1 random weights make chaos of the last bit

    def slow(network):
        rates = sgd(network, recipe)
        return lambda threat=THREAT, seed=0: reference.train_step(
            network, rates, x, y, attacked(form, x, y, threat, seed), recipe.exit_weights)

    def engine(layout=torch.channels_last, **changes):
        network = copy.deepcopy(ours).train().to(memory_format=layout)
        return stepper(network, replace(recipe, **changes), x.contiguous(memory_format=layout), y,
                       objectives.rdi, THREAT)

    expected, engines = slow(copy.deepcopy(plain)), {}
    told = [expected(ONE, seed) for seed in range(5)]
    for row in rows:
        changes = ways[row]
        if changes["attack_mode"] == "eval":
            seen, usual = (engine(**changes | change)(ONE) for change in ({}, {"attack_view": None}))
            require(abs(seen / usual - 1) < 0.01, f"{row} loses {seen:.4f}, the attacked network itself {usual:.4f}")
            note = f"mode eval, first loss {seen / usual - 1:+.2%}" + (bf16_note() if row == "step_bf16" else "")
        else:
            step = engine(torch.contiguous_format, **changes)
            gaps = [abs(step(ONE, seed) - loss) for seed, loss in enumerate(told)]
            require(max(gaps) < 1e-4, f"the losses of {row} differ from the plain form's by up to {max(gaps):.1e}")
            note = f"mode {changes['attack_mode']}, losses of 5 steps equal to 4 decimals in NCHW"
        engines[row] = Engine(engine(**changes), note)
    return Work(slow(plain), engines)


def other_steps(rows: Sequence[str]) -> Work:
    """The same of the defence that the row names."""
    return training_steps(rows, rows[0].removeprefix("step_"), {rows[0]: dict(attack_mode="batch")})


def sgd(network, recipe: Recipe, **options):
    return torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum,
                           weight_decay=recipe.weight_decay, **options)


def stepper(network, recipe: Recipe, x, y, objective: Callable, threat: Threat) -> Callable:
    """step(threat, seed) -> loss: a whole training step on images `x`."""
    optimiser, view = sgd(network, recipe, fused=True), objectives.view_of(network, recipe)

    def step(threat=threat, seed=0):
        context = objectives.Context(recipe, threat, 0, lambda _: generator(seed, "step"), view=view)
        loss, _ = objectives.at_every_width(objective, network, x, y, context)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def evaluation(rows: Sequence[str]) -> Work:
    """All K + 3 forms on 16 images, PGD-5. Here a single attack is crafted once, in the plain way for every form that
    needs it. On the network itself images are bit-equal; on a folded view every form attains as much loss."""
    plain, ours = reference.twins()
    x, y = batch(16)
    wanted, of = forms.paper_forms(ours.num_exits), {"suite_exact": ours, "suite": AttackView(ours)}

    def slow(threat=FEW):
        return reference.suite(plain, x, y, threat, lambda form: generator(0, "attack", form, 0), wanted)

    def fast(target):
        return lambda threat=FEW: forms.suite(target, x, y, threat, wanted, seed=0)

    expected, engines = slow(SHORT), {}
    for row in rows:
        found = fast(of[row])(SHORT)
        if row == "suite_exact":
            require(all(torch.equal(found[form], expected[form]) for form in wanted), f"{row} is not bit-equal")
            engines[row] = Engine(fast(of[row]), "9 forms, bit-equal, NCHW")
            continue
        with torch.no_grad():
            gaps = [reference.total_loss(plain, found[form], y).mean() / reference.total_loss(plain, images, y).mean()
                    for form, images in expected.items()]
        lowest = min(gaps).item() - 1
        require(lowest > -0.005, f"a form of {row} attains {-lowest:.2%} less loss than the plain form")
        engines[row] = Engine(fast(of[row]), f"9 forms, folded view, attained losses {lowest:+.2%} or more")
    return Work(slow, engines)


def recorded(rows: Sequence[str]) -> Work:
    """Recording RDI-ResNet38 on 125 digits, the paper's forms: attacks on the folded copy, answers of the network, kept
    whole; against the same forms crafted on the network itself, whose exits are then asked."""
    network = checkpoints.load(lib.CHECKPOINTS / "rdi_resnet38-digits-max_average-laptop.safetensors").network
    network = network.to(memory_format=torch.channels_last)
    split = data.load("digits", shape=network.input_shape).test[:125]
    (x, y), views = split.floats(), recording.suite(network, Threat(0.1, 0.01, 20))

    def slow():
        shown = forms.suite(network, x, y, views[-1].threat, [v.form for v in views if v.attacked], seed=0)
        with torch.no_grad():
            return torch.stack([network(images).argmax(-1) for images in (x, *shown.values())])

    def fast():
        return recording.record(network, split, views, batch_size=125, audited=0)

    alike = (slow().numpy() == fast().prediction).mean()
    require(alike > 0.99, f"only {alike:.1%} of the recorded answers are those under attacks on the network itself")
    return Work(slow, {rows[0]: Engine(fast, f"9 forms and clean, 125 digits, {alike:.2%} of the answers alike")})


def routed(rows: Sequence[str]) -> Work:
    """A network with early exits against its plain backbone, both folded, batches of the row's size.

    Exits and thresholds are tuned with times measured here, on the held-out clean images of a record and half of its
    attacked ones. The others judge, and tell what shares leave at each exit; random images leave in those shares, the
    same ones in every turn, so that the work is the same in every run but for what the tuning chose. Both sides take
    turns batch by batch, on a heap that is kept (see `latency.keep_heap`).
    """
    kind, size = rows[0].split("_")
    size, record = int(size), RECORDS[kind]()
    latency.keep_heap()
    early, plain = (AttackView(zoo.build("resnet38", exits=e).eval()) for e in (record.meta["model"]["exits"], "none"))
    x, _ = batch(256)
    tuned = tuning.tuned_on(record, latency.time_table(early, x[:size], passes=25 if size > 1 else 200))
    leaving, clean, worst = tuning.judged(record, tuned)
    with torch.no_grad():
        entropies = exits.entropy(early(x))
    thresholds = tuning.imitated(entropies.numpy(), tuned, leaving)
    point = OperatingPoint(thresholds=thresholds)
    require(torch.equal(exits.route(early, x, point)[1], exits.decide(entropies, thresholds)),
            "routed inference leaves at other exits than computing every exit and then choosing")

    def plainly(part):
        with torch.inference_mode():
            return plain(part)

    def leaving_early(part):
        with torch.inference_mode():
            return exits.route(early, part, point)

    used = ", ".join(str(k + 1) for k in range(record.num_exits - 1) if tuned[k] > -np.inf)
    gains = ", ".join(f"{what} {100 * (ours.mean() - last.mean()):+.1f} points on {len(last):,} other images"
                      for what, (ours, last) in (("clean", clean), ("under all attacks", worst)))
    macs = record.exit_costs().cumulative(tuned)[leaving].mean() / record.costs()["trunk"][-1]
    note = f"exits {used or 'none'}; by multiplications {1 / macs:.2f}; {gains}"
    return Work(plainly, {rows[0]: Engine(leaving_early, note)}, [(part,) for part in x.split(size)], TURNS)


def released_record() -> Record:
    return tuning.of_paper_forms(Record.load(lib.ATLASES / f"{released.NAME}.safetensors"))


def cheap_record() -> Record:
    """Cheap heads trained with two batch norms: its accurate end (λ = 0) at full width, which deploys as one bank."""
    record, at = Record.load(lib.ATLASES / f"{CHEAP}.safetensors"), OperatingPoint(batch_norm=0.0, width=1.0)
    return replace(record.select(point=at), held_out=record.held_out.select(point=at), strong=None)


CHEAP = "cheap_resnet38-cifar10_jpeg-dual_bn_slim-laptop"
RECORDS = {"routed": released_record, "cheap": cheap_record}
TURNS = 5  # of routed inference in a round: single batches differ by a few percent


def float_step(rows: Sequence[str]) -> Work:
    """FLOAT against PGD-AT on split halves, so the same number of attacked images: ResNet-34, 64 + 64, PGD-2.

    A pass's noise costs the same for any batch; smaller ones than these, the published, pay relatively more.
    """
    x, y = batch(128)
    recipe = recipes.find("resnet34-cifar10-float-paper")

    def make(conditioning: str, objective: Callable, **changes):
        network = zoo.build("resnet34", conditioning=conditioning).to(memory_format=torch.channels_last)
        return stepper(network, replace(recipe, **changes), x, y, objective, Threat(8 / 255, 2 / 255, 2))

    note = "a price, FLOAT's step in PGD-AT steps on as many attacked images, 64"
    return Work(make("float", objectives.float_), {
        rows[0]: Engine(make("none", objectives.pgd_at, split="half"), note)})


def augmentation(rows: Sequence[str]) -> Work:
    images = (batch(128)[0] * 255).byte()
    return Work(lambda: reference.augment(images, generator(0, "crop")),
                {rows[0]: Engine(lambda: data.augment(images, generator(0, "crop"), "crop4_flip"),
                                 "crop and flip of 128 images")})


def start_up(rows: Sequence[str]) -> Work:
    """`python -m lib --help` against a start that imports what the verbs need."""
    def python(*arguments):
        return lambda: subprocess.run([sys.executable, *arguments], cwd=lib.ROOT, check=True, capture_output=True)

    return Work(python("-c", "import lib.commands"),
                {rows[0]: Engine(python("-m", "lib", "--help"), "--help against a start that imports torch")})


GROUPS: dict[tuple[str, ...], Callable[[Sequence[str]], Work]] = {
    ("attack_exact", "attack_folded", "attack_bf16"): attacks,
    tuple(STEPS): training_steps,
    ("step_main",): other_steps,
    ("step_average",): other_steps,
    ("suite_exact", "suite"): evaluation,
    ("recording",): recorded,
    **{(f"{kind}_{size}",): routed for kind in RECORDS for size in (1, 32, 256)},
    ("float_step",): float_step,
    ("augment",): augmentation,
    ("startup",): start_up,
}
ROWS = tuple(row for group in GROUPS for row in group)
