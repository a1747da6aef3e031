"""What a saving is in milliseconds: routed inference against the plain backbone and against computing every exit."""

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

import lib
from lib import WorkbookError, check_counts, progress, randomness
from lib.models import exits, zoo
from lib.models.network import Network
from lib.operating_point import OperatingPoint

FEWEST = 5  # passes that are timed however little time is allowed


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
    base = {"model": network.config["name"], "split": "latency", "device": device_name(device), "seed": seed,
            "version": lib.__version__, "threads": torch.get_num_threads(), **columns}
    rows = []
    for size in batch_sizes:
        times = alternate(ways, images, size, passes, warm_up, seconds)
        rows += [{**base, "suite": f"batch {size}", **row} for row in _rows(times, size)]
    return rows


def check_sizes(images: Tensor, batch_sizes: Sequence[int]) -> None:
    for size in batch_sizes or (0,):
        check_counts(batch_size=size)
    if len(images) < max(batch_sizes):
        raise WorkbookError(f"{len(images)} images do not fill a batch of {max(batch_sizes)}; give more of them")


def alternate(ways: dict[str, Callable], images: Tensor, size: int, passes: int, warm_up: int, seconds: float) -> dict:
    """{way: seconds of each timed pass}; the ways take turns on the same batch."""
    check_counts(passes=passes)
    keep_heap()
    times, batches, begin = {name: [] for name in ways}, len(images) // size, time.perf_counter()

    def turn(i: int) -> dict[str, float]:
        batch = images[i % batches * size:(i % batches + 1) * size]
        return {name: timed(way, batch) for name, way in ways.items()}

    with torch.inference_mode():
        for i in range(warm_up):
            turn(i)
            if time.perf_counter() - begin > seconds / 5:
                break
        with progress.bar(passes, f"timing batches of {size}", "passes") as bar:
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


def timed(way: Callable, batch: Tensor) -> float:
    """Seconds of one call: of a CPU with one thread its own time, which other programs on the machine do not stretch;
    else by the clock, on CUDA until the device is done."""
    now = time.perf_counter if batch.is_cuda or torch.get_num_threads() > 1 else time.thread_time
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    start = now()
    way(batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return now() - start


def _rows(times: dict[str, np.ndarray], size: int) -> list[dict]:
    rows = []
    for way, values in times.items():
        per_image = values / size * 1e3
        common = {"exit": way, "images": len(values) * size, "seconds": float(values.sum())}
        low, median, high = median_interval(per_image)
        rows.append({**common, "metric": "latency_ms", "value": median, "low": low, "high": high})
        rows.append({**common, "metric": "latency_p90_ms", "value": float(np.quantile(per_image, 0.9))})
        if way != "routed":
            low, median, high = median_interval(values / times["routed"])
            rows.append({**common, "metric": "speed_up", "value": median, "low": low, "high": high})
    return rows


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
