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
