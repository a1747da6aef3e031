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


def start(module: str, *arguments: str, **options) -> subprocess.Popen:
    """`python -m module arguments` in a session of its own (Ctrl-C goes to its parent alone), its stdin a pipe."""
    return subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, cwd=ROOT,
                            start_new_session=True, **options)


def obey(heed: Callable[[bytes], None], grace: float = 0.0) -> None:
    """In a child: call `heed` with each line from the parent, with b"" at the end; end all after `grace` seconds."""

    def listen():
        for line in sys.stdin.buffer:
            heed(line)
        heed(b"")
        time.sleep(grace)
        kill(psutil.Process().children(recursive=True))
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    """A child and everything that it started and that still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        return [found, *found.children(recursive=True)]
    return []


def kill(processes) -> None:
    """End processes (psutil's, which never mistake another one for them) at once, and wait until they are gone."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(processes, timeout=5)
