"""Live or headless: the same notebook cell drags sliders for a reader and leaves still pictures for a run."""

import base64
import contextlib
import functools
import io
import os
import warnings

import plotly.graph_objects as go
from IPython.display import display

from lib.progress import is_live as is_live
from lib.workbook import pictures


def on_screen(output):
    """Decorator for widget callbacks: what one raises appears in `output`, an Output widget, not in a hidden log."""
    import ipywidgets

    assert isinstance(output, ipywidgets.Output)

    def decorate(callback):
        @functools.wraps(callback)
        def guarded(*args, **kwargs):
            output.clear_output()
            with output:
                return callback(*args, **kwargs)

        return guarded

    return decorate


def show(figure: go.Figure) -> None:
    """Display a figure: interactive where Plotly can be drawn, and as a picture too when WORKBOOK_PNG=1 asks for it.

    Pictures are what the committed notebooks need (a web view of the file draws no Plotly). Where no browser is
    installed to make one, the interactive form stands alone.
    """
    bundle = {"application/vnd.plotly.v1+json": figure.to_plotly_json(), "text/plain": caption(figure)}
    if os.environ.get("WORKBOOK_PNG") == "1" and (picture := png(figure)):
        bundle["image/png"] = base64.b64encode(picture).decode()
    display(_plain(bundle), raw=True)


def caption(figure: go.Figure) -> str:
    """What stands for the figure where only text is shown."""
    title = figure.layout.title.text or "figure"
    return f"[{title.replace('<br>', ' — ').replace('<b>', '').replace('</b>', '')}]"


def _plain(bundle: dict) -> dict:
    """The bundle with numpy arrays and Plotly's own objects as plain JSON values."""
    import json

    import plotly.io as pio

    mime = "application/vnd.plotly.v1+json"
    return {**bundle, mime: json.loads(pio.to_json(bundle[mime], validate=False)) | {"config": {"displaylogo": False}}}


@functools.cache
def _picture_server() -> bool:
    """Start kaleido's browser once a process; False where there is none."""
    try:
        import kaleido

        with _quiet():
            kaleido.start_sync_server(silence_warnings=True)
        return True
    except Exception:  # kaleido has an exception type for every way in which a browser can be missing
        return False


def png(figure: go.Figure, scale: float = 1.1) -> bytes | None:
    """The figure as a picture, or None where no browser is installed to draw it."""
    if not _picture_server():
        return None
    with _quiet():
        return pictures.small(figure.to_image(format="png", scale=scale, width=figure.layout.width or 960,
                                              height=figure.layout.height or 420))


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
