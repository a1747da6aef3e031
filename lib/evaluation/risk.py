"""Thresholds with a guarantee, chosen on held-out images by risk control (Angelopoulos et al., "Learn then Test").

    record.thresholds_of("risk 0.01")  # 95 % sure: at most 1 % of images like the held-out ones are lost
    risk.lost(reading)                 # how many are, on the record's clean images and under each of its attacks

An image is lost where the last exit is right and the one that it leaves by is wrong: the share of right answers falls
by no more. Attacked images are not like the held-out ones, so that nothing is promised for them; `lost` says it.
"""

import math
from dataclasses import replace

import numpy as np

from lib import WorkbookError
from lib.evaluation import routing
from lib.evaluation.stats import Number, interval

DOUBT = 0.05  # how often a choice may break its promise, over draws of held-out images
LEVELS = tuple(np.geomspace(1e-4, 10, 101).tolist())  # of entropy, nats, the strictest first; fixed before any image


def stated(source: str) -> float:
    """The risk in "risk 0.01". Raises WorkbookError unless it lies between 0 and 1."""
    try:
        risk = float(source.removeprefix("risk "))
    except ValueError:
        risk = math.nan
    if not 0 < risk < 1:
        raise WorkbookError(f"'{source}' states no risk; write risk 0.01 to lose at most 1 % of the images")
    return risk


def at_most(risk: float, entropy: np.ndarray, correct: np.ndarray) -> tuple[float, ...]:
    """One threshold for all exits, the laxest at which it is 95 % sure that at most the share `risk` of images is lost.

    entropy, correct: (exits, M), of held-out images drawn like those to come.  One level after another is tested from
    the strictest on, and the first that fails ends it (fixed-sequence testing: the levels together err as rarely as
    one).  A level fails where so few lost images, or fewer, would come by chance at that risk more often than DOUBT;
    Clopper-Pearson's upper bound lies below the risk exactly where it does not.
    Raises WorkbookError for fewer images than can show so low a risk.
    """
    early, images = len(entropy) - 1, entropy.shape[1]
    if chance(0, images, risk) > DOUBT:
        raise WorkbookError(f"{images} held-out images cannot show a risk of at most {risk:g}, even if none is lost; "
                            f"it takes {math.ceil(math.log(DOUBT) / math.log1p(-risk))}")
    chosen = (-math.inf,) * early
    for level in LEVELS:
        left = routing.at_exit(correct, routing.decide(entropy, (level,) * early))
        if chance(int((correct[-1] & ~left).sum()), images, risk) > DOUBT:
            break
        chosen = (level,) * early
    return chosen


def chance(count: int, images: int, share: float) -> float:
    """The probability of at most `count` out of so many images, where each counts with probability `share`."""
    logs = (math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1) + k * math.log(share)
            + (images - k) * math.log1p(-share) for k in range(count + 1))
    return math.fsum(map(math.exp, logs))


def lost(reading) -> dict[str, Number]:
    """{view of a `Reading`: the share of its images that leaving early loses}, of a noisy point over its draws."""
    found = {}
    for called, places in reading.views.items():
        right = reading.record.right[places] > 0
        gone = right[:, -1] & ~routing.at_exit(right, reading.leaving[called])
        found[called] = interval(gone.mean(0))
    return found


def kept(reading, risk: float, splits: int = 200, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Whether the promise is kept at a reading's point: on a random half of its held-out images (of one draw) a
    threshold is chosen, on the other half its loss is counted; `splits` times.

    Returns the share of the splits in which at most `risk` was lost, and means over them: "held out", lost on that
    other half; each view of the record's images, lost there; "saving", of MACs on the record's clean images.
    """
    entropy, correct = (a[:, :reading.record.held_out.images] for a in reading.record.held(reading.point))
    drawn, told = np.random.default_rng(seed), []
    for _ in range(splits):
        mine, others = np.array_split(drawn.permutation(entropy.shape[1]), 2)
        thresholds = at_most(risk, entropy[:, mine], correct[:, mine])
        left = routing.at_exit(correct[:, others], routing.decide(entropy[:, others], thresholds))
        at = replace(reading, thresholds=thresholds)
        told.append({"held out": float((correct[-1, others] & ~left).mean()), "saving": at.measured("saving").value}
                    | {view: number.value for view, number in lost(at).items()})
    return (float(np.mean([one["held out"] <= risk for one in told])),
            {name: float(np.mean([one[name] for one in told])) for name in told[0]})
