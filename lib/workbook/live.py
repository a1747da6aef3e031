"""Live or headless: the same notebook cell drags sliders for a reader and leaves still pictures for a run.

A picture is drawn by a browser that a helper process holds. Browsers are missing, die, or never answer: each picture
has a deadline, and a helper that misses one is given up, once for the process; the figures stand without pictures.
"""

import base64
import contextlib
import functools
import importlib
import io
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import display
from PIL import Image

from lib import WorkbookError
from lib.progress import is_live as is_live
from lib.workbook import headless, style

if "google.colab" in sys.modules:  # Colab draws widgets that are not its own only when asked to
    importlib.import_module("google.colab.output").enable_custom_widget_manager()

FIRST, NEXT = 10.0, 5.0  # seconds that the first picture (the browser starts) and each later one may take
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
    drawn = pio.to_json(figure, validate=False)  # numpy arrays and Plotly's own objects as JSON values
    title = (figure.layout.title.text or "figure").replace("<br>", " — ").replace("<b>", "").replace("</b>", "")
    bundle = {"application/vnd.plotly.v1+json": json.loads(drawn) | {"config": {"displaylogo": False}},
              "text/plain": f"[{title}]"}
    size = dict(scale=1.1, width=figure.layout.width or 960, height=figure.layout.height or 420)
    if (seconds := float(os.environ.get("WORKBOOK_PNG") or 0)) and (picture := _painter(seconds).draw(drawn, **size)):
        bundle["image/png"] = base64.b64encode(small(picture)).decode()
    display(bundle, raw=True)


class Painter:
    """One helper for all pictures of this process. least: seconds that each may take at any rate."""

    def __init__(self, least: float = 0.0):
        self.helper, self.patience, self.thread = None, max(FIRST, least), ThreadPoolExecutor(1)
        self.later = max(NEXT, least)

    def draw(self, figure: str, **options) -> bytes | None:
        """The PNG of a figure (Plotly's JSON); options: width, height in pixels, scale. None once it was given up."""
        if not self.patience:
            return None
        try:
            made = self.thread.submit(self._ask, figure, options).result(self.patience)
        except BaseException as error:  # a helper can fail in any way, and Ctrl-C must not leave it waiting
            self._give_up("never answers" if isinstance(error, TimeoutError) else "does not start, or died")
            if not isinstance(error, Exception):
                raise
            return None
        self.patience = self.later
        return made

    def _give_up(self, why: str) -> None:
        print(f"figures stay without pictures: the browser that draws them {why}", file=sys.__stderr__, flush=True)
        self.patience = 0.0
        if self.helper is not None:
            self.helper.end()

    def _ask(self, figure: str, options: dict) -> bytes:
        if self.helper is None:
            self.helper = headless.Child(headless.__name__, "pictures", stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL)
        self.helper.tell(f'[{figure}, {json.dumps({"format": "png"} | options)}]'.encode())
        if not (answer := self.helper.process.stdout.readline()).endswith(b"\n"):
            raise OSError("the helper ended")
        return base64.b64decode(answer)


def small(png: bytes) -> bytes:
    """The same picture with a palette, a fifth of the bytes, where few marks keep their colours beside photographs."""
    file, few = io.BytesIO(), Image.Quantize.MAXCOVERAGE
    Image.open(io.BytesIO(png)).convert("RGB").quantize(method=few).save(file, "png", optimize=True)
    return file.getvalue()


_painter = functools.cache(Painter)  # one for all pictures of this process
