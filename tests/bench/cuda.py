"""Whole training steps on a CUDA device beside the floor that is counted for them.

A step runs as training runs it, captured as a graph where that works, and is timed by CUDA events over many of them.
The floor is the larger of two times that no code can beat on an H200: all multiplications in bf16, and every
convolution reading its input and writing its output once, with all else free.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from lib.models import zoo
from lib.models.layers import Conv2d
from lib.models.network import Network
from lib.training import recipes, timing
from lib.training.capture import WARM_UP
from lib.training.recipe import Recipe
from lib.training.training import Training

FLOPS, BYTES = 790e12, 4.3e12  # a second: bf16 matrix work and memory traffic, as measured on an H200
STEPS = 60
FAST = dict(attack_mode="eval", attack_view="bf16")
RECIPES = {  # by row
    "cuda_main": ("rdi_resnet38-cifar10-main-paper", FAST),
    "cuda_average": ("rdi_resnet38-cifar10-average-paper", FAST),
    "cuda_max_average": ("rdi_resnet38-cifar10-max_average-paper", FAST),
    "cuda_max_average_batch": ("rdi_resnet38-cifar10-max_average-paper", dict(attack_mode="batch")),
    "cuda_float": ("resnet34-cifar10-float-paper", FAST),
    "cuda_oat": ("resnet34-cifar10-oat-paper", FAST),
    "cuda_fleet_knobs": ("cheap_resnet38-cifar10-float_slim-laptop", {}),
    "cuda_fleet_max": ("rdi_resnet38-cifar10-max_average-laptop", {}),
    "cuda_fleet_plain": ("resnet38-cifar10-main-laptop", {}),
}
ROWS = tuple(RECIPES)


class Floor(NamedTuple):
    """What one step needs at least. bound: what the seconds are needed for, "arithmetic" or "memory"."""

    flops: float
    bytes: float
    seconds: float
    bound: str


def recipe(row: str) -> Recipe:
    """On digits in CIFAR-10's size, images that are always at hand."""
    name, changes = RECIPES[row]
    return replace(recipes.find(name), dataset="digits", **changes)


@torch.no_grad()
def parts(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """(backbone between the taps, heads), (exits, 2) each: per image its multiply-accumulates, and the elements that
    its convolutions read and write."""
    device, was_training = next(network.parameters()).device, network.training
    at, moved, found = network.eval().conditions(None, torch.Generator(device)), [], ([], [])
    hooks = [layer.register_forward_hook(lambda _, inputs, y: moved.append(inputs[0].numel() + y.numel()))
             for layer in network.modules() if isinstance(layer, Conv2d)]

    def counted(kind: int, run: Callable[[], Tensor]) -> Tensor:
        moved.clear()
        with FlopCounterMode(display=False) as counter:
            y = run()
        found[kind].append((counter.get_total_flops() // 2, sum(moved)))
        return y

    x = torch.zeros(1, *network.input_shape, device=device)
    for k, head in enumerate(network.heads):
        x = counted(0, lambda x=x, k=k: network.advance(x, k, at))
        counted(1, lambda x=x, head=head: head(x, at))
    for hook in hooks:
        hook.remove()
    network.train(was_training)
    return np.array(found[0], float), np.array(found[1], float)


def floor(recipe: Recipe, network: Network) -> Floor:
    """Of one step of the recipe on its network."""
    needed = 2 * recipe.batch_size * timing.needed(recipe, network, *parts(network))
    flops, moved = needed.tolist()  # two operations a multiplication, two bytes an element in bf16
    return Floor(flops, moved, *max((flops / FLOPS, "arithmetic"), (moved / BYTES, "memory")))


def measure(row: str, device: torch.device) -> dict:
    """A row: milliseconds and kernels a step, the floor in milliseconds, and which share of the time it is."""
    asked = recipe(row)
    least, training = floor(asked, zoo.build(**asked.network)), Training(asked, Path(row), device)
    for _ in range(WARM_UP + 5):  # the capture, and a few replays
        training.advance()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(STEPS):
        training.advance()
    end.record()
    torch.cuda.synchronize(device)
    ms = begin.elapsed_time(end) / STEPS
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        training.advance()
        torch.cuda.synchronize(device)
    return {"name": row, "ms": round(ms, 3), "kernels": kernels(profile.events()),
            "floor_ms": round(1e3 * least.seconds, 3), "percent_of_floor": round(1e5 * least.seconds / ms, 1),
            "bound": least.bound, "captured": training.captured.graph is not None}


def kernels(events: Iterable) -> int:
    """How many kernels a profile holds, without copies and fills."""
    return sum(e.device_type == DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset")) for e in events)


HEAD = f"{'step':24}{'ms':>9}{'kernels':>9}{'floor ms':>10}{'% of it':>9}  bound by"


def line(row: dict) -> str:
    numbers = f"{row['ms']:9.2f}{row['kernels']:9d}{row['floor_ms']:10.2f}{row['percent_of_floor']:9.1f}"
    return f"{row['name']:24}{numbers}  {row['bound']}{'' if row['captured'] else '; not captured as a graph'}"
