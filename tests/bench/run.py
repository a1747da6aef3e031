"""How fast the engine is against the plain forms of tests/bench/reference.py: python3 -m lib bench.

Each row is a ratio, plain time / engine time (above 1: the engine is faster), of the two run in turns in this process;
process CPU time on the CPU, so that other programs disturb it less. What is timed is checked first: equal where it can
be equal, otherwise an attained loss that is as high. One thread, RDI-ResNet38, batch 32, PGD-10 unless a row says else.
"""

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

import lib
from lib import WorkbookError, data
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models import exits, zoo
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.randomness import generator
from lib.training import losses, once_for_all, recipes

sys.path.insert(0, str(lib.ROOT))
from tests.bench import reference  # noqa: E402

HISTORY = Path(__file__).with_name("history.jsonl")
THREAT, BATCH = Threat(8 / 255, 2 / 255, 10), 32


class Pair(NamedTuple):
    """What a row compares: two functions that do the same work, and how it is known that they do."""

    plain: Callable
    engine: Callable
    note: str


def batch(size: int = BATCH):
    source = generator(0, "bench", size)
    return torch.rand(size, 3, 32, 32, generator=source), torch.randint(0, 10, (size,), generator=source)


def attack(view: Callable | None, tolerance: float) -> Pair:
    """Max-average attacks: bit-equal with the network itself (NCHW), else at least as strong within `tolerance`."""
    plain, ours = reference.twins()
    target, (x, y) = ours if view is None else view(ours), batch()

    def slow(threat=THREAT):
        return reference.max_average(plain, x, y, threat, generator(0, "start"))

    def fast(threat=THREAT):
        return forms.craft("max_average", target, x, y, threat, generator=generator(0, "start"))

    short = Threat(8 / 255, 2 / 255, 3)
    a, b = slow(short), fast(short)
    if view is None:
        require(torch.equal(a, b), "the attack is not bit-equal to the plain form")
        return Pair(slow, fast, "bit-equal")
    with torch.no_grad():
        gap = (reference.total_loss(plain, b, y).mean() / reference.total_loss(plain, a, y).mean() - 1).item()
    require(gap > -tolerance, f"the attack attains {-gap:.2%} less loss than the plain form")
    return Pair(slow, fast, f"attained loss {gap:+.2%}")


def training_step(mode: str, layout=torch.contiguous_format) -> Pair:
    """Whole max-average training steps, SGD included, against the released form in train mode."""
    plain, ours = reference.twins()
    recipe = recipes.find("rdi_resnet38-cifar10-max_average-paper")
    x, y = batch()
    sgd = dict(lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

    def make(layout):
        slow, fast = copy.deepcopy(plain), copy.deepcopy(ours).train().to(memory_format=layout)
        slow_sgd = torch.optim.SGD(slow.parameters(), **sgd)
        fast_sgd = torch.optim.SGD(fast.parameters(), **sgd, fused=True)
        images = x.contiguous(memory_format=layout)
        made = replace(recipe, attack_mode=mode)

        def slow_step(threat=THREAT, seed=0):
            return reference.train_step(slow, slow_sgd, x, y, threat, generator(seed, "step"), recipe.exit_weights)

        def fast_step(threat=THREAT, seed=0):
            context = losses.Context(made, threat, 0, lambda _: generator(seed, "step"))
            loss, _ = losses.rdi(fast, images, y, context)
            fast_sgd.zero_grad()
            loss.backward()
            fast_sgd.step()
            return loss.item()

        return slow_step, fast_step

    short, (slow, fast) = Threat(8 / 255, 2 / 255, 1), make(torch.contiguous_format)
    told = [(slow(short, seed), fast(short, seed)) for seed in range(3)]
    require(all(abs(a - b) < 1e-3 for a, b in told), f"losses of the first steps differ: {told}")
    return Pair(*make(layout), "losses of 3 steps equal to 3 decimals (NCHW)")


def evaluation() -> Pair:
    """All K + 3 forms on 16 images, PGD-5: single attacks crafted once here, once per form in the plain way."""
    plain, ours = reference.twins()
    x, y = batch(16)
    threat, wanted = Threat(8 / 255, 2 / 255, 5), forms.paper_forms(ours.num_exits)
    view = AttackView(ours)
    return Pair(lambda: reference.suite(plain, x, y, threat, generator(0, "suite")),
                lambda: forms.suite(view, x, y, threat, wanted, seed=0), "9 forms, folded view")


def routed(size: int) -> Pair:
    """Routed inference with cheap heads against the plain backbone, both folded, thresholds at equal shares."""
    early = AttackView(zoo.build("resnet38", exits="cheap").eval())
    plain = AttackView(zoo.build("resnet38").eval())
    x, _ = batch(size)
    with torch.no_grad():
        uncertain = exits.entropy(early(batch(256)[0]))
    point = OperatingPoint(thresholds=equal_shares(uncertain))
    with torch.no_grad():
        wanted = exits.decide(exits.entropy(early(x)), point.thresholds)
    require(torch.equal(exits.route(early, x, point)[1], wanted), "routed inference leaves at other exits")

    def run(function):
        with torch.inference_mode():
            for _ in range(max(1, 64 // size)):
                function()

    return Pair(lambda: run(lambda: plain(x)), lambda: run(lambda: exits.route(early, x, point)),
                f"plain backbone against cheap heads, equal exit shares, batch {size}")


def equal_shares(uncertain: torch.Tensor) -> tuple[float, ...]:
    """Thresholds at which a seventh of the images leaves at each exit."""
    staying, thresholds = torch.ones(uncertain.shape[1], dtype=torch.bool), []
    for entropies in uncertain[:-1]:
        ranked = entropies[staying].sort().values
        thresholds.append(ranked[min(uncertain.shape[1] // len(uncertain), len(ranked) - 1)].item())
        staying &= entropies >= thresholds[-1]
    return tuple(thresholds)


def float_step() -> Pair:
    """FLOAT against PGD-AT on split halves, so the same number of attacked images: ResNet-34, 32 + 32, PGD-2.

    The only row whose ratio is a price: what noise and dual batch norm cost.
    """
    x, y = batch(64)
    threat = Threat(8 / 255, 2 / 255, 2)

    def make(conditioning: str, objective: Callable, **changes):
        network = zoo.build("resnet34", conditioning=conditioning).to(memory_format=torch.channels_last)
        recipe = replace(recipes.find("resnet34-cifar10-float-paper"), **changes)
        sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)

        def step():
            loss, _ = objective(network, x, y, losses.Context(recipe, threat, 0, lambda what: generator(0, what)))
            sgd.zero_grad()
            loss.backward()
            sgd.step()

        return step

    return Pair(make("float", once_for_all.float_), make("none", losses.pgd_at, split="half"),
                "the price of a FLOAT step, in PGD-AT steps on as many attacked images")


def augmentation() -> Pair:
    images = (batch(128)[0] * 255).byte()
    return Pair(lambda: reference.augment(images, generator(0, "crop")),
                lambda: data.augment(images, generator(0, "crop"), "crop4_flip"), "crop and flip of 128 images")


def require(held: bool, sentence: str):
    if not held:
        raise WorkbookError(f"nothing is timed, because {sentence}")


ROWS: dict[str, Callable[[], Pair]] = {
    "attack_exact": lambda: attack(None, 0.0),
    "attack_folded": lambda: attack(AttackView, 0.005),
    "attack_bf16": lambda: attack(lambda network: AttackView(network, dtype=torch.bfloat16), 0.01),
    "step_batch": lambda: training_step("batch", torch.channels_last),
    "step_authors": lambda: training_step("authors", torch.channels_last),
    "suite": evaluation,
    "routed_1": lambda: routed(1),
    "routed_32": lambda: routed(32),
    "routed_256": lambda: routed(256),
    "float_step": float_step,
    "augment": augmentation,
}


def bf16_is_fast() -> bool:
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def measure(pair: Pair, rounds: int) -> dict:
    """Ratios of CPU time over `rounds` rounds after one untimed round, the two in turns."""
    ratios = []
    for r in range(rounds + 1):
        spent = []
        for function in (pair.plain, pair.engine):
            begun = time.process_time()
            function()
            spent.append(time.process_time() - begun)
        if r:
            ratios.append(spent[0] / max(spent[1], 1e-9))
    low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    return {"ratio": round(middle, 3), "q25": round(low, 3), "q75": round(high, 3), "note": pair.note}


def start_up() -> float:
    """Seconds that `import lib` takes in a fresh interpreter, without the interpreter's own start."""
    code = "import time; t = time.perf_counter(); import lib; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], cwd=lib.ROOT, capture_output=True, text=True).stdout)


def main(args) -> int:
    wanted = args.only or tuple(ROWS)
    if unknown := [name for name in wanted if name not in ROWS]:
        raise WorkbookError(f"there is no measurement {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    print(f"{'measurement':16}{'ratio':>8}{'q25':>8}{'q75':>8}  what")
    for name in wanted:
        if name == "attack_bf16" and not bf16_is_fast():
            print(f"{name:16}{'–':>8}{'–':>8}{'–':>8}  this CPU has no avx512_bf16")
            continue
        row = {"name": name, **measure(ROWS[name](), args.rounds or 7)}
        rows.append(row)
        print(f"{name:16}{row['ratio']:8.2f}{row['q25']:8.2f}{row['q75']:8.2f}  {row['note']}", flush=True)
    torch.set_num_threads(threads)
    told = {"rows": rows, "import_seconds": round(start_up(), 4), "torch": torch.__version__,
            "version": lib.__version__}
    print(f"import lib takes {told['import_seconds'] * 1000:.0f} ms")
    if args.json:
        Path(args.json).write_text(json.dumps(told, indent=1))
    if args.record:
        with open(HISTORY, "a") as file:
            file.write(json.dumps({"date": date.today().isoformat(), "device": "CPU, 1 thread", **told}) + "\n")
    return 0
