"""Where an explorer stands, and what the record says there: every knob of any network, without widgets or figures.

    explorer = Explorer({"FLOAT": Subject(record, images, network)}, folder)
    explorer.set(lambda_n=0.35, lambda_th=0.5, width=0.5, thresholds="equal share", attack="average")
    explorer.point, explorer.spot().number("clean"), explorer.export()

The knobs are those that the record's points use. A setting is recorded; or it lies between recorded points, and its
numbers are interpolated (≈); or no attack knew the present thresholds, which makes a bound of a robust one (≤).
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from lib import WorkbookError, checkpoints, unknown
from lib.evaluation import choosing, gates, latency
from lib.evaluation.between import Spot, corners, reading_at, view_for
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import microscope
from lib.workbook.subject import BY_HAND, Setting, Subject

FLAT = 0.01  # accuracy that counts as no change
KEPT = ("network", "lambda_n", "lambda_th", "attack", "threat", "decision")  # knobs that are fields of a Setting
KNOBS = (*KEPT, *BY_HAND, "width", "thresholds")


class Explorer:
    """`subjects` by name, each a Subject, or of a method with one network per lambda {lambda: Subject}.

    here: the present Setting.  pinned: one to compare with.  point: the present operating point, for the next cell.
    """

    def __init__(self, subjects: Subject | Mapping, folder: Path | str = ".", *, computed: int = 200, **setting):
        subjects = {"network": subjects} if isinstance(subjects, Subject) else dict(subjects)
        if not subjects:
            raise WorkbookError("there is nothing to explore; record a network first, with `evaluate … --save-record`")
        self.subjects = {name: {None: s} if isinstance(s, Subject) else dict(s) for name, s in subjects.items()}
        self.folder, self.computed, self.changed = Path(folder), computed, lambda: None
        self.exact: dict[tuple[Subject, OperatingPoint], Record] = {}
        self._width: float | None = None  # the one asked for, which a network in between may not have
        first = next(iter(self.subjects))
        start = self.subject_of(first, 1.0).record.points[0]
        self.here = Setting(first, 1.0, 0.0, start, "", (), "max_average", "")
        try:
            self.set(network=first, lambda_n=1.0)
            self.spot()
        except WorkbookError:
            self.here = self._completed(replace(self.here, lambda_n=None, at=start))
        self.pin()
        if setting:
            self.set(**setting)

    def set(self, **changes):
        """Go to a setting: network; lambda_n, lambda_th, or noise, batch_norm, code by hand; width; thresholds (a
        source, a budget as a share of the plain network's MACs, or themselves, None for a closed exit); decision, what
        images leave by (see `gates`); attack; threat.

        What is left out stays. Raises WorkbookError for a value or knob that is not there, and then changes nothing.
        """
        for knob in changes.keys() - KNOBS:
            raise unknown("knob", knob, KNOBS, "the knobs are")
        wanted = replace(self.here, source=changes.get("thresholds", self.here.source),
                         **{knob: changes[knob] for knob in KEPT if knob in changes})
        if wanted.network not in self.subjects:
            raise unknown("network", wanted.network, self.subjects)
        whole = self.subject_of(wanted.network, wanted.lambda_n)
        subject, widths = whole.under(wanted.threat), whole.values("width")
        for what, held in (("width", widths), ("threat", whole.threats), ("attack", subject.attacks)):
            if what in changes and changes[what] not in held:
                raise WorkbookError(f"{what} {changes[what]} was not recorded of {wanted.network}; choose from "
                                    f"{', '.join(map(str, held)) or 'one alone'}")
        by_hand = {knob: round(float(changes[knob]), 9) for knob in BY_HAND if knob in changes}
        if lacking := by_hand.keys() - subject.knobs:
            raise WorkbookError(f"{wanted.network} has no knob {min(lacking)}; it has "
                                f"{', '.join(sorted(subject.knobs)) or 'none'}")
        asked = changes.get("width", self._width)
        width = (asked if asked in widths else max(widths)) if widths else None
        if by_hand or wanted.lambda_n is None:
            knobs = {knob: by_hand.get(knob, getattr(self.here.at, knob)) for knob in BY_HAND if knob in subject.knobs}
            at = OperatingPoint(**{k: subject.values(k)[0] if v is None else v for k, v in knobs.items()}, width=width)
            wanted = replace(wanted, at=at, lambda_n=subject.leads(at, wanted.lambda_th))
        else:
            wanted = replace(wanted, at=subject.at(wanted.lambda_n, wanted.lambda_th, width))
        if "decision" not in changes and wanted.decision not in gates.supported(subject.record):
            wanted = replace(wanted, decision="entropy")
        if wanted.decision != self.here.decision and isinstance(wanted.source, tuple) and "thresholds" not in changes:
            wanted = replace(wanted, source="")  # thresholds by hand are another score's
        self.here, self._width = self._completed(wanted, "thresholds" in changes), asked
        self.changed()

    def _completed(self, wanted: Setting, strict: bool = False) -> Setting:
        """With thresholds from where they are said to come; attack and threat kept where this network met them."""
        threats = self.subject_of(wanted.network, wanted.lambda_n).threats
        if wanted.threat not in threats:
            wanted = replace(wanted, threat=next(iter(threats), ""))
        subject = self.subject_at(wanted)
        attack = wanted.attack if wanted.attack in subject.attacks else subject.attacks[0]
        for source in [wanted.source] if strict else (wanted.source, subject.usual, "last exit only"):
            try:
                thresholds = subject.gates(wanted.at, source)
            except WorkbookError:
                if strict or source == "last exit only":
                    raise
                continue
            return replace(wanted, attack=attack, thresholds=thresholds,
                           source=thresholds if isinstance(source, tuple | list) else source)

    def subject_of(self, name: str, lambda_n: float | None) -> Subject:
        """A network, of a family the nearest: its whole record."""
        family = self.subjects[name]
        return family[min(family, key=lambda weight: abs((weight or 0) - (lambda_n or 0)))]

    def subject_at(self, here: Setting) -> Subject:
        """What is looked at in a setting: the network by that decision, under that threat alone."""
        return self.subject_of(here.network, here.lambda_n).under(here.threat).by(here.decision)

    @property
    def whole(self) -> Subject:
        return self.subject_of(self.here.network, self.here.lambda_n)

    @property
    def subject(self) -> Subject:
        return self.subject_at(self.here)

    @property
    def point(self) -> OperatingPoint:
        self._by_entropy()
        return self.here.at.replace(thresholds=self.here.thresholds or None)

    @property
    def turns(self) -> bool:
        """Whether lambda_n moves anything here."""
        return bool(self.subject.knobs.intersection(BY_HAND)) or len(self.subjects[self.here.network]) > 1

    def pin(self):
        """Keep the present setting to compare with."""
        self.pinned, self.pinned_code = self.here, self.code
        self.changed()

    def spot(self, here: Setting | None = None) -> Spot:
        """The numbers at a setting (the present one). Raises WorkbookError where nothing is recorded around it."""
        here = here or self.here
        subject = self.subject_at(here)
        record = self.exact.get((subject, here.at), subject.record)
        return Spot(tuple((weight, reading_at(record, point, here.thresholds))
                          for weight, point in corners(record, here.at)))

    def at_lambda(self, lambda_n: float) -> Setting:
        """The present setting at another lambda_n; thresholds follow where their source depends on the point."""
        here = replace(self.here, lambda_n=lambda_n)
        subject = self.subject_at(here)
        at = subject.at(lambda_n, here.lambda_th, here.at.width)
        source = here.thresholds if isinstance(here.source, float | int) else here.source
        return replace(here, at=at, thresholds=subject.gates(at, source))

    def along(self, lambdas: Sequence[float]) -> dict[str, list[float | None]]:
        """Accuracies "clean" and "attacked" along lambda_n; None where nothing is recorded."""
        pairs = []
        for n in lambdas:
            pairs.append((None, None))
            with contextlib.suppress(WorkbookError):
                spot = self.spot(self.at_lambda(float(n)))
                pairs[-1] = spot.number().value, spot.number(self.here.attack).value
        return dict(zip(("clean", "attacked"), map(list, zip(*pairs, strict=True)), strict=True))

    def recorded(self, name: str) -> list[tuple[float, float]]:
        """[(clean, attacked)] accuracies of all recorded points of a network by name, where they met the attack."""
        return [pair for subject in self.subjects[name].values()
                for pair in _accuracies(subject.under(self.here.threat), self.here.attack)]

    def examine(self, index: int) -> microscope.Look:
        """An image of the dataset under the present attack, by the network itself. Raises WorkbookError without it."""
        reading = self.spot().nearest
        view = reading.view(view_for(reading, self.here.attack))
        return self._by_entropy().examine(index, view, self.here.at, self.here.thresholds)

    def notes(self) -> list[str]:
        """What a hand on these knobs should know: a λ that snaps, a knob that does nothing here."""
        subject, here, notes = self.subject, self.here, []
        weights = subject.values("code") or [w for w in self.subjects[here.network] if w is not None]
        if weights and here.lambda_n is not None and here.lambda_n not in weights:
            taken = min(weights, key=lambda weight: abs(weight - here.lambda_n))
            notes.append(f"{here.network} was trained at λ {', '.join(f'{w:g}' for w in sorted(weights))}; "
                         f"the nearest is {taken:g}.")
        if here.decision != "entropy":
            notes.append(f"An image leaves where {gates.DECISIONS[here.decision]} lies below the exit's threshold.")
        if self.turns and here.lambda_n is None:
            notes.append("Set by hand: no λ_n leads here.")
        if "noise" in subject.knobs and here.at.batch_norm:
            lambdas = np.linspace(here.lambda_th + 0.05, 1, 9).round(9)
            held = [[v for v in line if v is not None] for line in self.along(lambdas).values()]
            if all(held) and max(max(line) - min(line) for line in held) < FLAT:
                notes.append(f"λ_n from {lambdas[0]:g} to 1 moves neither accuracy by a point: the batch norm does it.")
        return notes

    def _by_entropy(self) -> Subject:
        """The network itself leaves by entropy. Raises WorkbookError for another decision."""
        if self.here.decision != "entropy":
            raise WorkbookError(f"networks here leave by entropy; choose that in place of {self.here.decision}")
        return self.subject

    def choose(self, *bounds: float, **named: float) -> choosing.Choice:
        """Go to what `best` finds within its bounds; `choosing.sentence` says what became of it."""
        self.take(choice := self.best(*bounds, **named))
        return choice

    def best(self, max_macs: float = math.inf, min_robust: float = 0.0, max_ms: float = math.inf) -> choosing.Choice:
        """The most accurate recorded setting of this network, by the present decision and under the present threat,
        within bounds, or the one that comes nearest (see `choosing.choose`)."""
        here, timed = self.here, max_ms < math.inf
        return choosing.best([choosing.choose(subject.under(here.threat).by(here.decision).record, max_macs, min_robust,
                                              max_ms, latency.clocks(subject.record) if timed else None)
                              for subject in self.subjects[here.network].values()])

    def take(self, choice: choosing.Choice):
        """Go to a setting that `best` found, whatever was moved since."""
        record, at = choice.reading.record, choice.reading.point
        decision = record.meta.get("decision", "entropy")
        name, weight, threat = next(
            (name, n, t) for name, family in self.subjects.items() for n, s in family.items() for t in s.threats
            if decision in gates.supported(s.record) and s.under(t).by(decision).record is record)
        knobs = {knob: getattr(at, knob) for knob in (*BY_HAND, "width")} | {"lambda_n": weight}
        self.set(network=name, **{knob: value for knob, value in knobs.items() if value is not None},
                 decision=decision, thresholds=choice.reading.thresholds, attack="union", threat=threat)

    def page(self, path: Path | str) -> Path:
        """Write the present network's record as one HTML file with sliders, which needs neither kernel nor network."""
        from lib.workbook import page

        return page.write(self.whole, path)

    def compute(self, progress: Callable[[int, int], None] = lambda done, total: None):
        """Attack at exactly this setting (see `Subject.compute`); a slider that is moved meanwhile does not count."""
        here, subject = self.here, self._by_entropy()
        self.exact[subject, here.at] = subject.compute(here.at, here.thresholds, self.computed, progress)

    @property
    def setting(self) -> dict:
        """The arguments of `set` that lead here."""
        here, subject = self.here, self.subject
        found = {"network": here.network} if len(self.subjects) > 1 else {}
        if self.turns and here.lambda_n is not None:
            found |= {"lambda_n": here.lambda_n, "lambda_th": here.lambda_th}
        elif self.turns:
            found |= {knob: getattr(here.at, knob) for knob in BY_HAND if knob in subject.knobs}
        if here.at.width is not None:
            found["width"] = here.at.width
        if subject.early:
            found["thresholds"] = (tuple(None if gate == -math.inf else gate for gate in here.source)
                                   if isinstance(here.source, tuple) else here.source)
        found |= {"decision": here.decision} if here.decision != "entropy" else {}
        return found | {"attack": here.attack} | ({"threat": here.threat} if len(self.whole.threats) > 1 else {})

    @property
    def code(self) -> str:
        """The line that leads here from another cell."""
        return f"explorer.set({', '.join(f'{name}={value!r}' for name, value in self.setting.items())})"

    def numbers(self, here: Setting | None = None) -> dict:
        """{quantity: value, or its text where it is marked}: accuracies in percent, costs on clean images."""
        spot, attack = self.spot(here), (here or self.here).attack
        shown = {what: f"{spot.mark(what)}{100 * spot.number(what).value:.1f}{spot.nearest.flag(what)}"
                 for what in dict.fromkeys(("clean", attack, "union"))}
        return shown | {"true M MACs": f"{spot.cost('cumulative_macs') / 1e6:.2f}"}

    def export(self) -> Path:
        """Write the setting, its point and its numbers as JSON, for `restore`; returns the file."""
        path = self.folder / f"point-{file_name(self.here.network)}.json"
        meta = self.subject.record.meta
        values = {"set": self.setting, "point": self.point.to_json(), "numbers": self.numbers(), "model": meta["model"],
                  "checkpoint": meta.get("checkpoint"), "images": meta["images"], "seed": meta["seed"]}
        checkpoints.replace(path, (json.dumps(values, indent=2) + "\n").encode())
        return path

    def restore(self, path: Path | str):
        """Go to where `export` was called. Raises WorkbookError for another file."""
        try:
            setting = json.loads(Path(path).read_text(encoding="utf-8"))["set"]
        except (OSError, ValueError, LookupError) as error:
            raise WorkbookError(f"{path} holds no exported point ({error}); name a file that export() wrote") from None
        self.set(**setting)


@lru_cache(maxsize=256)
def _accuracies(subject: Subject, attack: str) -> list[tuple[float, float]]:
    """(clean, attacked) at each recorded point, everybody at the last exit; [] where there was no such attack."""
    spots = [Spot(((1.0, reading_at(subject.record, point, (-math.inf,) * subject.early)),))
             for point in subject.record.points if attack in subject.attacks]
    return [(spot.number().value, spot.number(attack).value) for spot in spots]


def file_name(network: str) -> str:
    return network.replace(" ", "_").replace("/", "_")
