"""Live or headless: the same notebook cell drags sliders for a reader and leaves still pictures for a run."""

import base64
import contextlib
import functools
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable

import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import display

from lib import WorkbookError
from lib.progress import is_live as is_live
from lib.workbook import pictures, style

if "google.colab" in sys.modules:  # Colab draws widgets that are not its own only when asked to
    importlib.import_module("google.colab.output").enable_custom_widget_manager()

_ONE_AT_A_TIME = threading.RLock()
_ONE_FACE = """<style>
.jp-OutputArea-child:has(> .jp-OutputArea-output > .jupyter-widgets) ~ .jp-OutputArea-child,  /* behind live controls */
.jp-OutputArea-output.lm-Panel:not(:has(> *)) { display: none }  /* the bare text "model not found" */
</style>"""


def on_screen(errors, alone: bool = True):
    """Decorator for widget callbacks: what one raises is said in `errors`, an HTML widget, not in a hidden log.

    alone: no other such callback runs meanwhile. JupyterLab calls them beside the main thread. It also stops listening
    to a slider whose messages an Output widget catches, so none is held around them.
    """

    def decorate(callback):
        @functools.wraps(callback)
        def guarded(*args, **kwargs):
            with _ONE_AT_A_TIME if alone else contextlib.nullcontext():
                errors.value = ""
                try:
                    return callback(*args, **kwargs)
                except WorkbookError as error:
                    errors.value = f'<b style="color:{style.ATTACKED}">{style.plain(error)}</b>'
                except Exception:
                    errors.value = f"<pre>{style.plain(traceback.format_exc())}</pre>"

        return guarded

    return decorate


def faces(panel: Callable, still: Callable[[], None]):
    """Display an explorer: where it can be live the `box` of the panel that is made, and everywhere its still face.

    Both go into the notebook: a saved one keeps figures and tables when the kernel behind the widgets is gone. A style
    lets JupyterLab show one of the two; it is obeyed where widgets are, in trusted notebooks. Returns the panel.
    """
    if not is_live():
        return still()
    shown = panel()
    display({"text/html": _ONE_FACE, "text/plain": ""}, raw=True)
    display(shown.box._repr_mimebundle_() | {"text/plain": "[controls, live while the kernel runs]"}, raw=True)
    with _ONE_AT_A_TIME:  # a hand on the controls waits
        still()
    return shown


def show(figure: go.Figure) -> None:
    """Display a figure: interactive where Plotly can be drawn, and as a picture too when WORKBOOK_PNG asks for it: by
    the seconds that each may take at any rate, 0 for none.

    Pictures are what the committed notebooks need (a web view of the file draws no Plotly). Where no browser is there
    to make one, the interactive form stands alone.
    """
    plain = json.loads(pio.to_json(figure, validate=False))  # numpy arrays and Plotly's own objects as JSON values
    plain["config"] = {"displaylogo": False}
    bundle = {"application/vnd.plotly.v1+json": plain, "text/plain": as_text(figure)}
    if _patience() and (picture := png(figure)):
        bundle["image/png"] = base64.b64encode(picture).decode()
    display(bundle, raw=True)


def as_text(figure: go.Figure) -> str:
    """What stands for the figure where only text is shown."""
    title = figure.layout.title.text or "figure"
    return f"[{title.replace('<br>', ' — ').replace('<b>', '').replace('</b>', '')}]"


def _patience() -> float:
    return float(os.environ.get("WORKBOOK_PNG") or 0)


@functools.cache
def _picture_server() -> pictures.Painter:
    """What draws every picture of this process."""
    return pictures.Painter(_patience())


def png(figure: go.Figure) -> bytes | None:
    """The figure as a picture, or None, within seconds, where no browser is there to draw it."""
    image = _picture_server().draw(pio.to_json(figure, validate=False), scale=1.1,
                                  width=figure.layout.width or 960, height=figure.layout.height or 420)
    return image and pictures.small(image)
