"""One training step of several methods side by side, beside what the passes they make predict."""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import torch

import lib
from lib import randomness
from lib.evaluation.latency import take_turns
from lib.models import zoo
from lib.models.cost import trunk_and_heads
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.training.constraints import Unconstrained
from lib.training.objectives import OBJECTIVES, Context, at_every_width, view_of
from lib.training.recipe import Recipe

SHAPE = ("name", "exits", "classes", "input_shape", "width_multiplier", "depth_multiplier", "inner")  # of a backbone


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


def needed(recipe: Recipe, network: Network, trunk: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """What one step needs per image of its batch, in the units of `trunk` (from tap to tap) and `heads`, (exits, ...).

    A forward pass counts 1, a backward pass to the input 1, one to the weights 1. A single attack goes up to its own
    exit, but in mode authors forward through everything; max_average then looks at every candidate once.
    """
    everything, prefixes = (trunk + heads).sum(0), trunk.cumsum(0) + heads
    clean, attacked = attacked_share(recipe, network)
    if not attacked:
        return 3 * clean * everything
    if recipe.attack_form == "average":
        ascent, looks = 2 * everything, 0
    else:
        aimed = prefixes if recipe.attack_form == "max_average" else prefixes[-1:]
        forward = np.broadcast_to(everything, aimed.shape) if recipe.attack_mode == "authors" else aimed
        ascent, looks = (aimed + forward).sum(0), len(aimed) if len(aimed) > 1 else 0
    return (3 * (clean + attacked) + looks * attacked) * everything + recipe.threat.steps * attacked * ascent


def work(recipe: Recipe, network: Network) -> float:
    """Work of one step per image of its batch, in forward passes of the full width, by multiplications.

    Noise, FiLM, batch norm and the optimiser are not counted: what is measured beyond this is theirs.
    """
    widths = [OperatingPoint(width=w) for w in network.widths] if len(network.widths) > 1 else [None]
    every = [(np.diff(trunk, prepend=0), np.array(heads)) for trunk, heads in
             (trunk_and_heads(network, point) for point in widths)]
    return float(sum(needed(recipe, network, *found) for found in every) / sum(map(np.sum, every[0])))


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
    step_ratio, to the first recipe's step of the same round; step_passes, `work`, and step_ratio_predicted, from that
    alone; pass_ms, milliseconds per image and pass; parameters.
    """
    device = torch.device(device)
    networks = {name: zoo.build(**recipe.network, seed=recipe.seed).to(device, memory_format=torch.channels_last)
                for name, recipe in recipes.items()}
    steps = {name: stepper(recipe, networks[name], device) for name, recipe in recipes.items()}
    times = take_turns(steps, lambda t: t, device, rounds, 1, clock=time.process_time, title="timing steps")
    first = next(iter(recipes))
    passes, rows = {name: work(recipe, networks[name]) for name, recipe in recipes.items()}, []
    for name, recipe in recipes.items():
        common = {"defence": name, "model": recipe.network["name"], "images": recipe.batch_size, "seed": recipe.seed,
                  "steps": recipe.threat.steps if recipe.threat else 0, "device": device.type,
                  "threads": torch.get_num_threads(), "version": lib.__version__, **columns}
        seconds = times[name]
        rows += [common | {"metric": "step_seconds", **quartiles(seconds)},
                 common | {"metric": "step_ratio", **quartiles(seconds / times[first])},
                 common | {"metric": "step_ratio_predicted", "value": passes[name] / passes[first]},
                 common | {"metric": "step_passes", "value": passes[name]},
                 common | {"metric": "pass_ms", "value": 1e3 * np.median(seconds) / passes[name] / recipe.batch_size},
                 common | {"metric": "parameters", "value": networks[name].weight_count()}]
    return rows


def pass_seconds(recipe: Recipe, device: torch.device | str, rounds: int = 2) -> float:
    """Seconds per image and forward pass of a recipe's backbone, from measured training steps on clean images: on CUDA
    of whole batches, on a CPU of 16 images and on one core. `work` times this is an image's share of a step."""
    device, bare = torch.device(device), {k: v for k, v in recipe.network.items() if k in SHAPE}
    clean = dataclasses.replace(recipe, network=bare, objective="standard", threat=None, validation=None,
                                attack_view=None, attack_mode="eval", exit_weights=None, epsilon_warmup=0.0,
                                batch_size=recipe.batch_size if device.type == "cuda" else 16)
    step = stepper(clean, zoo.build(**bare).to(device, memory_format=torch.channels_last), device)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        times = take_turns({"step": step}, lambda t: t, device, rounds, 1, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(times["step"])) / 3 / clean.batch_size


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"value": float(middle), "low": float(low), "high": float(high)}
