"""One training step of several methods side by side, beside what the numbers of images they attack predict."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

import lib
from lib import randomness
from lib.models import zoo
from lib.models.cost import cost
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training.constraints import Unconstrained
from lib.training.losses import Context, view_of
from lib.training.once_for_all import OBJECTIVES, at_every_width
from lib.training.recipes import Recipe


def attacked_share(recipe: Recipe, network: Network) -> tuple[float, float]:
    """Which share of a batch (clean, adversarial) images a step trains on; only the adversarial ones are attacked."""
    batch = recipe.batch_size
    if recipe.objective == "oat":
        return 1.0, 1 - math.ceil(batch / len(network.code_values)) / batch
    if recipe.objective == "standard" or recipe.adversarial_weight == 0:
        return 1.0, 0.0
    if recipe.objective == "float" or recipe.split == "half":
        return batch // 2 / batch, 1 - batch // 2 / batch
    return 1.0, 1.0


def work(recipe: Recipe, network: Network) -> float:
    """Work of one step per image of its batch, in forward passes of the full width.

    Training on an image is 3 (its backward pass counts 2), an attack step 2 (backward to the input alone). Noise, FiLM,
    batch norm and the optimiser are not counted: what is measured beyond this is theirs.
    """
    clean, adversarial = attacked_share(recipe, network)
    steps = recipe.threat.steps if recipe.threat else 0
    widths = [OperatingPoint(width=w) for w in network.widths] if len(network.widths) > 1 else [None]
    macs = [cost(network, point).macs for point in widths]
    return (3 * clean + (2 * steps + 3) * adversarial) * sum(macs) / macs[0]


def stepper(recipe: Recipe, network: Network, device: torch.device) -> Callable[[int], None]:
    """`step(t)`: a whole training step t (attack, losses, gradients, update), always on the same random images."""
    source = randomness.generator(recipe.seed, "timing", device=device)
    images = torch.rand(recipe.batch_size, *network.input_shape, generator=source, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(network.classes, (recipe.batch_size,), generator=source, device=device)
    optimiser = Unconstrained(network, recipe, torch.tensor(recipe.learning_rate, device=device)).optimiser
    view = view_of(network, recipe)

    def step(t: int) -> None:
        context = Context(recipe, recipe.threat, recipe.clean_epochs,
                          lambda what: randomness.generator(recipe.seed, t, what, device=device), view=view)
        optimiser.zero_grad()
        at_every_width(OBJECTIVES[recipe.objective], network, images, labels, context)[0].backward()
        optimiser.step()

    return step


def side_by_side(recipes: dict[str, Recipe], *, rounds: int = 5, device: torch.device | str = "cpu",
                 **columns) -> list[dict]:
    """Tidy rows of what a step of each recipe takes, the first one being what the others are compared with.

    recipes: by the name they get in the column `defence`; give all one backbone and batch size. After a step to warm
    up, `rounds` times each takes its turn, so that a slow moment of the machine meets all of them. Timed is process CPU
    time (on CUDA the time until the device is done): median, and quartiles as low and high. Metrics: step_seconds;
    step_ratio, to the first recipe's step of the same round; step_ratio_predicted, from `work` alone; parameters.
    """
    device = torch.device(device)
    networks = {name: zoo.build(**recipe.network, seed=recipe.seed).to(device, memory_format=torch.channels_last)
                for name, recipe in recipes.items()}  # fmt: skip
    steps = {name: stepper(recipe, networks[name], device) for name, recipe in recipes.items()}
    times = {name: [] for name in recipes}
    for t in range(rounds + 1):
        for name, step in steps.items():
            seconds = timed(step, t, device)
            times[name] += [seconds] if t else []
    first = next(iter(recipes))
    least, rows = work(recipes[first], networks[first]), []
    for name, recipe in recipes.items():
        common = {"defence": name, "model": recipe.network["name"], "images": recipe.batch_size, "seed": recipe.seed,
                  "steps": recipe.threat.steps if recipe.threat else 0, "device": device.type,
                  "threads": torch.get_num_threads(), "version": lib.__version__, **columns}  # fmt: skip
        seconds = np.array(times[name])
        rows += [common | {"metric": "step_seconds", **quartiles(seconds)},
                 common | {"metric": "step_ratio", **quartiles(seconds / np.array(times[first]))},
                 common | {"metric": "step_ratio_predicted", "value": work(recipe, networks[name]) / least},
                 common | {"metric": "parameters", "value": networks[name].weight_count()}]  # fmt: skip
    return rows


def timed(step: Callable[[int], None], t: int, device: torch.device) -> float:
    """Seconds of one call: CPU time of this process, or on CUDA the time until the device is done."""
    if device.type != "cuda":
        begin = time.process_time()
        step(t)
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step(t)
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"value": float(middle), "low": float(low), "high": float(high)}
