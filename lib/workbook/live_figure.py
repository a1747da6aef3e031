"""A FigureWidget that also arrives in a slow browser.

anywidget 0.11 gives a widget's JavaScript two seconds; after that it drops every message to the widget, for good, and
the plot stays empty. Plotly's five megabytes may need longer. So what is loaded first is a few lines that are ready at
once and fetch Plotly from a trait of the model when the figure is drawn; later figures on the page find it loaded.
"""

import plotly.graph_objects as go
import traitlets

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
    """`drawn(figure)` is called once the browser has drawn it: what changed before that has not reached it."""

    _esm = SHIM
    _bundle = traitlets.Unicode().tag(sync=True)

    @traitlets.default("_bundle")
    def _plotly(self) -> str:
        return str(go.FigureWidget._esm)

    def __init__(self, figure: go.Figure, drawn=lambda figure: None):
        super().__init__(figure)
        self._config = {"displayModeBar": False}
        self.on_msg(lambda _, content, buffers: content == {"kind": "drawn"} and drawn(self))
