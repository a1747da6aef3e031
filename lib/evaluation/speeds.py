"""How long a forward pass takes, networks or operating points taking turns on the same images; how long each part of
one takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import lib
from lib import checkpoints, progress, randomness
from lib.evaluation import latency, tuning
from lib.evaluation.latency import alternate, check_sizes, device_name, median_interval, timed
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.evaluation.stats import paired_difference
from lib.models import exits, zoo
from lib.models.conditions import take
from lib.models.network import Network
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint

LARGEST = 10**8  # weights that a record's network may have: it came without them
Way = tuple[Network, OperatingPoint | None]


def side_by_side(ways: Mapping[str, Way], images: Tensor, *, batch_sizes: Sequence[int] = (1, 32), passes: int = 100,
                 warm_up: int = 10, seconds: float = 20.0, seed: int = 0, **columns) -> list[dict]:
    """Tidy rows of ms an image, and of each way's time over the first one's in the same round (metric time_ratio).

    ways: {name: (network in eval mode, point)}.  images: (N, C, H, W) floats, N at least the largest batch.  They take
    turns on one batch, `passes` rounds after `warm_up` untimed ones, or as many as `seconds` allow for each batch size.
    Median; low and high are the distribution-free 95 % interval of the median. suite = "batch B".
    Raises WorkbookError when there are too few images.
    """
    check_sizes(images, batch_sizes)
    for network, point in ways.values():
        network.check_point(point or OperatingPoint())
    source = randomness.generator(seed, "speeds", device=images.device)
    calls = {name: lambda x, n=network, p=point: n(x, p, source)[-1].argmax(-1)
             for name, (network, point) in ways.items()}
    first, rows = next(iter(ways)), []
    for size in batch_sizes:
        times = alternate(calls, images, size, passes, warm_up, seconds)
        for name, values in times.items():
            common = {"model": ways[name][0].config["name"], "defence": name, "split": "latency", "seed": seed,
                      "images": len(values) * size, "suite": f"batch {size}", "device": device_name(images.device),
                      "threads": torch.get_num_threads(), "seconds": float(values.sum()), "version": lib.__version__,
                      "evaluated_at": str((ways[name][1] or OperatingPoint()).to_json()), **columns}
            for metric, numbers in (("latency_ms", values / size * 1e3), ("time_ratio", values / times[first])):
                low, median, high = median_interval(numbers)
                rows.append({**common, "metric": metric, "value": median, "low": low, "high": high})
    return rows


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
            reached = []
            spent[0].append(timed(lambda batch, k=k, out=reached: out.append(network.advance(batch, k, at)), x))
            x = reached[0]
            spent[1].append(timed(lambda batch, k=k: decide(batch, k), x))
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


@dataclass(frozen=True)
class Routed:
    """A setting of exits, timed, and judged on images that did not choose it (`tuning.judged`).

    share: (exits,) of clean images that leaves at each.  clean, worst: who is right, bool, by that setting and by the
    last exit alone, (2, N) of clean images and (2, M) in all views of others at once.  macs: percent of the plain
    network's that are saved on clean images.  rows: of `latency.measure`.
    """

    share: np.ndarray
    clean: np.ndarray
    worst: np.ndarray
    macs: float
    rows: list[dict]

    @property
    def time(self) -> tuple[float, float, float]:
        """Percent of the plain network's time that is saved, with the 95 % interval of a median."""
        (found,) = latency.saved(self.rows).values()
        return found

    def gain(self, what: str) -> tuple[float, float, float]:
        """Points of accuracy over the last exit's, "clean" or "worst", with a 95 % interval."""
        found = paired_difference(*getattr(self, what))
        return tuple(100 * found[part] for part in ("difference", "low", "high"))


def shaped(record: Record, device: torch.device | str = "cpu") -> tuple[AttackView, AttackView]:
    """Untrained networks of a record's shape, batch norm folded: with its exits, and without.

    Raises WorkbookError for a record that describes a network far larger than any here.
    """
    config = record.meta["model"]
    with checkpoints.described("the file", "record"), checkpoints.at_most(LARGEST // 100, LARGEST):
        with_exits, plain = (AttackView(zoo.build(**{**config, "exits": kind}).to(device).eval())
                             for kind in (config["exits"], "none"))
    return with_exits, plain


def routed(record: Record, settings: Mapping[str, Sequence[float]], early: Network, plain: Network, images: Tensor,
           batch_size: int, **how) -> dict[str, Routed]:
    """{setting: its thresholds} of a record with held-out images, timed at one batch size and judged.

    early, plain: of `shaped`. Weights do not change the time, who leaves
    does: `images` (N, C, H, W) are made to leave in the shares that the record tells.  how: as for `latency.measure`.
    """
    with torch.no_grad():
        seen = exits.entropy(early(images)).cpu().numpy()
    found, timed = {}, {}
    for name, thresholds in settings.items():
        leaving, clean, worst = tuning.judged(record, thresholds)
        if thresholds not in timed:  # several settings may find the same
            timed[thresholds] = latency.measure(early, images, tuning.imitated(seen, thresholds, leaving), plain=plain,
                                                batch_sizes=(batch_size,), **how)
        share = np.bincount(leaving, minlength=record.num_exits) / len(leaving)
        spent = share @ record.exit_costs().cumulative(thresholds) / record.costs()["trunk"][-1]
        found[name] = Routed(share, clean, worst, 100 * (1 - spent), timed[thresholds])
    return found
