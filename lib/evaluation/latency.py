"""How long networks take: ways to answer, networks and operating points in turns; each part of one; the clock."""

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import lib
from lib import WorkbookError, check_counts, checkpoints, progress, randomness
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.models import exits, zoo
from lib.models.conditioning import take
from lib.models.network import Network
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint

FEWEST = 5  # passes that are timed however little time is allowed
LARGEST = 10**8  # weights that a record's network may have: it came without them


def measure(network: Network, images: Tensor, thresholds: Sequence[float], *, point: OperatingPoint | None = None,
            batch_sizes: Sequence[int] = (1, 32, 256), passes: int = 200, warm_up: int = 50, seconds: float = 30.0,
            plain: Network | None = None, seed: int = 0, **columns) -> list[dict]:
    """Tidy rows of ms an image for three ways to answer, batch after batch of `images` (N, C, H, W), floats in [0, 1].

    exit = "routed": images that left are dropped; "all": every exit is computed, then one chosen; "plain": the backbone
    without branches (`plain`, or a fresh one: weights do not change the time). The three take turns, so that a slow
    moment of the machine hits all; each pass is one batch, of `passes` after `warm_up` untimed ones, or of as many as
    `seconds` allow for each batch size (never fewer than 5). Metrics: latency_ms (median; low and high are the
    distribution-free 95 % interval of the median), latency_p90_ms, and speed_up (median of the paired ratios of that
    way's time over routed's: above 1, routed is faster); suite = "batch B"; images = how many were timed.
    Raises WorkbookError when there are fewer images than the largest batch, or the thresholds do not fit.
    """
    check_sizes(images, batch_sizes)
    device = images.device
    point = (point or OperatingPoint()).replace(thresholds=tuple(thresholds) if network.num_exits > 1 else None)
    network.check_point(point)
    if plain is None:
        plain = zoo.build(**{**network.config, "exits": "none"}).to(device).eval()
    source, bare = randomness.generator(seed, "latency", device=device), point.replace(thresholds=None, exits=None)
    gates = exits.effective_thresholds(point, network.num_exits)

    def choose(x: Tensor) -> Tensor:
        logits = network(x, bare, source)
        taken = exits.decide(exits.entropy(logits), gates)
        return logits.gather(0, taken[None, :, None].expand(1, -1, logits.shape[-1]))[0].argmax(-1)

    ways = {"routed": lambda x: exits.route(network, x, point, source)[0], "all": choose,
            "plain": lambda x: plain(x, bare, source)[0].argmax(-1)}
    rows = []
    for size in batch_sizes:
        times = alternate(ways, images, size, passes, warm_up, seconds)
        for way, values in times.items():
            common = {**_columns(network, device, seed, size, values), **columns, "exit": way}
            rows += [_row("latency_ms", values / size * 1e3, common),
                     {**common, "metric": "latency_p90_ms", "value": float(np.quantile(values / size * 1e3, 0.9))}]
            rows += [_row("speed_up", values / times["routed"], common)] if way != "routed" else []
    return rows


def side_by_side(ways: Mapping[str, tuple[Network, OperatingPoint | None]], images: Tensor, *,
                 batch_sizes: Sequence[int] = (1, 32), passes: int = 100, warm_up: int = 10, seconds: float = 20.0,
                 seed: int = 0, **columns) -> list[dict]:
    """Tidy rows of ms an image, and of each way's time over the first one's in the same round (metric time_ratio).

    ways: {name: (network in eval mode, point)}; otherwise as `measure`. Raises WorkbookError when there are too few
    images, and for a knob that a network does not have.
    """
    check_sizes(images, batch_sizes)
    for network, point in ways.values():
        network.check_point(point or OperatingPoint())
    source, device = randomness.generator(seed, "speeds", device=images.device), images.device
    calls = {name: lambda x, n=network, p=point: n(x, p, source)[-1].argmax(-1)
             for name, (network, point) in ways.items()}
    first, rows = next(iter(ways)), []
    for size in batch_sizes:
        times = alternate(calls, images, size, passes, warm_up, seconds)
        for (name, (network, point)), values in zip(ways.items(), times.values(), strict=True):
            common = {**_columns(network, device, seed, size, values), "defence": name,
                      "evaluated_at": str((point or OperatingPoint()).to_json()), **columns}
            rows += [_row("latency_ms", values / size * 1e3, common), _row("time_ratio", values / times[first], common)]
    return rows


def _columns(network: Network, device: torch.device, seed: int, size: int, values: np.ndarray) -> dict:
    return {"model": network.config["name"], "split": "latency", "device": device_name(device), "seed": seed,
            "version": lib.__version__, "threads": torch.get_num_threads(), "suite": f"batch {size}",
            "images": len(values) * size, "seconds": float(values.sum())}


def _row(metric: str, values: np.ndarray, columns: dict) -> dict:
    return columns | {"metric": metric} | dict(zip(("low", "value", "high"), median_interval(values), strict=True))


def check_sizes(images: Tensor, batch_sizes: Sequence[int]) -> None:
    for size in batch_sizes or (0,):
        check_counts(batch_size=size)
    if len(images) < max(batch_sizes):
        raise WorkbookError(f"{len(images)} images do not fill a batch of {max(batch_sizes)}; give more of them")


@torch.inference_mode()
def time_table(network: Network, images: Tensor, *, point: OperatingPoint | None = None, passes: int = 25,
               warm_up: int = 3, seed: int = 0) -> ExitCosts:
    """Milliseconds an image, in place of MACs: trunk up to each tap; each head with its decision and what that brings.

    images: one batch (N, C, H, W) of the size that is to be served.  An early head's time holds what `exits.route` does
    behind it: entropy, comparison, the answer, and, where some may stay, the gather of a half of the batch.  Medians
    over `passes` passes.
    """
    at = network.conditions(point, randomness.generator(seed, "time table", device=images.device))
    last, trunk, heads = network.num_exits - 1, [], []
    half = torch.arange(0, len(images), 2, device=images.device)

    def decide(x: Tensor, k: int) -> None:
        logits = network.heads[k](x, at)
        logits.argmax(-1)
        if k == last:
            return
        leaves = exits.entropy(logits) < 0
        leaves.nonzero(), (~leaves).nonzero()
        if len(half) < len(x):
            take(x, half)

    for _ in range(warm_up + passes):
        x, spent = images, ([], [])
        for k in range(last + 1):
            seconds, x = timed(lambda batch, k=k: network.advance(batch, k, at), x, x.device)
            spent[0].append(seconds)
            spent[1].append(timed(lambda batch, k=k: decide(batch, k), x, x.device)[0])
        trunk.append(spent[0])
        heads.append(spent[1])
    per_image = [1e3 / len(images) * np.median(times[warm_up:], axis=0) for times in (trunk, heads)]
    return ExitCosts(np.cumsum(per_image[0]), per_image[1])


def clocks(record: Record, batch_size: int = 32, seed: int = 0) -> dict[OperatingPoint, ExitCosts]:
    """{recorded point: its `time_table` on this device}, of an untrained network of the record's shape, batch norm
    folded: weights do not change the time. Noise is drawn once, as in a network that is deployed."""
    network, _ = shaped(record)
    images = torch.rand(batch_size, *network.input_shape, generator=randomness.generator(seed, "clock"))
    with progress.bar(len(record.points), "timing", "point") as shown:
        found = {}
        for point in record.points:
            found[point] = time_table(network, images, point=point.replace(draw=None if point.noise is None else 0))
            shown.update(1)
    return found


def shaped(record: Record, device: torch.device | str = "cpu") -> tuple[AttackView, AttackView]:
    """Untrained networks of a record's shape, batch norm folded: with its exits, and without.

    Raises WorkbookError for a record that describes a network far larger than any here.
    """
    config = record.meta["model"]
    with checkpoints.described("the file", "record"), checkpoints.at_most(LARGEST // 100, LARGEST):
        with_exits, plain = (AttackView(zoo.build(**{**config, "exits": kind}).to(device).eval())
                             for kind in (config["exits"], "none"))
    return with_exits, plain


@torch.inference_mode()
def alternate(ways: Mapping[str, Callable], images: Tensor, size: int, passes: int, warm_up: int,
              seconds: float) -> dict[str, np.ndarray]:
    """{way: seconds of each timed pass}; the ways take turns on the same batch."""
    keep_heap()
    batches = images.split(size)[:len(images) // size]
    return take_turns(ways, lambda i: batches[i % len(batches)], images.device, passes, warm_up, seconds,
                      title=f"timing batches of {size}")


def take_turns(ways: Mapping[str, Callable], given: Callable[[int], object], device: torch.device, passes: int,
               warm_up: int, seconds: float = math.inf, *, clock: Callable[[], float] | None = None,
               title: str = "timing") -> dict[str, np.ndarray]:
    """{way: seconds of each timed pass}. In a pass each way is called with the same `given(number of the pass)`, one
    after the other, so that a slow moment of the machine hits all; `passes` after `warm_up` untimed ones, or as many as
    `seconds` allow (never fewer than 5).  clock: see `timed`."""
    check_counts(passes=passes)
    times, begin = {name: [] for name in ways}, time.perf_counter()

    def turn(i: int) -> dict[str, float]:
        argument = given(i)
        return {name: timed(way, argument, device, clock)[0] for name, way in ways.items()}

    for i in range(warm_up):
        turn(i)
        if time.perf_counter() - begin > seconds / 5:
            break
    with progress.bar(passes, title, "passes") as bar:
        for i in range(passes):
            for name, value in turn(i).items():
                times[name].append(value)
            bar.update()
            if time.perf_counter() - begin > seconds and i + 1 >= FEWEST:
                break
    return {name: np.array(values) for name, values in times.items()}


def keep_heap() -> None:
    """Let glibc keep what is freed. A batch that shrinks frees the top of the heap, which glibc then gives back to the
    system, to get it again page by page: some 300 page faults an image, a tenth of the time of routed inference, and
    none in plain inference. How often depends on what else lies on the heap, so that ratios moved from run to run."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 2**30)


def timed(way: Callable, given, device: torch.device, clock: Callable[[], float] | None = None) -> tuple[float, object]:
    """(seconds of one call, what it returned): on CUDA until the device is done; on a CPU by `clock`, by default of one
    thread its own time, which other programs on the machine do not stretch, of several the time that passes."""
    cuda = device.type == "cuda"
    now = time.perf_counter if cuda else clock or (
        time.perf_counter if torch.get_num_threads() > 1 else time.thread_time)
    if cuda:
        torch.cuda.synchronize(device)
    start = now()
    result = way(given)
    if cuda:
        torch.cuda.synchronize(device)
    return now() - start, result


def saved(rows: Iterable[dict]) -> dict[str, tuple[float, float, float]]:
    """{suite: percent of the plain network's time that leaving early saves, with the interval of its median}."""
    return {row["suite"]: tuple(100 * (1 - 1 / row[part]) for part in ("value", "low", "high"))
            for row in rows if (row["metric"], row["exit"]) == ("speed_up", "plain")}


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(low, median, high): the order statistics that hold the median with 95 % (normal approximation)."""
    ranked = np.sort(values)
    reach = 0.98 * np.sqrt(len(ranked))
    low = ranked[max(0, int(np.floor(len(ranked) / 2 - reach)))]
    high = ranked[min(len(ranked) - 1, int(np.ceil(len(ranked) / 2 + reach)))]
    return float(low), float(np.median(ranked)), float(high)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
