"""The setting for a budget: at most so many MACs an image, at least so robust, and of those the most accurate one.

    found = choosing.choose(record, max_macs=30e6, min_robust=0.35)
    found.reached, found.point, found.judged["clean"], found.kept; print(choosing.sentence(found))

Every second image of the record chooses, the others judge: the best of many settings looks better on the images that
chose it than it is. Thresholds were chosen on held-out images before. A promise made on images is no guarantee on
others: what the judging images say of it stands beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lib import WorkbookError
from lib.evaluation.points import name
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.evaluation.stats import Number, interval, paired_difference
from lib.operating_point import OperatingPoint
from lib.progress import bar

CHOOSE, JUDGE = slice(0, None, 2), slice(1, None, 2)
BUDGETS = 6  # thresholds at each point are spent at so many budgets, from the cheapest exit's up to what is asked


@dataclass(frozen=True, eq=False)
class Choice:
    """A setting, and how it meets what was asked: at most `max_macs` MACs a clean image in the mean, at least the share
    `min_robust` right in the per-image worst case.

    chosen, judged: {"clean", "robust", "macs"} on the images that chose and on the others, with 95 % intervals.  clock:
    where given, milliseconds of the parts at this point (`latency.time_table`); then "ms" as well, at most `max_ms`.
    reached: whether any setting met both on the images that chose; if not, this is the one that comes nearest.
    """

    reading: Reading
    max_macs: float
    min_robust: float
    reached: bool = True
    clock: ExitCosts | None = None
    max_ms: float = math.inf

    @property
    def point(self) -> OperatingPoint:
        return self.reading.point.replace(thresholds=self.reading.thresholds or None)

    @property
    def bound(self) -> str:
        """What stands before the robust number: "≤" where the strong suite was not run at this very setting."""
        return "" if self.reading.robust == "strong" else "≤ "

    @cached_property
    def chosen(self) -> dict[str, Number]:
        return self._numbers(CHOOSE)

    @cached_property
    def judged(self) -> dict[str, Number]:
        return self._numbers(JUDGE)

    @cached_property
    def met(self) -> dict[str, float]:
        """`chosen` without its intervals."""
        return {what: float(each.mean()) for what, each in self._each(CHOOSE).items()}

    def _each(self, half: slice) -> dict[str, np.ndarray]:
        at = self.reading
        found = {"clean": at.right("clean"), "robust": at.right(at.robust), "macs": at.spent() * at.plain("trunk")}
        if self.clock is not None:
            found["ms"] = self.clock.cumulative(at.thresholds)[at.leaving["clean"]].mean(0)
        return {what: each[half] for what, each in found.items()}

    def _numbers(self, half: slice) -> dict[str, Number]:
        return {what: interval(each) if what in ("clean", "robust") else paired_difference(each, np.zeros_like(each))
                for what, each in self._each(half).items()}

    @property
    def missed(self) -> float:
        """By how much what was asked is missed on the images that chose, bounds as shares of themselves; 0.0 where it
        is reached."""
        met = self.met
        return max(0.0, met["macs"] / self.max_macs - 1) + max(0.0, met.get("ms", 0.0) / self.max_ms - 1) + (
            self.min_robust and max(0.0, 1 - met["robust"] / self.min_robust))

    @property
    def kept(self) -> dict[str, bool]:
        """Whether the promise holds on the images that judge: {"macs", "robust", with a clock "ms"}."""
        spent = {"macs": self.max_macs} | ({"ms": self.max_ms} if self.clock else {})
        return {what: self.judged[what].value <= most for what, most in spent.items()} | {
            "robust": self.judged["robust"].value >= self.min_robust}


def choose(record: Record, max_macs: float = math.inf, min_robust: float = 0.0, max_ms: float = math.inf,
           clocks: Mapping[OperatingPoint, ExitCosts] | None = None) -> Choice:
    """The most accurate setting within all bounds; of equally accurate ones the cheapest.

    max_macs: multiply-accumulates of an image, the mean over clean images.  min_robust: a share, 0 to 1.  max_ms:
    milliseconds an image, the mean over clean images, by the clock of each point (see `latency.clocks`).
    Points that were not attacked do not count.  Raises WorkbookError for bounds out of range, and for a record of no
    attacks or fewer than two images.
    """
    if not (max_macs > 0 and max_ms > 0 and 0 <= min_robust <= 1):
        raise WorkbookError(f"at most {max_macs:g} MACs, {max_ms:g} ms and at least {min_robust:g} robust cannot be "
                            "asked for; give MACs and ms above 0 and a share between 0 and 1")
    if max_ms < math.inf and clocks is None:
        raise WorkbookError("a bound on milliseconds needs to know how long each part takes here; give clocks")
    found = []
    with bar(len(record.points), "settings", "point") as shown:
        for point in record.points:
            found += [Choice(at, max_macs, min_robust, clock=(clocks or {}).get(point), max_ms=max_ms)
                      for at in settings(record, point, max_macs) if at.attacks]
            shown.update(1)
    return best(found)


def best(choices: Sequence[Choice]) -> Choice:
    """Of these settings, which were asked for alike, the one that `choose` takes. Raises WorkbookError as that does."""
    if not choices:
        raise WorkbookError("this record holds no attack, so that it cannot say what is robust; record some with it")
    if min(len(c.reading.right(c.reading.robust)) for c in choices) < 2:
        raise WorkbookError("half of the images choose and half judge; give a record of two images or more")
    if reaching := [c for c in choices if c.missed == 0]:
        return max(reaching, key=lambda c: (c.met["clean"], -c.met["macs"]))
    nearest = min(choices, key=lambda c: (c.missed, -c.met["clean"]))
    return replace(nearest, reached=False)


def settings(record: Record, point: OperatingPoint, max_macs: float = math.inf) -> list[Reading]:
    """A recorded point; with exits at the last exit alone, the paper's thresholds, and those that the held-out images
    choose: equal shares, and the most of them right at budgets up to `max_macs` an image."""
    if record.num_exits == 1:
        return [read(record, point)]
    gates, costs = {(-math.inf,) * (record.num_exits - 1): "last exit alone"}, record.exit_costs(point)
    if record.meta["paper_thresholds"]:
        gates.setdefault(record.thresholds_of("paper"), "paper")
    if record.held_out is not None:
        gates.setdefault(record.thresholds_of("calibrated", point), "equal shares")
        cheapest = float((costs.trunk + costs.heads).min())
        for budget in np.geomspace(cheapest, max(cheapest, min(max_macs, record.macs(point))), BUDGETS):
            budget = max(cheapest, float(budget))  # it is rounded on its way
            gates.setdefault(record.thresholds_of(budget, point), f"budget of {budget / 1e6:.2f} M MACs")
    return [read(record, point, thresholds, source=source) for thresholds, source in gates.items()]


def sentence(choice: Choice) -> str:
    """What was found, in a few lines: the setting, its numbers on the images that judge, and how the promise did."""
    at, judged, chosen = choice.reading, choice.judged, choice.chosen
    asked = [f"at most {choice.max_macs / 1e6:.4g} M MACs"] * bool(choice.max_macs < math.inf)
    asked += [f"at most {choice.max_ms:.4g} ms"] * bool(choice.max_ms < math.inf)
    asked += [f"at least {100 * choice.min_robust:.4g} % robust"] * bool(choice.min_robust > 0)
    gates = ", ".join("closed" if t == -math.inf else f"{t:.4g}" for t in at.thresholds)
    clean, robust = ("{:.1f} ({:.1f}–{:.1f}) %".format(*judged[what].times(100)) for what in ("clean", "robust"))
    costs = "{:.2f} ({:.2f}–{:.2f}) M MACs".format(*judged["macs"].times(1e-6))
    if choice.clock:
        costs += ", {:.3g} ({:.3g}–{:.3g}) ms an image here".format(*judged["ms"])
    suite = "" if choice.bound else f" (strong suite, {len(at.right('strong')[JUDGE]):,} images)"
    said = (" and ".join(asked) or "no bounds") + (": reached, most accurately, by" if choice.reached else
            f": nothing reaches it; nearest, on the images that chose at {chosen['macs'].value / 1e6:.2f} M MACs"
            + (f", {chosen['ms'].value:.3g} ms" if choice.clock else "") +
            f" and {choice.bound}{100 * chosen['robust'].value:.1f} % robust, is")
    said += f"\n  {name(at.point)}" + (f", images leaving below {gates} ({at.source})" if gates else "")
    said += (f"\n  on {len(at.right('clean')[JUDGE]):,} images that did not choose: clean {clean}, per-image worst "
             f"case {choice.bound}{robust}{suite}{at.flag('union')}, {costs}")
    if choice.reached and asked:
        broken = " and ".join(what for what, kept in choice.kept.items() if not kept)
        said += f"\n  there the promise is missed: {broken}" if broken else "\n  there the promise holds"
    return said
