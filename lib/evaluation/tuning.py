"""The exits and thresholds that make the most of measured times; such settings timed, and judged on other images."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import progress
from lib.attacks import forms
from lib.evaluation import latency, routing
from lib.evaluation.reading import read
from lib.evaluation.record import Record, Validation
from lib.evaluation.routing import ExitCosts
from lib.evaluation.stats import Number, paired_difference
from lib.models import exits
from lib.models.network import Network


def tuned(held_out: Validation, attacked: Validation, costs: ExitCosts, slack: float = 0.005,
          ranks: int = 100) -> tuple[float, ...]:
    """The quickest exits, with one threshold for all of them, at which held-out images lose nothing.

    A loss is against the last exit alone.  held_out: clean images, (exits, M) each; as many must be right, and at most
    the share `slack` wrong that the last exit has right: so few changes cannot win or lose much by chance.
    attacked: views of other images, (views, exits, N) each; in all views at once, the per-image worst case, at most the
    share `slack` fewer may be right. (Single views shift: who leaves early escapes an attack on the last exit.)
    costs: a time table, or MACs.  Every set of exits is tried, and `ranks` quantiles of all entropies. One threshold in
    place of one per exit: what is chosen on some images then holds on others. -inf closes an exit.
    """
    entropy, correct = held_out
    early, last = len(entropy) - 1, correct[-1]
    fewest = attacked.correct[:, -1].all(0).sum() - slack * attacked.correct.shape[-1]
    ranked = np.append(np.unique(entropy[:-1])[1:], np.inf)
    levels = ranked[np.unique(np.linspace(0, len(ranked) - 1, ranks).astype(int))]
    closed = (-np.inf,) * early
    best = costs.cumulative(closed)[-1], closed
    bar = progress.bar(2**early, "tuning exits", "sets of exits")
    for opened in itertools.product((False, True), repeat=early):
        bar.update()
        for level in levels if any(opened) else ():
            thresholds = tuple(float(level) if one else -np.inf for one in opened)
            leaving = routing.decide(entropy, thresholds)
            right = routing.at_exit(correct, leaving)
            if (last & ~right).sum() > slack * len(last):
                break
            spent = costs.cumulative(thresholds)[leaving].mean()
            if right.sum() >= last.sum() and spent < best[0]:
                worst = routing.at_exit(attacked.correct, routing.decide(attacked.entropy, thresholds)).all(0)
                if worst.sum() >= fewest:
                    best = spent, thresholds
    bar.close()
    return best[1]


def of_paper_forms(record: Record) -> Record:
    """The record's clean view and the paper's attacks, which know of no thresholds and hold at any."""
    return record.select(forms=("clean", *forms.paper_forms(record.num_exits)))


def tuned_on(record: Record, costs: ExitCosts) -> tuple[float, ...]:
    """`tuned` on a record: on its held-out clean images, and on the attacks of every second of its images."""
    attacks = [view.attacked for view in record.views]
    attacked = Validation(record.entropy[attacks, :, ::2], record.right[attacks, :, ::2] > 0)
    return tuned(record.held(), attacked, costs)


def judged(record: Record, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How a setting does on what `tuned_on` did not choose by: all clean images, and the other half in all views.

    Returns leaving (N,), 0-based exits of the clean images; then who is right, bool, by the setting and by the last
    exit alone: (2, N) of the clean images, (2, M) of the other half in all views at once.
    """
    ours, last = (read(record, thresholds=at) for at in (thresholds, (-np.inf,) * (record.num_exits - 1)))
    clean, worst = (np.stack([found.right(what) for found in (ours, last)]) for what in ("clean", "union"))
    return ours.leaving["clean"][0], clean, worst[:, 1::2]


def imitated(entropy: np.ndarray, thresholds: Sequence[float], leaving: np.ndarray) -> tuple[float, ...]:
    """Thresholds at which other images leave as those of `leaving` did at `thresholds`, the same exits open.

    entropy: (exits, N) of those other images, so that a network can be timed on any.  leaving: (M,) exits, 0-based.
    """
    shares = np.bincount(leaving, minlength=len(entropy)) / len(leaving)
    found = zip(routing.calibrate(entropy, shares[:-1]), thresholds, strict=True)
    return tuple(max(t, -1.0) if asked > -np.inf else -np.inf for t, asked in found)  # open, even if nobody leaves


@dataclass(frozen=True)
class Routed:
    """A setting of exits, timed, and judged on images that did not choose it (see `judged`).

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


def routed(record: Record, settings: Mapping[str, Sequence[float]], early: Network, plain: Network, images: Tensor,
           batch_size: int, **how) -> dict[str, Routed]:
    """{setting: its thresholds} of a record with held-out images, timed at one batch size and judged.

    early, plain: of `latency.shaped`. Weights do not change the time, who leaves does: `images` (N, C, H, W) are made
    to leave in the shares that the record tells.  how: as for `latency.measure`.
    """
    with torch.no_grad():
        seen = exits.entropy(early(images)).cpu().numpy()
    found, timed = {}, {}
    for name, thresholds in settings.items():
        leaving, clean, worst = judged(record, thresholds)
        if thresholds not in timed:  # several settings may find the same
            timed[thresholds] = latency.measure(early, images, imitated(seen, thresholds, leaving), plain=plain,
                                                batch_sizes=(batch_size,), **how)
        share = np.bincount(leaving, minlength=record.num_exits) / len(leaving)
        spent = share @ record.exit_costs().cumulative(thresholds) / record.costs()["trunk"][-1]
        found[name] = Routed(share, clean, worst, 100 * (1 - spent), timed[thresholds])
    return found
