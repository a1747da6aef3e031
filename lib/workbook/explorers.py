"""Explorers: sliders that move an operating point and show at once what it does. Headless they leave still figures."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from IPython.display import display

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import exit_panels, live, microscope, style, tables
from lib.workbook.published import suited
from lib.workbook.strip import Strip, as_pixels

SETTINGS = ("paper", "equal share", "budget", "last exit only", "by hand")
SMALLEST, STEP = -4.0, 0.02  # log10 of the sliders' lower end and their step: 0.014 and 0.023 are eleven steps apart
SAMPLE, COLUMNS = 72, 20  # images in the strip, and how many of them fit a row


@dataclass(frozen=True)
class Subject:
    """What an explorer looks at: a record, its pictures, and (for the microscope) the network itself."""

    record: Record
    images: Split | None = None
    classes: tuple[str, ...] | None = None
    network: Callable[[], Network] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes or tuple(str(c) for c in range(int(self.record.labels.max()) + 1))

    @property
    def threat(self) -> Threat:
        """The budget of the recorded attacks."""
        found = [view.threat for view in self.record.views if view.threat is not None]
        if not found:
            raise WorkbookError("this record holds clean images only, so there is no attack to show")
        return found[0]

    def title(self) -> str:
        meta, first = self.record.meta, self.record.meta["images"]
        where = f"{meta.get('dataset', 'dataset not stated')}, {meta.get('data_variant', 'variant not stated')}"
        return f"{self.record.images:,} images ({where}, {first[0]} to {first[1] - 1}), seed {meta['seed']}"


def thresholds_for(record: Record, setting: str, budget: float = 1.0) -> tuple[float, ...]:
    """Thresholds of a quick setting; `budget`: share of the plain network's MACs to spend at most, on held-out images.

    Raises WorkbookError where the record has no published thresholds or no held-out images, or the budget buys nothing.
    """
    if setting == "last exit only":
        return (-math.inf,) * (record.num_exits - 1)
    if setting == "budget":
        return record.thresholds_of(budget * record.costs()["trunk"][-1])
    if setting not in ("paper", "equal share"):
        raise WorkbookError(f"unknown setting {setting!r}; choose from {', '.join(SETTINGS[:4])}")
    return record.thresholds_of("paper" if setting == "paper" else "calibrated")


def stops(record: Record) -> dict[str, dict]:
    """Summaries at the quick settings that this record allows, by name; a budget that buys no more is left out."""
    asked = {name: (name, 1.0) for name in ("paper", "equal share")}
    asked |= {f"at most {budget:.0%} of the MACs": ("budget", budget) for budget in (0.15, 0.3, 0.6)}
    asked |= {"last exit only": ("last exit only", 1.0)}
    found = {}
    for name, (setting, budget) in asked.items():
        try:
            thresholds = thresholds_for(record, setting, budget)
        except WorkbookError:  # no published thresholds, no held-out images, or nothing to buy so cheaply
            continue
        found.setdefault(thresholds, (name, tables.summary(read(record, thresholds=thresholds))))
    return dict(found.values())


def saving(share: float) -> str:
    """A saving in words: "saves 12.3 %", or "4.2 % more"."""
    return f"saves {100 * share:.1f} %" if share >= 0 else f"{-100 * share:.1f} % more"


def tiles(found: dict, form: str, clean: str = "clean") -> str:
    """The numbers that matter as HTML: TA, ATA, the two worst cases, and both costs on clean and on attacked inputs."""
    forms, worst = found["forms"], found["paper_worst"]
    half = 100 * max((f["high"] - f["low"]) / 2 for f in forms.values())

    def cost(name, colour):
        f = forms[name]
        return style.tile(f"cost, {style.spoken(name)}", f"{f['cumulative_macs'] / 1e6:.2f} M MACs", colour,
                          saving(f["saving"]), f"as the paper counts: {f['paper_mflops']:.2f},",
                          saving(f["paper_saving"]))

    shown = [style.tile("TA", f"{100 * forms[clean]['accuracy']:.1f} %", style.CLEAN, "clean images")]
    note = "" if forms[form]["exact"] else "made against other thresholds"
    shown.append(style.tile(f"ATA, {style.spoken(form)}", f"{100 * forms[form]['accuracy']:.1f} %", style.ATTACKED,
                            note))
    if worst:
        shown.append(style.tile("ATA, paper's worst case", f"{100 * forms[worst]['accuracy']:.1f} %", style.ATTACKED,
                                style.spoken(worst)))
    shown += [style.tile("per-image worst case", f"{100 * found['union_accuracy']:.1f} %", style.UNION,
                         f"{len(forms)} views"), cost(clean, style.CLEAN)]
    if form != clean:
        shown.append(cost(form, style.ATTACKED))
    note = (f"{found['images']:,} images; 95 % intervals at most ± {half:.1f} points; costs beside the plain network's")
    return f'{style.row(shown)}<div style="color:{style.MUTED};font-size:11px;padding:0 2px">{note}</div>'


class ThresholdExplorer:
    """The exit-threshold explorer: `subjects` by name; in Jupyter it is drawn live, elsewhere as still figures.

    point: the chosen OperatingPoint, for the next cell.  export(): writes it down with its numbers.
    """

    def __init__(self, subjects: Mapping[str, Subject] | Subject, folder: Path | str, form: str = "max_average"):
        self.subjects = {"network": subjects} if isinstance(subjects, Subject) else dict(subjects)
        if not self.subjects:
            raise WorkbookError("there is nothing to explore; record a network first, with `evaluate … --save-record`")
        self.folder, self.form, self.setting, self.index = Path(folder), form, "", 0
        self.chosen = next(iter(self.subjects))
        self.figure: go.Figure | None = None
        self._reading: Reading | None = None
        self.take(self.chosen)

    # What is looked at, and where: no widget is needed for any of this.

    def take(self, name: str):
        """Look at another subject: at the paper's thresholds on the paper's dataset, elsewhere at equal shares."""
        self.chosen, self.subject = name, self.subjects[name]
        self.record = self.subject.record
        self.setting = {"paper": "paper", "calibrated": "equal share"}[suited(self.record)]
        self.thresholds = thresholds_for(self.record, self.setting)
        if self.form not in self.reading.names:
            self.form = self.reading.names[-1]
        self.sample = np.unique(np.linspace(0, self.record.images - 1, SAMPLE).round().astype(int))
        first, stop = self.record.meta["images"]
        self.pixels = None if self.subject.images is None else as_pixels(self.subject.images.images[first:stop].cpu())
        self.ghost, self.curve = self.reading, exit_panels.trade_off(self.record)

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(thresholds=self.thresholds)

    @property
    def reading(self) -> Reading:
        """The record at the present thresholds; kept while they stay."""
        kept = self._reading
        if kept is None or kept.record is not self.record or kept.thresholds != self.thresholds:
            self._reading = read(self.record, thresholds=self.thresholds)
        return self._reading

    def read(self) -> dict:
        """All numbers at the present thresholds."""
        return tables.summary(self.reading)

    def drawn(self, figure_type: type = go.Figure) -> go.Figure:
        """The explorer's figure at the present thresholds."""
        figure = figure_type(exit_panels.build(
            self.ghost, self.curve, style.plain(f"Where to leave: {self.chosen}"), style.plain(self.subject.title()),
            COLUMNS))
        self.redraw(figure, self.read())
        return figure

    def redraw(self, figure: go.Figure, found: dict):
        strip = Strip.of(self.reading, self.form, self.sample, COLUMNS)
        exit_panels.update(figure, self.reading, found, self.form, strip, self.pixels, self.subject.names)

    def examine(self) -> microscope.Look:
        """The chosen image under attack by the network itself. Raises WorkbookError where only a record is at hand."""
        if self.subject.network is None or self.subject.images is None:
            raise WorkbookError("the microscope needs the images and the network; here is only their record")
        form = self.form.split(" ")[0]
        return microscope.look(self.subject.network(), self.subject.images, self.index, form, self.subject.threat,
                               thresholds=self.thresholds if form == "gate_aware" else None)

    def export(self) -> Path:
        """Write the chosen point and its numbers as JSON; returns the file."""
        found = self.read()
        path = self.folder / f"point-{self.chosen.replace(' ', '_').replace('/', '_')}.json"
        values = {"subject": self.chosen, "point": self.point.to_json(), "setting": self.setting,
                  "model": self.record.meta["model"], "numbers": found,
                  "checkpoint": self.record.meta.get("checkpoint")}
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.replace(path, (json.dumps(values, indent=2, default=str) + "\n").encode())
        return path

    # The two faces.

    def _ipython_display_(self):
        from lib.workbook.threshold_panel import ThresholdPanel

        self.panel = live.faces(lambda: ThresholdPanel(self), self.still)

    def still(self):
        """The explorer for a reader without sliders: its figure, the quick settings side by side, one image."""
        live.show(self.drawn())
        display(tables.settings(stops(self.record)))
        if self.subject.network is not None and self.subject.images is not None:
            drawing = microscope.svg(self.examine(), self.thresholds, self.subject.names)
            live.show(microscope.still(drawing))
