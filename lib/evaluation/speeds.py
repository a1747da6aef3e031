"""How long each part of a forward pass takes, and what settings of exits make of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import checkpoints, progress, randomness
from lib.evaluation import latency, tuning
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.evaluation.stats import Number, paired_difference
from lib.models import exits, zoo
from lib.models.conditions import take
from lib.models.network import Network
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint

LARGEST = 10**8  # weights that a record's network may have: it came without them


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
            spent[0].append(latency.timed(lambda batch, k=k, out=reached: out.append(network.advance(batch, k, at)), x,
                                          x.device))
            x = reached[0]
            spent[1].append(latency.timed(lambda batch, k=k: decide(batch, k), x, x.device))
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

    def gain(self, what: str) -> Number:
        """Points of accuracy over the last exit's, "clean" or "worst", with a 95 % interval."""
        return paired_difference(*getattr(self, what)).times(100)


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
