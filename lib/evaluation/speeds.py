"""How long a forward pass takes, networks or operating points taking turns on the same images; how long each part of
one takes, and the exits and thresholds that make the most of that.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import lib
from lib import WorkbookError, randomness
from lib.evaluation import routing
from lib.evaluation.latency import _alternate, _name, _time, median_interval
from lib.evaluation.routing import ExitCosts
from lib.models import exits
from lib.models.conditions import take
from lib.models.network import Network
from lib.operating_point import OperatingPoint

Way = tuple[Network, OperatingPoint | None]


def side_by_side(ways: Mapping[str, Way], images: Tensor, *, batch_sizes: Sequence[int] = (1, 32), passes: int = 100,
                 warm_up: int = 10, seconds: float = 20.0, seed: int = 0, **columns) -> list[dict]:
    """Tidy rows of ms an image, and of each way's time over the first one's in the same round (metric time_ratio).

    ways: {name: (network in eval mode, point)}.  images: (N, C, H, W) floats, N at least the largest batch.  They take
    turns on one batch, `passes` rounds after `warm_up` untimed ones, or as many as `seconds` allow for each batch size.
    Median; low and high are the distribution-free 95 % interval of the median. suite = "batch B".
    Raises WorkbookError when there are too few images.
    """
    if len(images) < max(batch_sizes):
        raise WorkbookError(f"{len(images)} images do not fill a batch of {max(batch_sizes)}; give more of them")
    for network, point in ways.values():
        network.check_point(point or OperatingPoint())
    source = randomness.generator(seed, "speeds", device=images.device)
    calls = {name: lambda x, n=network, p=point: n(x, p, source)[-1].argmax(-1)
             for name, (network, point) in ways.items()}
    first, rows = next(iter(ways)), []
    for size in batch_sizes:
        times = _alternate(calls, images, size, passes, warm_up, seconds)
        for name, values in times.items():
            common = {"model": ways[name][0].config["name"], "defence": name, "split": "latency", "seed": seed,
                      "images": len(values) * size, "suite": f"batch {size}", "device": _name(images.device),
                      "threads": torch.get_num_threads(), "seconds": float(values.sum()), "version": lib.__version__,
                      "evaluated_at": str((ways[name][1] or OperatingPoint()).to_json()), **columns}
            for metric, numbers in (("latency_ms", values / size * 1e3), ("time_ratio", values / times[first])):
                low, median, high = median_interval(numbers)
                rows.append({**common, "metric": metric, "value": median, "low": low, "high": high})
    return rows


@torch.inference_mode()
def time_table(network: Network, images: Tensor, *, point: OperatingPoint | None = None, passes: int = 15,
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
            reached = []
            spent[0].append(_time(lambda batch, k=k, out=reached: out.append(network.advance(batch, k, at)), x))
            x = reached[0]
            spent[1].append(_time(lambda batch, k=k: decide(batch, k), x))
        trunk.append(spent[0])
        heads.append(spent[1])
    per_image = [1e3 / len(images) * np.median(times[warm_up:], axis=0) for times in (trunk, heads)]
    return ExitCosts(np.cumsum(per_image[0]), per_image[1])


def tuned(entropy: np.ndarray, correct: np.ndarray, costs: ExitCosts, slack: float = 0.005,
          ranks: int = 64) -> tuple[float, ...]:
    """The quickest exits and thresholds at which held-out images lose nothing against the last exit alone.

    entropy, correct: (views, exits, M) of held-out images, the clean view first and any attacked ones after it.
    Nothing lost: as many clean images right, and at most the share `slack` of all images fewer right in every view at
    once, the per-image worst case. (Single views shift: who leaves early escapes an attack on the last exit.)
    costs: a time table, or MACs.  Every set of exits is tried. From the first exit of a set on, each threshold rises
    through `ranks` quantiles of the clean images that arrive and stops before the first one with a loss, however much
    further ones might gain: what is chosen on few images then holds on others. The set that is quickest on the clean
    images wins; -inf closes an exit.
    """
    views, num_exits, images = entropy.shape
    fewest_clean, fewest = correct[0, -1].sum(), correct[:, -1].all(0).sum() - slack * images
    found: list[tuple[float, tuple[float, ...]]] = []

    def leave(k: int, threshold: float, waiting: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leaves = waiting & (entropy[:, k] < np.float32(threshold))
        return waiting & ~leaves, np.where(leaves, correct[:, k], right)

    def highest(k: int, waiting: np.ndarray, right: np.ndarray) -> float:
        ranked = np.append(np.unique(entropy[0, k, waiting[0]]), np.inf)
        best = -np.inf
        for threshold in ranked[np.unique(np.linspace(1, len(ranked) - 1, ranks).astype(int))]:
            _, after = leave(k, threshold, waiting, right)
            if after[0].sum() < fewest_clean or after.all(0).sum() < fewest:
                break
            best = threshold
        return float(best)

    def search(thresholds: tuple[float, ...], waiting: np.ndarray, right: np.ndarray) -> None:
        k = len(thresholds)
        if k == num_exits - 1:
            leaving = routing.decide(entropy[0], thresholds)
            found.append((costs.cumulative(thresholds)[leaving].mean(), thresholds))
            return
        search((*thresholds, -np.inf), waiting, right)
        if waiting[0].any() and (threshold := highest(k, waiting, right)) > -np.inf:
            search((*thresholds, threshold), *leave(k, threshold, waiting, right))

    search((), np.ones((views, images), dtype=bool), correct[:, -1])
    return min(found)[1]


def imitated(entropy: np.ndarray, thresholds: Sequence[float], leaving: np.ndarray) -> tuple[float, ...]:
    """Thresholds at which other images leave as those of `leaving` did at `thresholds`, the same exits open.

    entropy: (exits, N) of those other images, so that a network can be timed on any.  leaving: (M,) exits, 0-based.
    """
    shares = np.bincount(leaving, minlength=len(entropy)) / len(leaving)
    found = zip(routing.calibrate(entropy, shares[:-1]), thresholds, strict=True)
    return tuple(max(t, -1.0) if asked > -np.inf else -np.inf for t, asked in found)  # open, even if nobody leaves
