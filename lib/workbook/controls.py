"""What the panel is made of: a knob on screen, work beside it, a figure that arrives; and a plain chooser."""

import math
import threading
import time
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from lib import WorkbookError
from lib.workbook import live, style

TIPS = {"λ_n": "FLOAT's knob, from most accurate (0) to most robust (1); above λ_th the adversarial batch norm is used",
        "λ_th": "where λ_n switches the batch norm from clean (BN_C) to adversarial (BN_A)",
        "noise s": "scale of the weight noise; 1 is as trained", "BN mix": "0 = BN_C, 1 = BN_A, between: outputs mixed",
        "network": "one trained network, or a method with one for each λ; λ and width stay where the next one has them",
        "attacker": "what steps, how far it may change each pixel (ε), in how many steps and of what length",
        "attack": "what the images were attacked with; 'on main exit' is an attack, 'main branch' a defence",
        "thresholds": "equal share: as many held-out images leave at each exit; budget: the thresholds with most clean "
                      "held-out images right at no more than this mean true cost",
        "leaves by": "what says how sure an exit is; 'mean so far' also answers by the mean of all exits passed",
        "choose": "the most accurate recorded setting within bounds: every second image chooses, the others judge",
        "compute exactly": "attack at this very point, on images and network of this machine"}


THEME = {style.INK: style.LIVE_INK, style.MUTED: style.LIVE_MUTED, style.RULE: "var(--jp-border-color2)",
         style.GHOST: "var(--jp-border-color0)"}
STYLE = "<style>" + "".join(  # a figure's ink follows the theme: Plotly itself knows no variables
    f'.workbook-explorer .js-plotly-plot [style*="{what}: rgb({", ".join(map(str, style.rgb(colour)))})"] '
    f"{{ {what}: {ink} !important }}\n" for colour, ink in THEME.items() for what in ("fill", "stroke")) + (
    ".workbook-explorer .js-plotly-plot .main-svg, .workbook-explorer .js-plotly-plot .bg "
    "{ background: transparent !important; fill: transparent !important }\n"
    ".workbook-explorer .widget-html-content { line-height: 1.35 }</style>")


class Dial:
    """A slider and a field for exact values. value: the exact one; the slider stands on the step nearest to it."""

    def __init__(self, name: str, act, low=0.0, high=1.0, step=0.01, log=False):
        self.act, self.log, self.tooltip = act, log, TIPS.get(name, name)
        self.most = 10**high if log else math.inf  # beyond every score: what stands for infinity, which no field holds
        more = dict(tooltip=self.tooltip, continuous_update=True, readout=False, description=name,
                    style={"description_width": "84px"}, layout={"width": "246px", "margin": "0"})
        self.slider = widgets.FloatSlider(min=low, max=high, step=step, **more)
        self.field = widgets.FloatText(tooltip=f"{self.tooltip}: exact value", layout={"width": "86px", "margin": "0"})
        self.box = widgets.HBox([self.slider, self.field])
        self.value, self.stands = None, None

    def _step(self, value: float) -> float:
        value = math.log10(max(value, 1e-30)) if self.log else value
        low, step = self.slider.min, self.slider.step
        return round(low + step * round((min(max(value, low), self.slider.max) - low) / step), 9)

    def show(self, value: float | None, resting: bool = False):
        """Put both where the value is; None leaves them, for a value that there is not."""
        self.slider.disabled = self.field.disabled = resting
        if value is not None and value != self.value:
            self.value, self.stands = value, self._step(value)
            if not math.isclose(self.slider.value, self.stands, abs_tol=1e-9):  # else it would pull back a moving hand
                self.slider.value = self.stands
            self.field.value = self._written(value)

    def _written(self, value: float) -> float:
        return float(f"{min(value, self.most):.6g}")

    def watch(self, on):
        self.slider.observe(on(self._slid), "value")
        self.field.observe(on(self._typed), "value")

    def _slid(self, change):
        """A browser that puts the slider on its nearest step is no hand."""
        if self.stands is None or abs(change.new - self.stands) > 0.4 * self.slider.step:
            self.show(round(10**change.new if self.log else change.new, 9))
            self.act(self.value)

    def _typed(self, change):
        if self.value is None or change.new != self._written(self.value):
            self.show(change.new)
            self.act(self.value)


class Work:
    """What takes long, one at a time, in a thread of its own, so that every control answers meanwhile.

    box: a bar and a button that cancels.  starters: the buttons that begin it, off meanwhile.  done: called with what
    the work returns.
    """

    def __init__(self, errors: widgets.HTML, done: Callable, starters: Sequence[widgets.Button]):
        self.bar, self.cancel = widgets.IntProgress(layout={"width": "180px"}), widgets.Button(description="cancel")
        self.cancel.layout.width = "auto"
        self.box = widgets.HBox([self.bar, self.cancel], layout={"visibility": "hidden"})
        self.done, self.starters, self.cancelled = done, starters, threading.Event()
        self.cancel.on_click(lambda _: self.cancelled.set())
        self.guarded = live.on_screen(errors, alone=False)(self._work)

    def run(self, job: Callable):
        if self.box.layout.visibility == "hidden":
            self._busy(True)
            self.cancelled.clear()
            self.begin = time.monotonic()
            threading.Thread(name="compute", target=self.guarded, args=(job,), daemon=True).start()

    def _busy(self, busy: bool):
        self.box.layout.visibility = "visible" if busy else "hidden"
        self.bar.value, self.bar.description = 0, ""
        for button in self.starters:
            button.disabled = busy

    def _work(self, job: Callable):
        try:
            found = job()
        finally:
            self._busy(False)
        self.done(found)

    def progressed(self, done: int, total: int):
        """For the job to call. Raises WorkbookError where it was cancelled."""
        if self.cancelled.is_set():
            raise WorkbookError("the computation was cancelled")
        self.bar.max, self.bar.value = total, done
        left = (time.monotonic() - self.begin) * (total - done) / done if done else None
        self.bar.description = f"{left:.0f} s left" if done else ""


class LiveFigure(go.FigureWidget):
    """A FigureWidget that also arrives in a slow browser.

    anywidget 0.11 gives a widget's JavaScript two seconds; after that it drops every message to the widget, for good,
    and the plot stays empty. Plotly's five megabytes may need longer. So what is loaded first is a few lines that are
    ready at once and fetch Plotly from a trait of the model when the figure is drawn; later figures find it loaded.
    `drawn(figure)` is called once the browser has drawn it: what changed before that has not reached it. A button in
    its corner downloads it as `name`.png.
    """

    _esm = (style.HTML / "live_figure.js").read_text("utf-8")
    _bundle = traitlets.Unicode().tag(sync=True)

    @traitlets.default("_bundle")
    def _plotly(self) -> str:
        return str(go.FigureWidget._esm)

    def __init__(self, figure: go.Figure, drawn=lambda figure: None, name: str = "figure"):
        super().__init__(figure)
        self._config = {"displayModeBar": True, "displaylogo": False, "modeBarButtons": [["toImage"]],
                        "toImageButtonOptions": {"format": "png", "filename": name, "scale": 3}}
        self.on_msg(lambda _, content, buffers: content == {"kind": "drawn"} and drawn(self))


class Chooser:
    """A drawn figure with a dropdown for each of its arguments, {argument: its options}, the first ones shown."""

    def __init__(self, draw: Callable[..., go.Figure], options: dict[str, Sequence]):
        self.errors, self.canvas = widgets.HTML(), widgets.VBox()
        self.chosen = {name: widgets.Dropdown(options=list(held), description=name) for name, held in options.items()}

        @live.on_screen(self.errors)
        def show(_=None):
            self.canvas.children = [LiveFigure(draw(**{name: one.value for name, one in self.chosen.items()}))]

        for control in self.chosen.values():
            control.observe(show, "value")
        show()
        self.box = widgets.VBox([widgets.HBox([*self.chosen.values()]), self.errors, self.canvas])


def choose(draw: Callable[..., go.Figure], **options: Sequence):
    """Display a `Chooser` where it can be live, and everywhere the figure of the first options."""
    live.faces(lambda: Chooser(draw, options), lambda: live.show(draw(**{n: held[0] for n, held in options.items()})))
