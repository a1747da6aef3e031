"""A reading: a record at one operating point and one set of thresholds, over one or several trainings. Numbers only.

    found = reading.read(record, thresholds="calibrated")             # a network with exits
    found = reading.read([record0, record1, record2], point)          # several trainings: arrays get an axis of seeds
    found.right("clean"), found.right("average"), found.right("union"), found.measured("paper_worst"), found.spent()

A view is called by its form ("clean", "average"); by its form and relation where the attacker was not the plain one at
this very point ("average, EOT"); with one exit by its relation alone ("main", "EOT", "restart 2"). A relation by itself
("white-box", "EOT") means all forms in it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lib import WorkbookError
from lib.attacks.audit import failed, step_checks
from lib.attacks.forms import paper_forms
from lib.attacks.steps import Threat
from lib.evaluation import routing
from lib.evaluation.points import name, quiet
from lib.evaluation.record import Record, View
from lib.evaluation.stats import Number, interval
from lib.operating_point import OperatingPoint

SUITE = ("white-box", "EOT", "noise-free transfer", "restart 2", "restart 3")  # the attacks behind a worst case
COSTS = {  # (how multiplications are counted, against what of the plain network a saving is)
    "paper_mflops": ("paper_mflops", ""), "cumulative_macs": ("cumulative_macs", ""),
    "paper_saving": ("paper_mflops", "paper_mflops"), "saving": ("cumulative_macs", "trunk"),
    "attacked_mflops": ("paper_mflops", ""), "attacked_saving": ("paper_mflops", "paper_mflops")}
COUNTED = tuple(COSTS)[:4]  # on clean images; the others on those of the worst form


def relation(view: View) -> str:
    """Who the attacker was: "clean", "white-box", "EOT", "draw known", "restart 2", "noise-free transfer", …"""
    if not view.attacked:
        return "clean"
    crafted = view.crafted_at
    if crafted.replace(draw=None) == view.point:
        return ("EOT" if view.threat.draws > 1 else "draw known" if crafted.draw is not None
                else f"restart {view.restart + 1}" if view.restart else "white-box")
    return "noise-free transfer" if quiet(view.point) == crafted else f"crafted at {name(crafted)}"


def kind(threat: Threat) -> str:
    """What steps: "pgd", "fgsm", "pgd cw"."""
    return threat.algorithm + (" cw" if threat.loss == "margin" else "")


def read(records: Record | Sequence[Record], point: OperatingPoint | None = None,
         thresholds: Sequence[float] | str | float | None = None, *, threat: Threat | None = None,
         source: str | None = None) -> "Reading | Trainings":
    """A record, or one for each training, at a point (the only one, if left out).

    thresholds: themselves, or where they come from (see `Record.thresholds_of`); the point's own if left out.  threat:
    of several budgets the one that is meant (EOT's draws aside); None = all that the record holds.
    Raises WorkbookError for points, thresholds and threats that the record does not have."""
    if not isinstance(records, Record):
        return Trainings(tuple(read(r, point, thresholds, threat=threat, source=source) for r in records))
    thresholds = point.thresholds if thresholds is None and point is not None else thresholds
    at, origin = records.at(point), "given"
    if records.num_exits == 1:
        thresholds, origin = (), "none"
    elif isinstance(thresholds, str | float | int):
        origin = thresholds if isinstance(thresholds, str) else "budget"
        thresholds = records.thresholds_of(thresholds, at)
    elif thresholds is None:
        raise WorkbookError(f"where do images leave? give {records.num_exits - 1} thresholds, or paper or calibrated")
    routing.check_thresholds(thresholds, records.num_exits)
    return Reading(records, at, tuple(float(t) for t in thresholds), source or origin, threat)


@dataclass(frozen=True, eq=False)
class Reading:
    """One training. views: {name: indices of its draws}; thresholds: of all but the last exit; trained: where known."""

    record: Record
    point: OperatingPoint
    thresholds: tuple[float, ...] = ()
    source: str = "none"
    threat: Threat | None = None
    trained: object = None

    @cached_property
    def views(self) -> dict[str, list[int]]:
        met = [v for v, view in enumerate(self.record.views) if view.point == self.point and (
            self.threat is None or not view.attacked or replace(view.threat, draws=1) == self.threat)]
        if self.threat is not None and not any(self.record.views[v].attacked for v in met):
            raise WorkbookError(f"{name(self.point)} was not attacked by {kind(self.threat)} with ε "
                                f"{self.threat.epsilon:.4g}; record it")
        met.sort(key=lambda v: (self.record.views[v].attacked, relation(self.record.views[v]) == "draw known"))
        several = len({kind(self.record.views[v].threat) for v in met if self.record.views[v].threat}) > 1
        draws: dict[View, list[int]] = {}
        for v in met:
            draws.setdefault(replace(self.record.views[v], evaluated_at=self.point, draws=1), []).append(v)
        seen, found = Counter(), {}
        for view, places in draws.items():
            seen[called := self._call(view, several)] += 1
            found[called if seen[called] == 1 else f"{called} {seen[called]}"] = places
        return found

    def _call(self, view: View, several: bool) -> str:
        said, plain = relation(view), view.threat is None or kind(view.threat) == "pgd"
        if said == "white-box" or self.record.num_exits > 1:
            said = view.form if said in ("clean", "white-box") else f"{view.form}, {said}"
        return f"{kind(view.threat)} {said}" if several and not plain else said

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.views)

    @property
    def draws(self) -> int:
        """Over how many draws of the noise images were judged."""
        return max(map(self._draws, self.views))

    def _draws(self, view: str) -> int:
        return sum(self.record.views[v].draws for v in self.views[view])

    def view(self, called: str) -> View:
        """How a view was made. Raises WorkbookError when there is none of that name."""
        return self.record.views[self.first(called)]

    def first(self, called: str) -> int:
        """Where in the record the first draw of a view is, for its predictions, entropies and logits."""
        if called not in self.views:
            raise WorkbookError(f"{name(self.point)} was not met by '{called}'; it was by {', '.join(self.views)}")
        return self.views[called][0]

    @cached_property
    def leaving(self) -> dict[str, np.ndarray]:
        """{view: (draws, N)} the exit each image leaves by, 0-based."""
        if self.record.num_exits == 1:
            return {called: np.zeros((1, self.record.images), int) for called in self.views}
        if self.record.entropy is None or any(self.record.views[v].draws > 1 for vs in self.views.values() for v in vs):
            raise WorkbookError("this record kept no entropies of each draw, so it routes no images; record it again")
        return {called: routing.decide(self.record.entropy[places], self.thresholds)
                for called, places in self.views.items()}

    @cached_property
    def _right(self) -> dict[str, np.ndarray]:
        found = {}
        for called, places in self.views.items():
            right = self.record.right[places]
            right = right[:, 0] if self.record.num_exits == 1 else routing.at_exit(right, self.leaving[called])
            draws = self._draws(called)
            found[called] = right[0] > 0 if draws == 1 else right.sum(0) / draws
        return found

    def right(self, what: str) -> np.ndarray:
        """(N,) who is right: bool, or the share of draws where the point is noisy.

        what: a view's name; a relation, all of its forms at once; "paper_worst", the paper's worst form; "paper_union",
        under each of its forms; "union", the per-image worst case over clean and the suite; "worst", right in every
        draw of it; "strong", the first images' worst case over that and the strong suite, of fewer images (n,) where
        not all met it. Raises WorkbookError where the record does not hold it."""
        every, makes = self._right, self._relations
        if what in every:
            return every[what]
        if what == "paper_worst" and self.paper_worst:
            return every[self.paper_worst]
        if what in ("union", "worst"):
            found = np.minimum.reduce([every[called] for called in self.suite])
            return found if what == "union" else found == 1
        if what == "strong" and self.survived:
            made = self.survived.values()
            return np.minimum.reduce([self.right("union")[:len(next(iter(made)))], *made])
        if what == "paper_union" and self.paper_worst:
            return np.minimum.reduce([every[form] for form in paper_forms(self.record.num_exits)])
        if what in SUITE and what not in makes.values() and quiet(self.point) == self.point:
            what = "white-box"  # EOT and transfer are the plain attack where there is no noise
        if met := [every[called] for called, made in makes.items() if made == what]:
            return np.minimum.reduce(met)
        raise WorkbookError(f"{name(self.point)} was not met by '{what}'; it was by {', '.join(every)}")

    @cached_property
    def survived(self) -> dict[str, np.ndarray]:
        """{attack of the strong suite: (n,) who of the record's first images is right after it}, made at exactly this
        point and these thresholds; {} where it was not."""
        held = self.record.strong
        return {} if held is None else {
            view.form: held.right[v, 0] > 0 if view.draws == 1 else held.right[v, 0] / view.draws
            for v, view in enumerate(held.views) if view.point == self.point and view.exact_at(self.thresholds)
            and (self.threat is None or view.threat.epsilon == self.threat.epsilon)}

    @property
    def robust(self) -> str:
        """The worst case to show, as `right` knows it: "strong", or where the strong suite was not run at exactly this
        setting "union", a looser bound, to be shown with "≤"."""
        return "strong" if self.survived else "union"

    @cached_property
    def _relations(self) -> dict[str, str]:
        return {called: relation(self.view(called)) for called in self.views}

    @property
    def suite(self) -> list[str]:
        """The views behind the per-image worst case."""
        return [called for called, made in self._relations.items() if made in ("clean", *SUITE)]

    @property
    def attacks(self) -> list[str]:
        return [called for called, made in self._relations.items() if made != "clean"]

    @cached_property
    def paper_worst(self) -> str | None:
        """The paper's form that leaves fewest right; None unless all of its K + 3 forms are there."""
        wanted = paper_forms(self.record.num_exits)
        return self._weakest(wanted) if set(wanted) <= set(self.views) else None

    @property
    def worst_form(self) -> str:
        """The attacked view that leaves fewest right; clean where nothing was attacked."""
        return self._weakest(self.attacks or self.names)

    def _weakest(self, called: Sequence[str]) -> str:
        return min(called, key=lambda one: self._right[one].sum())

    def share(self, view: str = "clean") -> np.ndarray:
        """(exits,) the share of the images that leaves at each exit. Raises as `view`."""
        self.first(view)
        return np.bincount(self.leaving[view].ravel(), minlength=self.record.num_exits) / self.leaving[view].size

    def alone(self, view: str = "clean") -> np.ndarray:
        """(exits, N) who is right at each exit by itself, shares of the draws: the last one is a control."""
        return self.record.right[self.views[view]].sum(0) / self._draws(view)

    def spent(self, view: str = "clean") -> np.ndarray:
        """(N,) true cost of each image, as a share of the full-width network's without early exits."""
        costs = self.record.exit_costs(self.point).cumulative(self.thresholds)
        return costs[self.leaving[view]].mean(0) / self.plain("trunk")

    def plain(self, convention: str) -> float:
        """What an image costs in the plain network of full width: "trunk" true MACs, or "paper_mflops"."""
        return float(self.record.costs()[convention][-1])

    def cost(self, convention: str, view: str = "clean") -> float:
        """Mean over a view's images: "paper_mflops", as the paper counts; "cumulative_macs", all heads on the way."""
        if convention == "paper_mflops":
            return float(self.share(view) @ self.record.costs(self.point)["paper_mflops"])
        return float(self.share(view) @ self.record.exit_costs(self.point).cumulative(self.thresholds))

    @cached_property
    def doubts(self) -> list[str]:
        """What speaks against attacked numbers: the audit's flags, of this point or else of others; ill-sized steps."""
        audits, here = self.record.meta.get("audit") or {}, json.dumps(self.point.to_json())
        said = [audit["flags"] for at, audit in audits.items() if at == here or here not in audits]
        ill_sized = {flag for attack in self.attacks for flag in failed(step_checks(self.view(attack).threat))}
        return sorted(ill_sized.union(*said))

    def flag(self, quantity: str) -> str:
        """What stands behind an attacked number that should not be believed."""
        return " !" if self.doubts and quantity not in ("clean", *COUNTED) else ""

    def bound(self, quantity: str) -> str:
        """"≤ " before a robust number that no attacker went for who knew this very decision, else ""."""
        whole, other = quantity in ("union", "worst"), self.record.meta.get("decision", "entropy")
        met = map(self.view, self.suite if whole else {quantity} & self.views.keys())
        exact = [other == "entropy" and v.exact_at(self.thresholds) for v in met if v.thresholds_used is not None]
        early = max(self.thresholds, default=-np.inf) > -np.inf or other == "mean so far"
        return "≤ " * (early and not any(exact) if whole else not all(exact))

    def measured(self, quantity: str) -> Number:
        """A number: whatever `right` knows; on clean images paper_mflops, cumulative_macs, and what leaving early saves
        by either, paper_saving and saving; under the worst form attacked_mflops, attacked_saving. Raises as `right`."""
        if quantity not in COSTS:
            return interval(self.right(quantity))
        count, plain = COSTS[quantity]
        spent = self.cost(count, "clean" if quantity in COUNTED else self.paper_worst or self.worst_form)
        return Number(1 - spent / self.plain(plain) if plain else spent)


@dataclass(frozen=True)
class Trainings:
    """Several trainings read alike: arrays have a row each, (S, …), and intervals draw trainings and images anew."""

    each: tuple[Reading, ...]

    def __getattr__(self, attribute: str):
        if attribute in ("right", "spent", "share", "alone"):
            return lambda *args: np.stack([getattr(reading, attribute)(*args) for reading in self.each])
        if attribute in ("record", "point", "threat", "names", "suite", "survived", "draws", "source"):
            return getattr(self.each[0], attribute)
        if attribute in ("flag", "bound"):  # marked where one of them is
            return lambda quantity: max(getattr(reading, attribute)(quantity) for reading in self.each)
        if attribute in ("robust", "doubts"):  # "strong" where all of them met it
            return max(getattr(reading, attribute) for reading in self.each)
        raise AttributeError(attribute)

    def measured(self, quantity: str) -> Number:
        """As of one; a cost is the mean of the trainings', from the cheapest to the dearest."""
        every = [reading.measured(quantity) for reading in self.each]
        if every[0].low is None:
            values = [number.value for number in every]
            return Number(float(np.mean(values)), min(values), max(values))
        return interval(self.right(quantity))
