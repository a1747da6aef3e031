"""The widgets around an Explorer: a slider and a number field per knob, callbacks one at a time, errors where they are.

    panel.show(explorer)        # in Jupyter the live face, headless a still one
"""

import contextlib
import html
import math
from dataclasses import replace

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, display

from lib import WorkbookError
from lib.evaluation import choosing, gates
from lib.workbook import live, microscope, style, view
from lib.workbook.controls import STYLE, TIPS, Dial, LiveFigure, Work
from lib.workbook.explorer import Explorer, file_name


def show(explorer: Explorer):
    """The live face in Jupyter, and everywhere the still one (see `live.faces`)."""
    live.faces(lambda: Panel(explorer), lambda: still(explorer))


def still(explorer: Explorer):
    """The figure, each knob turned by itself, and of a network with exits one image under attack."""
    subject = explorer.subject
    live.show(view.drawn(explorer))
    display(stops(explorer))
    if (explorer.folder.parent / "run.json").is_file():  # a run: its pages lie beside this notebook's
        try:
            shown = explorer.page(explorer.folder / style.EXPLORER).name
            display(HTML(f'<p><a href="{shown}">Every knob on one page, without a kernel</a></p>'))
        except WorkbookError as error:
            print(f"no page without a kernel: {error}")
    if subject.early and subject.network is not None and subject.pixels and explorer.here.decision == "entropy":
        live.show(microscope.still(looked_at(explorer, subject.record.meta["images"][0])))


def stops(explorer: Explorer) -> pd.DataFrame:
    """One knob at a time from the present setting, the others as they are."""
    subject, here, lines = explorer.subject, explorer.here, {("here", ""): explorer.here}
    if explorer.turns and here.lambda_n is not None:
        lines |= {("λ_n", f"{n:g}"): explorer.at_lambda(n) for n in (0.0, 0.2, 0.5, 0.7, 1.0)}
    lines |= {("width", f"{w:g}"): replace(here, at=here.at.replace(width=w)) for w in subject.values("width")}
    lines |= {("thresholds", source): replace(here, thresholds=gates)
              for source, gates in subject.stops(here.at).items()}
    table = {}
    for line, setting in lines.items():
        with contextlib.suppress(WorkbookError):  # not recorded there
            table[line] = explorer.numbers(setting)
    return pd.DataFrame(table).T.rename_axis(["knob", "set to"])


def looked_at(explorer: Explorer, index: int) -> str:
    return microscope.svg(explorer.examine(index), explorer.here.thresholds, explorer.subject.classes)


class Panel:
    """Controls by name in `box`; all act on `explorer`, through its `set`."""

    def __init__(self, explorer: Explorer):
        self.explorer, self.errors, self.quiet = explorer, widgets.HTML(), False
        self.on = live.on_screen(self.errors)
        self.stale = self.settled = False  # has the point moved since the figure was made; has a browser drawn it
        narrow = dict(style={"description_width": "initial"})
        longest = max(map(len, explorer.subjects))
        self.network = widgets.Dropdown(options=list(explorer.subjects), description="network", tooltip=TIPS["network"],
                                        layout={"width": f"{110 + 8 * longest}px", "max_width": "100%"}, **narrow)
        self.attack = widgets.Dropdown(description="attack", tooltip=TIPS["attack"], **narrow)
        self.threat = widgets.Dropdown(description="attacker", tooltip=TIPS["attacker"], **narrow)
        self.width = widgets.ToggleButtons(description="width", layout={"width": "max-content"},
                                           style={"button_width": "52px", "description_width": "initial"})
        self.lambda_n, self.noise = Dial("λ_n", self._to("lambda_n")), Dial("noise s", self._to("noise"))
        self.lambda_th = Dial("λ_th", self._to("lambda_th"), high=0.95)
        self.mix = Dial("BN mix", self._to("batch_norm"))
        self.source = widgets.ToggleButtons(tooltips=[TIPS["thresholds"]] * 5, style={"button_width": "106px"})
        self.decision = widgets.Dropdown(description="leaves by", tooltip=TIPS["leaves by"], **narrow)
        self.most = widgets.FloatText(1.0, description="at most", tooltip=TIPS["choose"],
                                      style={"description_width": "52px"}, layout={"width": "150px"})
        self.unit = widgets.Dropdown(options=["M MACs", "ms on this device"], layout={"width": "130px"})
        self.least = widgets.BoundedFloatText(0.0, min=0, max=100, description="per-image worst case at least, %",
                                              tooltip=TIPS["choose"], layout={"width": "300px"}, **narrow)
        self.choose = widgets.Button(description="choose", icon="crosshairs", tooltip=TIPS["choose"])
        self.budget = Dial("spend, %", lambda share: self.explorer.set(thresholds=share / 100), 1, 120, 1)
        self.pin = widgets.Button(description="pin", icon="thumbtack", tooltip="keep this setting to compare with")
        self.compute = widgets.Button(description="compute exactly", icon="bolt", tooltip=TIPS["compute exactly"])
        self.save = widgets.Button(description="export", icon="download", tooltip="write this point and its numbers")
        for button in (self.pin, self.compute, self.save, self.choose):
            button.layout.width = "auto"
        self.work = Work(self.errors, self.on(self._worked), (self.compute, self.choose))
        self.number = widgets.BoundedIntText(description="image", layout={"width": "150px"}, **narrow)
        self.examine = widgets.Button(description="look at it", layout={"width": "auto"},
                                      tooltip="attack this image here, and ask every exit about it")
        self.tiles, self.saved, self.picture, self.notes, self.chosen = (widgets.HTML() for _ in range(5))
        self.chose = None  # the setting that was chosen for a budget
        self.gates: list[Dial] = []
        self.opens: list[widgets.Checkbox] = []
        self.canvas, self.dials = widgets.VBox(), widgets.GridBox(
            layout={"grid_template_columns": "repeat(auto-fill, 400px)"})
        self.figure, self.shape = go.Figure(), None
        self.exits = widgets.HBox([self.source], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([
            widgets.HTML(STYLE, layout={"display": "none"}),
            self._row(self.network, self.attack, self.threat, self.width), self.exits, self.dials,
            self._row(self.pin, self.compute, self.save, self.work.box, self.saved),
            self._row(self.most, self.unit, self.least, self.choose), self.chosen,
            self.errors, self.tiles, self.notes, self.canvas, self._row(self.number, self.examine), self.picture])
        self.box.add_class("workbook-explorer")
        self._connect()
        explorer.changed = self.refreshed
        self.refreshed()

    @staticmethod
    def _row(*controls) -> widgets.HBox:
        return widgets.HBox(controls, layout={"flex_flow": "row wrap"})

    def _to(self, knob: str):
        return lambda value: self.explorer.set(**{knob: value})

    def _connect(self):
        for knob in ("network", "attack", "threat", "width", "decision"):
            self._watch(getattr(self, knob), self._to(knob))
        self._watch(self.source, self._chosen)
        self._watch(self.number, self.look_at)
        for dial in (self.lambda_n, self.lambda_th, self.noise, self.mix, self.budget):
            dial.watch(lambda act: self.on(lambda change: self._hand(act, change)))
        for button, act in ((self.pin, self.explorer.pin), (self.save, self.export), (self.choose, self.within),
                            (self.compute, lambda: self.work.run(lambda: self.explorer.compute(self.work.progressed))),
                            (self.examine, lambda: self.look_at(self.number.value))):
            button.on_click(self.on(lambda _, act=act: act()))
        self.arrived, self.refreshed = self.on(self._arrived), self.on(self.refresh)
        self.clicked = self.on(lambda trace, at, _: at.point_inds and setattr(
            self.number, "value", int(trace.customdata[at.point_inds[0]])))

    def _watch(self, control, act):
        control.observe(self.on(lambda change: self._hand(act, change.new)), "value")

    def _hand(self, act, value):
        """A hand on a control; where the explorer refuses, the controls go back to where it stands."""
        if not self.quiet and value is not None:
            try:
                act(value)
            except Exception:
                self.show_controls()
                raise

    # What is shown.

    def refresh(self):
        """Controls, numbers and figure, as the explorer stands."""
        explorer = self.explorer
        here, subject = explorer.here, explorer.subject
        shape = subject.early, explorer.turns, here.network, here.threat, here.decision
        if shape != self.shape:
            self._rebuild()
        self.show_controls()
        try:
            self.tiles.value = view.tiles(explorer)
            self.chosen.value = self.chosen.value if here == self.chose else ""
            self.notes.value = _muted(" ".join(explorer.notes()))
            self._draw(shape)
        except WorkbookError:
            self.tiles.value = self.notes.value = ""  # no numbers rather than those of another point
            raise

    def _rebuild(self):
        """Controls that depend on which network is looked at."""
        subject, self.quiet = self.explorer.subject, True
        entropy = subject.record.entropy
        low = -4.0 if entropy is None else math.floor(math.log10(max(float(entropy.min()), 1e-8)))
        top = math.log10(math.log(max(2, len(subject.classes))))
        self.gates = [Dial(f"{name} below", lambda _: self._moved(), low, top, 0.02, log=True)
                      for name in style.exit_names(subject.record.num_exits)[:-1]]
        closed = "a closed exit takes nobody, and its head is not run"
        self.opens = [widgets.Checkbox(True, indent=False, description="open", layout={"width": "60px"}, tooltip=closed)
                      for _ in self.gates]
        for gate, opened in zip(self.gates, self.opens, strict=True):
            gate.watch(lambda act: self.on(lambda change: self._hand(act, change)))
            self._watch(opened, lambda _: self._moved())
        there = {self.lambda_n: self.explorer.turns, self.lambda_th: "batch_norm" in subject.knobs,
                 self.noise: "noise" in subject.knobs, self.mix: "batch_norm" in subject.knobs}
        self.dials.children = [*(dial.box for dial, has in there.items() if has), *(
            widgets.HBox([gate.box, opened]) for gate, opened in zip(self.gates, self.opens, strict=True))]
        self.exits.children = [self.source, self.budget.box, self.decision] if self.gates else []
        attacks = [(html.unescape(view.spoken(a, subject.record.num_exits)), a) for a in subject.attacks]
        widths = [(f"{w:g}", w) for w in reversed(subject.values("width"))]
        whole = self.explorer.whole
        for control, options in ((self.attack, attacks), (self.threat, list(whole.threats)), (self.width, widths),
                                 (self.decision, gates.supported(whole.record)), (self.source, subject.sources)):
            if control.options != tuple(options):  # setting them anew would undo a hand's next choice
                control.options = options
            control.layout.display = "flex" if len(options) > 1 else "none"
        self.network.layout.display = "" if len(self.explorer.subjects) > 1 else "none"
        first, stop = subject.record.meta["images"]
        self.number.min, self.number.max = 0, stop - 1
        self.number.min = first
        self.picture.value, self.quiet = "", False

    def show_controls(self):
        """Put the controls where the explorer stands, without taking that for a hand that moves them."""
        here, self.quiet = self.explorer.here, True
        self.network.value, self.attack.value, self.decision.value = here.network, here.attack, here.decision
        if here.threat:
            self.threat.value = here.threat
        if here.at.width is not None:
            self.width.value = here.at.width
        self.lambda_n.show(here.lambda_n)
        self.lambda_th.show(here.lambda_th)
        self.noise.show(here.at.noise)
        self.mix.show(here.at.batch_norm)
        for gate, opened, threshold in zip(self.gates, self.opens, here.thresholds, strict=True):
            opened.value = threshold > -math.inf
            gate.show(threshold if opened.value else None, resting=not opened.value)
        if self.gates:
            self.source.value = ("by hand" if isinstance(here.source, tuple) else
                                 here.source if isinstance(here.source, str) else "budget")
            self.budget.show(100 * here.source if isinstance(here.source, float | int) else self.budget.value or 60)
        self.quiet = False

    def _draw(self, shape: tuple):
        """Move the figure; of a network with other panels put a new one in its place."""
        if self.shape == shape:
            self.stale = True
            with self.figure.batch_update():
                view.update(self.figure, self.explorer)
            return
        fresh = view.drawn(self.explorer)
        if self.shape and [t.name for t in self.figure.data] == [t.name for t in fresh.data]:
            with self.figure.batch_update():
                self.figure.layout = fresh.layout
                for old, new in zip(self.figure.data, fresh.data, strict=True):
                    old.update(new.to_plotly_json(), overwrite=True)
        else:
            self.hang(fresh)
        self.shape = shape

    def hang(self, fresh: go.Figure):
        self.figure = LiveFigure(fresh, self.arrived, file_name(self.explorer.here.network))
        self.stale = False
        next(t for t in self.figure.data if t.name == "pictures").on_click(self.clicked)
        self.canvas.children = [self.figure]

    def _arrived(self, figure: LiveFigure):
        """The browser has drawn the figure; where the point moved while it was loading, hang it anew."""
        if figure is self.figure and self.stale and not self.settled:
            self.hang(view.drawn(self.explorer))
        self.settled = True

    # What the controls do.

    def _chosen(self, source: str):
        gates = tuple(self.explorer.here.thresholds)
        self.explorer.set(thresholds={"budget": (self.budget.value or 60) / 100, "by hand": gates}.get(source, source))

    def _moved(self):
        """A gate or a box: thresholds by hand, as the fields say; a gate that was never set opens where it stands."""
        gates = tuple(gate.value or 10**gate.slider.value if opened.value else -math.inf
                      for gate, opened in zip(self.gates, self.opens, strict=True))
        if gates != self.explorer.here.thresholds:
            self.explorer.set(thresholds=gates)

    def look_at(self, index: int):
        self.picture.value = looked_at(self.explorer, index)

    def export(self):
        path = self.explorer.export()
        self.saved.value = _muted(f"written to {path.parent.name}/{path.name}")

    def within(self):
        """The best setting within the bounds of the fields, found beside the controls."""
        bound = {"max_macs": 1e6 * self.most.value} if self.unit.index == 0 else {"max_ms": self.most.value}
        self.work.run(lambda: self.explorer.best(**bound, min_robust=self.least.value / 100))

    def _worked(self, choice: choosing.Choice | None):
        """After a computation, or with what was chosen."""
        if choice is None:
            return self.refresh()
        self.explorer.take(choice)
        self.chose = self.explorer.here
        self.chosen.value = f'<div style="white-space:pre-line">{_muted(choosing.sentence(choice))}</div>'


def _muted(text: str) -> str:
    return f'<span style="color:{style.LIVE_MUTED}">{style.plain(text)}</span>'
