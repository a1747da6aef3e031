"""The sliders around a ThresholdExplorer: one FigureWidget, updated in place, and errors shown where they happen."""

import math

import ipywidgets as widgets
import plotly.graph_objects as go

from lib.workbook import explorers, live, microscope, style
from lib.workbook.live_figure import LiveFigure

_NAME = {"description_width": "initial"}


class ThresholdPanel:
    """Controls by name (`attack`, `setting`, `budget`, `gates`, `opens`, `number`) in `box`; all act on `explorer`."""

    def __init__(self, explorer: "explorers.ThresholdExplorer"):
        self.explorer, self.errors, self.quiet = explorer, widgets.HTML(), False
        self.stale = self.settled = False  # has the point moved since the figure was made; has a browser drawn it
        self.tiles, self.picture = widgets.HTML(), widgets.HTML()
        self.subject = widgets.Dropdown(options=list(explorer.subjects), description="network", style=_NAME)
        self.attack = widgets.Dropdown(description="attack", style=_NAME)
        self.setting = widgets.ToggleButtons(options=explorers.SETTINGS, style={"button_width": "112px"})
        self.budget = widgets.IntSlider(60, min=5, max=120, description="spend at most, %", style=_NAME,
                                        layout={"width": "350px"})
        self.number = widgets.BoundedIntText(0, description="image", style=_NAME, layout={"width": "150px"})
        self.examine = widgets.Button(description="look at it", layout={"width": "100px"})
        self.save = widgets.Button(description="export this point", icon="download")
        self.saved = widgets.HTML()
        self.gate_box = widgets.HBox(layout={"flex_flow": "row wrap"})
        self.gates, self.opens = [], []
        self.figure: go.Figure = go.Figure()
        self.canvas = widgets.VBox()
        self.box = widgets.VBox([
            widgets.HBox([self.subject, self.attack, self.save, self.saved]), widgets.HBox([self.setting, self.budget]),
            self.gate_box, self.errors, self.tiles, self.canvas, widgets.HBox([self.number, self.examine]),
            self.picture])
        self._connect()
        self.rebuild()

    def _connect(self):
        on = live.on_screen(self.errors)
        self.subject.observe(on(lambda change: self.choose_subject(change.new)), "value")
        self.attack.observe(on(lambda change: self.choose_attack(change.new)), "value")
        self.setting.observe(on(lambda change: self.choose_setting(change.new)), "value")
        self.budget.observe(on(lambda change: self.spend()), "value")
        self.number.observe(on(lambda change: self.look_at(change.new)), "value")
        self.examine.on_click(on(lambda _: self.look_at(self.number.value)))
        self.save.on_click(on(lambda _: self.export()))
        self.moved, self.arrived = on(self._moved), on(self._arrived)
        self.clicked = on(lambda trace, points, _: self._clicked(trace, points))

    def rebuild(self):
        """Everything that depends on which network is looked at: sliders, forms, and the one figure."""
        explorer, record = self.explorer, self.explorer.record
        names = style.exit_names(record.num_exits)[:-1]
        top = math.log10(math.log(len(explorer.subject.names)))
        shape = dict(min=explorers.SMALLEST, max=top, step=explorers.STEP, readout_format=".4f", style=_NAME,
                     layout={"width": "380px"})
        self.gates = [widgets.FloatLogSlider(10**explorers.SMALLEST, description=f"{name} leaves below", **shape)
                      for name in names]
        self.opens = [widgets.Checkbox(True, indent=False, description="open", layout={"width": "70px"}) for _ in names]
        for control in (*self.gates, *self.opens):
            control.observe(self.moved, "value")
        self.gate_box.children = [widgets.HBox(pair) for pair in zip(self.gates, self.opens, strict=True)]
        self.quiet = True
        self.attack.options = [(style.spoken(name), name) for name in explorer.reading.names]
        self.attack.value, self.setting.value = explorer.form, explorer.setting
        self.number.max = record.images - 1
        self.quiet = False
        fresh = explorer.drawn()
        if len(self.figure.data) == len(fresh.data):
            self._replace(fresh)
        else:
            self.hang(fresh)
        self.show_point()

    def hang(self, fresh: go.Figure):
        """Put a new live figure in its place."""
        self.figure, self.stale = LiveFigure(fresh, self.arrived), False
        next(t for t in self.figure.data if t.name == "pictures").on_click(self.clicked)
        self.canvas.children = [self.figure]

    def _arrived(self, figure: LiveFigure):
        """The browser has drawn the figure; where the point moved while it was loading, hang it anew."""
        if figure is self.figure and self.stale and not self.settled:
            self.hang(self.explorer.drawn())
        self.settled = True

    def _replace(self, fresh: go.Figure):
        """Another network with the same traces: the figure stays, its contents change."""
        with self.figure.batch_update():
            self.figure.layout = fresh.layout
            for old, new in zip(self.figure.data, fresh.data, strict=True):
                old.update(new.to_plotly_json(), overwrite=True)

    # What the controls do.

    def choose_subject(self, name: str):
        self.explorer.take(name)
        self.rebuild()
        self.picture.value = ""

    def choose_attack(self, form: str):
        if not self.quiet and form:
            self.explorer.form = form
            self.redraw()

    def choose_setting(self, setting: str):
        if not self.quiet and setting != "by hand":
            self.set_point(explorers.thresholds_for(self.explorer.record, setting, self.budget.value / 100), setting)

    def spend(self):
        """Moving the budget is choosing it: a share of the plain network's MACs."""
        if self.setting.value == "budget":
            self.choose_setting("budget")
        else:
            self.setting.value = "budget"

    def set_point(self, thresholds, setting: str):
        self.explorer.thresholds, self.explorer.setting = tuple(float(t) for t in thresholds), setting
        self.show_point()
        self.redraw()

    def show_point(self):
        """Put the sliders where the point is, without taking that for a hand that moves them."""
        self.quiet = True
        for gate, opened, threshold in zip(self.gates, self.opens, self.explorer.thresholds, strict=True):
            opened.value = threshold > -math.inf
            if opened.value:
                gate.value = min(max(threshold, 10**gate.min), 10**gate.max)
        self.setting.value = self.explorer.setting
        self.quiet = False
        self.tiles.value = explorers.tiles(self.explorer.read(), self.explorer.form, self.explorer.reading.names[0])

    def _moved(self, change):
        """A hand moved a slider or a box. A browser that rounds a slider to its nearest step on arrival is no hand."""
        if self.quiet:
            return
        thresholds = tuple(self.gate_value(gate, now) if opened.value else -math.inf for gate, opened, now in
                           zip(self.gates, self.opens, self.explorer.thresholds, strict=True))
        if thresholds == self.explorer.thresholds:
            return
        self.explorer.thresholds, self.explorer.setting = thresholds, "by hand"
        self.quiet = True
        self.setting.value = "by hand"
        self.quiet = False
        self.redraw()

    @staticmethod
    def gate_value(gate: widgets.FloatLogSlider, now: float) -> float:
        """The slider's threshold: `now` where the slider stands on the step nearest to it."""
        if now <= 0:
            return gate.value
        nearest = gate.min + gate.step * round((math.log10(now) - gate.min) / gate.step)
        return now if abs(math.log10(gate.value) - nearest) < 1e-6 else gate.value

    def redraw(self):
        found = self.explorer.read()
        self.tiles.value = explorers.tiles(found, self.explorer.form, self.explorer.reading.names[0])
        self.stale = True
        with self.figure.batch_update():
            self.explorer.redraw(self.figure, found)

    def _clicked(self, trace, points):
        if points.point_inds:
            self.number.value = int(trace.customdata[points.point_inds[0]])

    def look_at(self, index: int):
        self.explorer.index = index
        seen = self.explorer.examine()
        self.picture.value = microscope.svg(seen, self.explorer.thresholds, self.explorer.subject.names)

    def export(self):
        path = self.explorer.export()
        where = style.plain(f"{path.parent.name}/{path.name}")
        where = style.plain(f"{path.parent.name}/{path.name}")
        self.saved.value = f'<span style="color:{style.MUTED}">written to {where}</span>'
