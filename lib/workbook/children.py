"""Processes that live no longer than whoever started them.

A child holds the reading end of a pipe: it is told things line by line, and when the pipe ends, because its parent
wants that or is dead, it ends what it started and itself.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

from lib import ROOT

SAMPLE = 2.0  # seconds between looks at what a child does
LEAST = 0.02, 1000  # seconds of CPU, bytes written between two looks: a kernel that only waits stays below both


class Child:
    """`python -m module arguments` in a session of its own: Ctrl-C goes to its parent alone."""

    def __init__(self, module: str, *arguments: str, **options):
        self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, cwd=ROOT,
                                        start_new_session=True, **options)
        self.family = {psutil.Process(self.process.pid)}  # psutil never mistakes another process for one of these
        self.looked = self.worked = time.monotonic()
        self.used = [0.0, 0.0]

    def tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def idle(self) -> float:
        """Seconds since it, or what it started, was last seen to use CPU or to write something."""
        if (now := time.monotonic()) - self.looked >= SAMPLE:
            before, self.used, self.looked = self.used, self._look(), now
            if any(not 0 <= a - b < least for a, b, least in zip(self.used, before, LEAST, strict=True)):
                self.worked = now  # also where one of them has ended, and its share is gone
        return now - self.worked

    def _look(self) -> list[float]:
        """[seconds of CPU, bytes written] so far of all that run; remembers who they are."""
        used = [0.0, 0.0]
        for one in list(self.family):
            with contextlib.suppress(psutil.Error):
                self.family |= set(one.children(recursive=True))
        for one in self.family:
            with contextlib.suppress(psutil.Error):
                used[0] += sum(one.cpu_times()[:2])
                used[1] += one.io_counters().write_chars
        return used

    def end(self) -> None:
        """End it and all it started, also what outlived it, and wait until they are gone."""
        self._look()
        for one in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(self.family, timeout=5)
        self.process.wait()


def obey(heed: Callable[[bytes], None], grace: float = 0.0) -> None:
    """In a child: call `heed` with each line from the parent, with b"" at the end; `grace` seconds later end all."""

    pipe = open(os.dup(0), "rb")  # noqa: SIM115 - not sys.stdin, whose lock Python itself wants at its end

    def listen():
        for line in pipe:
            heed(line.strip())
        heed(b"")
        time.sleep(grace)
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
