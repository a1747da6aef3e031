"""What the panel is made of: a knob on screen, a figure that arrives, and what each knob means; and a plain chooser."""

import math
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from lib.workbook import live

TIPS = {"λ_n": "FLOAT's knob, from most accurate (0) to most robust (1); above λ_th the adversarial batch norm is used",
        "λ_th": "where λ_n switches the batch norm from clean (BN_C) to adversarial (BN_A)",
        "noise s": "scale of the weight noise; 1 is as trained", "BN mix": "0 = BN_C, 1 = BN_A, between: outputs mixed",
        "network": "one trained network, or a method with one for each λ; λ and width stay where the next one has them",
        "budget": "what the attack may change of each pixel (ε), and in how many steps",
        "attack": "what the images were attacked with; 'on main exit' is an attack, 'main branch' a defence",
        "thresholds": "equal share: as many held-out images leave at each exit; budget: the thresholds with most clean "
                      "held-out images right at no more than this mean true cost",
        "compute exactly": "attack at this very point, on images and network of this machine"}


class Dial:
    """A slider and a field for exact values. value: the exact one; the slider stands on the step nearest to it."""

    def __init__(self, name: str, act, low=0.0, high=1.0, step=0.01, log=False):
        self.act, self.log, self.tooltip = act, log, TIPS.get(name, name)
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
            self.field.value = float(f"{value:.6g}")

    def watch(self, on):
        self.slider.observe(on(self._slid), "value")
        self.field.observe(on(self._typed), "value")

    def _slid(self, change):
        """A browser that puts the slider on its nearest step is no hand."""
        if self.stands is None or abs(change.new - self.stands) > 0.4 * self.slider.step:
            self.show(round(10**change.new if self.log else change.new, 9))
            self.act(self.value)

    def _typed(self, change):
        if self.value is None or change.new != float(f"{self.value:.6g}"):
            self.show(change.new)
            self.act(self.value)


SHIM = """
const widgets = new WeakMap();
async function load(model) {
  const address = URL.createObjectURL(new Blob([model.get("_bundle")], { type: "text/javascript" }));
  try { return (await import(address)).default; } finally { URL.revokeObjectURL(address); }
}
async function start(model) {
  window.workbookPlotly ??= load(model);
  const made = await window.workbookPlotly;
  const widget = typeof made === "function" ? await made() : made;
  await widget.initialize?.({ model });
  return widget;
}
export default {
  async render({ model, el }) {
    if (!widgets.has(model)) widgets.set(model, start(model));
    const widget = await widgets.get(model);
    const clean = await widget.render({ model, el });
    model.send({ kind: "drawn" });
    return clean;
  }
};
"""


class LiveFigure(go.FigureWidget):
    """A FigureWidget that also arrives in a slow browser.

    anywidget 0.11 gives a widget's JavaScript two seconds; after that it drops every message to the widget, for good,
    and the plot stays empty. Plotly's five megabytes may need longer. So what is loaded first is a few lines that are
    ready at once and fetch Plotly from a trait of the model when the figure is drawn; later figures find it loaded.
    `drawn(figure)` is called once the browser has drawn it: what changed before that has not reached it. A button in
    its corner downloads it as `name`.png.
    """

    _esm = SHIM
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
