"""Pictures of figures: drawn by a browser that a helper process holds, small enough to live in a notebook file.

Browsers are missing, die, or never answer. A picture is worth seconds, so each has a deadline; a helper that misses one
is given up, once for the process, and the figures stand without pictures.
"""

import asyncio
import base64
import io
import json
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from lib.workbook import headless

FIRST, NEXT = 10.0, 5.0  # seconds that the first picture (the browser starts) and each later one may take


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
            self.helper = headless.Child(__name__, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.helper.tell(f'[{figure}, {json.dumps({"format": "png"} | options)}]'.encode())
        if not (answer := self.helper.process.stdout.readline()).endswith(b"\n"):
            raise OSError("the helper ended")
        return base64.b64decode(answer)


async def serve() -> None:
    """The helper: a JSON list [figure, options] a line on stdin, its picture a line in base64 on stdout."""
    import kaleido

    lines = queue.SimpleQueue()
    headless.obey(lines.put, grace=3.0)  # time for the browser to leave nothing behind
    async with kaleido.Kaleido(n=1) as browser:
        while line := await asyncio.to_thread(lines.get):
            print(base64.b64encode(await browser.calc_fig(*json.loads(line))).decode(), flush=True)


def small(png: bytes) -> bytes:
    """The same picture with a palette, a third to a quarter of the bytes; figures need few colours."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize().save(file, "png", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    asyncio.run(serve())
