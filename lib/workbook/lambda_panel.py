"""The sliders around a LambdaExplorer: one FigureWidget, updated in place, and errors shown where they happen."""

import threading
import time

import ipywidgets as widgets

from lib import WorkbookError
from lib.workbook import lambda_explorer, lambda_figures, lambda_view, live
from lib.workbook.live_figure import LiveFigure

_NAME = {"description_width": "initial"}


class LambdaPanel:
    """Controls by name (`method`, `lambda_n`, `lambda_th`, `noise`, `mix`, `width`, `attack`, `pin`, `compute`,
    `cancel`) in `box`; all act on `explorer`."""

    def __init__(self, explorer: "lambda_explorer.LambdaExplorer"):
        self.explorer, self.errors, self.quiet = explorer, widgets.HTML(), False
        self.stale = self.settled = False
        slider = dict(min=0.0, max=1.0, step=0.05, style=_NAME, layout={"width": "330px"})
        self.method = widgets.Dropdown(options=[(lambda_figures.label(f), f) for f in explorer.families],
                                       value=explorer.family, description="method", style=_NAME)
        self.attack = widgets.Dropdown(options=[(said, who) for who, said in lambda_explorer.ATTACKERS.items()],
                                       value=explorer.attacker, description="attack", style=_NAME)
        self.lambda_n = widgets.FloatSlider(description="λ_n", **slider)
        self.lambda_th = widgets.FloatSlider(description="λ_th", **slider | {"max": 0.9})
        self.noise = widgets.FloatSlider(description="noise scale s", **slider)
        self.mix = widgets.FloatSlider(description="batch norm, BN_C to BN_A", **slider)
        self.width = widgets.ToggleButtons(description="width", style={"button_width": "70px"})
        self.pin = widgets.Button(description="pin this point", icon="thumbtack")
        self.compute = widgets.Button(description="compute exactly", icon="bolt")
        self.cancel, self.cancelled = widgets.Button(description="cancel", icon="times"), threading.Event()
        self.progress = widgets.IntProgress(layout={"width": "220px"})
        self.working = widgets.HBox([self.progress, self.cancel], layout={"visibility": "hidden"})
        self.tiles, self.canvas = widgets.HTML(), widgets.VBox()
        self.box = widgets.VBox([
            widgets.HBox([self.method, self.attack, self.width]), widgets.HBox([self.lambda_n, self.lambda_th]),
            widgets.HBox([self.noise, self.mix]), widgets.HBox([self.pin, self.compute, self.working]), self.errors,
            self.tiles, self.canvas])
        on = live.on_screen(self.errors)
        self.arrived, self.redrawn = on(self._arrived), on(self.redraw)
        self.begun = live.on_screen(self.errors, alone=False)(self._compute)
        self._connect()
        self.show_point()
        self.hang()

    def _connect(self):
        def watch(control, act):
            control.observe(live.on_screen(self.errors)(lambda change: self.quiet or act(change.new)), "value")

        explorer = self.explorer
        watch(self.method, lambda family: self.act(lambda: explorer.choose(family)))
        watch(self.attack, lambda who: self.act(lambda: setattr(explorer, "attacker", who)))
        watch(self.lambda_n, lambda n: self.act(lambda: explorer.turn(n, self.lambda_th.value)))
        watch(self.lambda_th, lambda th: self.act(lambda: explorer.turn(self.lambda_n.value, th)))
        for control in (self.noise, self.mix):
            watch(control, lambda _: self.act(lambda: explorer.set(self.noise.value, self.mix.value)))
        watch(self.width, lambda width: self.act(lambda: explorer.narrow(width)))
        on = live.on_screen(self.errors)
        self.pin.on_click(on(lambda _: self.act(explorer.pin)))
        self.compute.on_click(on(lambda _: self.run()))
        self.cancel.on_click(lambda _: self.cancelled.set())

    def act(self, change):
        """Do what a control asks for, then show it everywhere."""
        change()
        self.show_point()
        self.redraw()

    def run(self):
        """The exact point, in a thread of its own, so that every control answers meanwhile."""
        if not self.compute.disabled:
            self.compute.disabled, self.working.layout.visibility = True, "visible"
            self.cancelled.clear()
            self.begin = time.monotonic()
            threading.Thread(name="compute", target=self.begun, daemon=True).start()

    def _compute(self):
        try:
            self.explorer.compute(self._progressed)
        finally:
            self.compute.disabled, self.working.layout.visibility = False, "hidden"
        self.redrawn()

    def _progressed(self, done: int, total: int):
        if self.cancelled.is_set():
            raise WorkbookError("the computation was cancelled")
        self.progress.max, self.progress.value = total, done
        left = (time.monotonic() - self.begin) * (total - done) / done if done else None
        self.progress.description = f"{left:.0f} s left" if done else ""

    def show_point(self):
        """Put the controls where the point is, and rest those that this method does not have."""
        explorer, knobs = self.explorer, self.explorer.member.network.knobs
        self.quiet = True
        self.lambda_n.value, self.lambda_th.value = explorer.lambda_n, explorer.lambda_th
        self.noise.value, self.mix.value = explorer.point.noise or 0.0, explorer.point.batch_norm or 0.0
        self.noise.disabled, self.mix.disabled = "noise" not in knobs, "batch_norm" not in knobs
        self.lambda_th.disabled = "batch_norm" not in knobs
        self.width.options = explorer.member.network.widths
        self.width.value = explorer.width
        self.width.layout.display = "" if "width" in knobs else "none"
        self.compute.disabled = explorer.images is None or self.working.layout.visibility == "visible"
        self.quiet = False

    def hang(self):
        """Put a new live figure in its place."""
        self.figure, self.stale = LiveFigure(self.explorer.drawn(), self.arrived), False
        self.canvas.children = [self.figure]
        self.tiles.value = lambda_explorer.tiles(self.explorer)

    def _arrived(self, figure: LiveFigure):
        """The browser has drawn the figure; where the point moved while it was loading, hang it anew."""
        if figure is self.figure and self.stale and not self.settled:
            self.hang()
        self.settled = True

    def redraw(self):
        self.tiles.value, self.stale = lambda_explorer.tiles(self.explorer), True
        with self.figure.batch_update():
            lambda_view.update(self.figure, self.explorer)
