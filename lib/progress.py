"""Whether somebody looks on: at sliders, or at a progress bar."""

import os
import sys
import threading

from tqdm import tqdm

NO = ("", "0", "false")
PATIENCE, LINE = 2.0, 60.0  # seconds until a bar shows; seconds between lines where nobody watches


def is_live() -> bool:
    """Whether this is a notebook's kernel, whoever started it; WORKBOOK_LIVE (runner, tests) and CI say otherwise."""
    if told := os.environ.get("WORKBOOK_LIVE"):
        return told not in NO
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and os.environ.get("CI", "").lower() in NO


def watched() -> bool:
    """`is_live`, or nothing was said and this runs at a terminal."""
    return is_live() or (not os.environ.get("WORKBOOK_LIVE") and os.isatty(2))


def bar(total: int, what: str, unit: str, done: int = 0) -> tqdm:
    """A bar with the time left, for every loop that may take more than two seconds: it shows when two have passed.

    Where nobody watches it is a line a minute. Only the main thread shows it: for the others a widget does.
    """
    return _Bar(total=total, desc=what, unit=f" {unit}", initial=done,
                disable=threading.current_thread() is not threading.main_thread())


class _Bar(tqdm):
    monitor_interval = 0  # no thread that redraws: what is stuck does not move

    def __init__(self, **options):
        seen = watched()
        seconds = PATIENCE if seen else LINE
        super().__init__(delay=seconds, mininterval=0.2 if seen else LINE, leave=seen, dynamic_ncols=True,
                         file=sys.stdout if is_live() else sys.stderr, **options)
        self.timer = threading.Timer(seconds, self.appear)  # the first unit may take minutes
        self.timer.daemon = True
        if not self.disable:
            self.timer.start()

    def appear(self):
        self.last_print_t = self._time()
        self.refresh()

    def close(self):
        self.timer.cancel()
        super().close()

    @staticmethod
    def status_printer(file):
        return tqdm.status_printer(file) if watched() else lambda text: text and print(text, file=file, flush=True)
