"""Where each image leaves, and how thresholds are chosen, from recorded entropies alone (numpy, no network).

Everywhere: exits are numbered from 0 in arrays, the last one has no threshold; an image leaves at the first exit whose
entropy is strictly below its threshold; a closed exit has threshold -inf, and its head is then not run.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lib import WorkbookError

NEED_ALL_HEADS = ("patience", "mean so far")  # decisions that ask every exit on the way, also a closed one


def check_thresholds(thresholds: Sequence[float], num_exits: int) -> np.ndarray:
    """(num_exits - 1,) float32, the precision in which entropies are recorded and networks compare them.

    Raises WorkbookError when the count is wrong or one is not a number.
    """
    values = np.array(() if isinstance(thresholds, str) else tuple(thresholds), dtype=np.float32)
    if values.shape != (num_exits - 1,):
        raise WorkbookError(f"{values.size} thresholds for {num_exits} exits; give {num_exits - 1} (none for the last)")
    if np.isnan(values).any():
        raise WorkbookError("a threshold is not a number; a closed exit has threshold -inf")
    return values


def decide(entropy: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Exit (..., N), 0-based, from entropies (..., exits, N)."""
    values = check_thresholds(thresholds, entropy.shape[-2])
    leaving = np.full(entropy.shape[:-2] + entropy.shape[-1:], len(values), dtype=np.int16)
    for k in reversed(range(len(values))):
        leaving[entropy[..., k, :] < values[k]] = k
    return leaving


def at_exit(values: np.ndarray, leaving: np.ndarray) -> np.ndarray:
    """From `values` (..., exits, N), each image's entry at the exit it leaves by, (..., N)."""
    return np.take_along_axis(values, leaving[..., None, :].astype(np.intp), axis=-2)[..., 0, :]


def calibrate(entropy: np.ndarray, shares: float | Sequence[float] | None = None) -> tuple[float, ...]:
    """Thresholds under which given shares of all images leave at exits 1 … K, from held-out entropies (exits, N).

    shares: one number for every early exit or K of them; None = equal shares 1/(K + 1). At each exit the images still
    there are sorted and the entropy at rank floor(share N) (0-based) becomes the threshold (released code; the paper
    tunes by hand). Where equal entropies straddle that rank they leave or stay together, whichever is nearer to the
    share. A share of 0 closes the exit. Raises WorkbookError when shares are out of range or images too few.
    """
    num_exits, images = entropy.shape
    early = num_exits - 1
    if shares is None:
        quotas = [images // num_exits] * early
    else:
        shares = [float(shares)] * early if np.isscalar(shares) else [float(s) for s in shares]
        if len(shares) != early:
            raise WorkbookError(f"{len(shares)} shares for {num_exits} exits; give {early} (the last takes the rest)")
        if not all(0 <= s <= 1 for s in shares) or sum(shares) > 1 + 1e-9:
            raise WorkbookError(f"exit shares {shares} must lie between 0 and 1 and add up to at most 1")
        quotas = [int(images * s + 1e-9) for s in shares]
    if images < num_exits:
        raise WorkbookError(f"{images} held-out images are too few to calibrate {num_exits} exits")
    staying, thresholds = np.ones(images, dtype=bool), []
    for k, quota in enumerate(quotas):
        thresholds.append(_quota_threshold(np.sort(entropy[k, staying]), quota))
        staying &= ~(entropy[k] < np.float32(thresholds[-1]))
    return tuple(thresholds)


def _quota_threshold(ranked: np.ndarray, quota: int) -> float:
    if quota == 0:
        return -np.inf
    if quota >= len(ranked):
        return np.inf
    value = ranked[quota]
    below, through = np.searchsorted(ranked, value), np.searchsorted(ranked, value, side="right")
    if quota - below <= through - quota:
        return float(value)
    return float(np.nextafter(value, np.float32(np.inf)))


RELEASED_SHIFTS = {  # (backbone, exits) -> (factor, shift) per threshold, set by hand in the released code
    ("resnet38", 7): [(1, -0.15), (1, -0.20), (1, -0.25), (1, -0.05), (1, -0.05), (1, 0)],
    ("smallcnn", 3): [(3, 0), (4, 0)],
    ("mobilenet_v2", 7): [(1, -1), (1, 0), (1, 0), (1, 0), (1, 0), (1, 0)],
}


def released(entropy: np.ndarray, backbone: str) -> tuple[float, ...]:
    """The released code's recipe: equal shares, then its adjustments by hand. It ran this on the test images.

    entropy: (exits, N). Raises WorkbookError for a network the released code has no adjustments for.
    """
    if (backbone, len(entropy)) not in RELEASED_SHIFTS:
        known = ", ".join(f"{name} with {exits} exits" for name, exits in RELEASED_SHIFTS)
        raise WorkbookError(f"the released code adjusts thresholds for {known}; not for {backbone} with {len(entropy)}")
    shifts = RELEASED_SHIFTS[backbone, len(entropy)]
    return tuple(t * factor + shift for t, (factor, shift) in zip(calibrate(entropy), shifts, strict=True))


class ExitCosts(NamedTuple):
    """What each exit costs, MACs (conv + linear), (exits,) each: the backbone from the input to its tap; its head."""

    trunk: np.ndarray
    heads: np.ndarray

    def cumulative(self, thresholds: Sequence[float]) -> np.ndarray:
        """MACs of leaving at each exit (exits,), float: the trunk so far and every head that is open up to there."""
        open_exits = np.append(check_thresholds(thresholds, len(self.trunk)) > -np.inf, True)
        own = np.where(open_exits, 0, self.heads)  # a closed exit asked for by itself still runs its own head
        return np.asarray(self.trunk, float) + np.cumsum(np.where(open_exits, self.heads, 0)) + own

    def efficacy(self, thresholds: Sequence[float], shares: np.ndarray) -> float:
        """DeepSloth's, from the share of images that leaves at each exit: the area under the share that left over the
        share of the whole cost (trapezoids, from nobody at 0); near 1 where all leave at once, near 0 where none does.
        """
        opened = np.append(check_thresholds(thresholds, len(self.trunk)) > -np.inf, True)
        spent, left = (np.append(0.0, part[opened]) for part in (self.cumulative(thresholds), np.cumsum(shares)))
        return float(np.diff(spent) @ (left[1:] + left[:-1])) / (2 * spent[-1])

    @property
    def parts(self) -> np.ndarray:
        """(2, exits) of each part by itself: of the backbone from tap to tap, and of the heads."""
        return np.stack([np.diff(np.asarray(self.trunk, float), prepend=0.0), np.asarray(self.heads, float)])


def charged(costs: Mapping[str, np.ndarray], decision: str) -> ExitCosts:
    """What a decision pays for: the heads of open exits, or where it asks every exit on the way, all of them."""
    trunk, heads = costs["trunk"], costs["heads"]
    return ExitCosts(trunk + heads.cumsum(), 0 * heads) if decision in NEED_ALL_HEADS else ExitCosts(trunk, heads)


def spend_at_most(budget: float, entropy: np.ndarray, correct: np.ndarray, costs: ExitCosts) -> tuple[float, ...]:
    """Thresholds with the most held-out images right at a mean cost of at most `budget` MACs an image.

    entropy: (exits, N) float32; correct: (exits, N) bool, both on held-out images; costs: MACs of trunk and heads.
    Each MAC gets a price; for one price, thresholds are improved one exit at a time until none changes, and each such
    search is exact over all cuts of the images that arrive there. The lowest price that keeps the budget is found by
    bisection; what is then left of the budget is spent in the same way, from there and from "all leave at one exit".
    Raises WorkbookError when even the cheapest exit costs more than the budget.
    """
    trunk, heads = (np.asarray(c, float) for c in costs)
    cheapest = (trunk + heads).min()
    if not budget >= cheapest:
        raise WorkbookError(f"a budget of {budget:,.0f} MACs is below the cheapest exit's {cheapest:,.0f}; raise it")
    search = _Search(np.asarray(entropy, np.float32), np.asarray(correct, bool), ExitCosts(trunk, heads))
    closed = np.full(len(trunk) - 1, -np.inf, np.float32)
    best = search.improve(closed, 0.0)
    if search.cost(best) > budget:
        low, high = 1e-6 / trunk[-1], 10 / np.diff(np.unique(np.append(trunk + heads, 0.0))).min()
        for _ in range(12):
            price = np.sqrt(low * high)
            found = search.improve(closed, price)
            if search.cost(found) > budget:
                low = price
            else:
                high, best = price, found
        if search.cost(best) > budget:
            best = search.improve(closed, high)
    starts = [best, *np.where(np.eye(len(closed), dtype=bool), np.float32(np.inf), closed)]
    ends = [search.improve(start, 0.0, budget) for start in starts if search.cost(start) <= budget]
    return tuple(float(t) for t in max(ends, key=search.right))


class _Search:
    """Coordinate search over thresholds on one set of held-out images."""

    def __init__(self, entropy: np.ndarray, correct: np.ndarray, costs: ExitCosts):
        self.entropy, self.correct, self.costs = entropy, correct, costs
        self.order = np.argsort(entropy, axis=1, kind="stable")

    def cost(self, thresholds: np.ndarray) -> float:
        return self.costs.cumulative(thresholds)[decide(self.entropy, thresholds)].mean()

    def right(self, thresholds: np.ndarray) -> int:
        return at_exit(self.correct, decide(self.entropy, thresholds)).sum()

    def improve(self, thresholds: np.ndarray, price: float, budget: float = np.inf) -> np.ndarray:
        """Line searches over the exits, last first, until a whole sweep changes nothing."""
        thresholds = thresholds.copy()
        for _ in range(6):
            before = thresholds.copy()
            for k in reversed(range(len(thresholds))):
                thresholds[k] = self.best_cut(k, thresholds, price, budget)
            if (thresholds == before).all():
                break
        return thresholds

    def best_cut(self, k: int, thresholds: np.ndarray, price: float, budget: float) -> np.float32:
        """The threshold of exit k that earns most, the others as they are: correct images - price x MACs."""
        closed_here = thresholds.copy()
        closed_here[k] = -np.inf
        onward = decide(self.entropy, closed_here)
        cumulative = self.costs.cumulative(closed_here)
        ranked = self.order[k]
        arriving = ranked[onward[ranked] > k]
        if len(arriving) == 0:
            return thresholds[k]
        value = self.entropy[k, arriving]
        right_on = self.correct[onward[arriving], arriving]
        cost_on = cumulative[onward[arriving]] + self.costs.heads[k]
        gain = np.append(0, np.cumsum(self.correct[k, arriving].astype(float) - right_on))
        saved = np.append(0, np.cumsum(cost_on - cumulative[k]))
        spent = cumulative[onward].sum() + self.costs.heads[k] * len(arriving) - saved
        spent[0] = cumulative[onward].sum()  # nobody leaves: the exit is closed and its head is not run
        allowed = np.append(True, value[1:] > value[:-1])
        allowed = np.append(allowed, True) & (spent <= budget * len(onward) * (1 + 1e-12))
        if not allowed.any():
            return thresholds[k]
        score = np.where(allowed, gain - price * spent, -np.inf)
        ties = np.flatnonzero(score == score.max())
        cut = ties[spent[ties].argmin()]
        return np.float32(-np.inf) if cut == 0 else np.float32(np.inf) if cut == len(arriving) else value[cut]
