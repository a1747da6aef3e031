"""One notebook in one process of its own: python -m lib.workbook.headless NOTEBOOK OUTPUT PARAMETERS-AS-JSON.

Exit codes: 0 done, 1 a cell failed (its message is the last line of stderr), 138 the kernel was killed. With `child` as
fourth argument it lives no longer than whoever started it, as every `Child`, which holds the reading end of a pipe: it
is told things line by line ("stop" interrupts the cell), and when the pipe ends, because its parent wants that or is
dead, it ends what it started and itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from lib import ROOT

FAILED, KILLED = 1, 138
SAMPLE = 2.0  # seconds between looks at what a child does
LEAST = 0.02, 1000  # seconds of CPU, bytes written between two looks: a kernel that only waits stays below both


def run(notebook: Path, output: Path, parameters: dict) -> int:
    """Execute `notebook` with `parameters` into `output`, which holds what was reached whatever happens."""
    import papermill
    from traitlets.config import Config

    quiet = Config()
    quiet.KernelManager.transport = "ipc"  # parallel kernels would now and then claim the same port
    quiet.KernelManager.ip = f"@workbook-{uuid.uuid4().hex}"  # an abstract socket: no file, no limit from a long TMPDIR
    source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output))  # it formats them
    try:
        papermill.execute_notebook(source, target, parameters, kernel_name="python3", cwd=str(notebook.parent),
                                   progress_bar=False, store_widget_state=False, log_output=False, config=quiet)
    except papermill.PapermillExecutionError as error:
        print(f"cell {error.cell_index}: {error.ename}: {error.evalue}".replace("\n", " "), file=sys.stderr)
        return FAILED
    except RuntimeError as error:  # a dead kernel, or one that never began to answer
        print(f"the kernel was killed, most often for lack of memory ({error})".replace("\n", " "), file=sys.stderr)
        return KILLED
    except OSError as error:
        print(f"{output} could not be written ({error.strerror})", file=sys.stderr)
        return FAILED
    return 0


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


def heed(line: bytes) -> None:
    for kernel in psutil.Process().children() if line == b"stop" else ():
        kernel.send_signal(signal.SIGINT)


if __name__ == "__main__":
    if sys.argv[4:] == ["child"]:
        obey(heed)
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
