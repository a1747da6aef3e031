"""What runs without a reader: the jobs of a run, each in a process of its own, watched, tried again, stopped.

    python -m lib.workbook.headless NOTEBOOK OUTPUT PARAMETERS-AS-JSON      executes a notebook
    python -m lib.workbook.headless pictures                                draws figures (see `live.Painter`)

Exit codes: 0 done, 1 a cell failed (its message is the last line of stderr), 138 the kernel was killed. With `child` as
fourth argument it lives no longer than whoever started it, as every `Child`, which holds the reading end of a pipe: it
is told things line by line ("stop" interrupts the cell), and when the pipe ends, because its parent wants that or is
dead, it ends what it started and itself.
"""

import asyncio
import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from tqdm import tqdm

from lib import ROOT

FAILED, KILLED = 1, 138
LOOK, FAREWELL = 0.1, 10.0  # seconds between looks at running notebooks; seconds to end in after the first Ctrl-C
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


async def draw() -> None:
    """A JSON list [figure, options] a line on stdin, its picture a line in base64 on stdout."""
    import kaleido

    lines = queue.SimpleQueue()
    obey(lines.put, grace=3.0)  # time for the browser to leave nothing behind
    async with kaleido.Kaleido(n=1) as browser:
        while line := await asyncio.to_thread(lines.get):
            print(base64.b64encode(await browser.calc_fig(*json.loads(line))).decode(), flush=True)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Attempt:
    """A job in a process of its own, which finds this checkout's lib first and holds `threads` cores (None: all)."""

    def __init__(self, job, threads: int | None, tries: int = 1):
        self.job, self.tries, self.begun = job, tries, time.monotonic()
        job.folder.mkdir(parents=True, exist_ok=True)
        for old in (job.folder / "status.json", *job.files):
            old.unlink(missing_ok=True)
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"WORKBOOK_LIVE": "0", "PYTHONPATH": os.pathsep.join(path)}
        if threads:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        with open(job.folder / "log.txt", "wb") as log:
            self.child = Child("lib.workbook.headless", str(job.path), str(job.output),
                               json.dumps(job.parameters), "child", env=environment, stdout=log, stderr=log)

    def result(self, patience: float) -> tuple[int, str] | None:
        """(exit code, the last line it said) once it has ended; it is ended after `patience` seconds without work."""
        code = self.child.process.poll()
        if code is None and self.child.idle() < patience:
            return None
        self.child.end()  # also what outlived it
        if code is None:
            return FAILED, f"stuck: it used no CPU and wrote nothing for {patience / 60:.3g} minutes, and was ended"
        lines = (self.job.folder / "log.txt").read_text("utf-8", "replace").split("\n")
        messages = [line.strip() for line in lines if line.strip()] or ["no message"]
        return KILLED if code < 0 else code, messages[-1]


def execute(jobs: list, at_once: int, threads: int | None, patience: float) -> list:
    """Run the jobs that have no finished result, `at_once` side by side, one line for each as it ends.

    threads: CPU cores of each; None = all. patience: seconds without work after which a notebook is ended.
    A killed kernel is tried once more. Returns the jobs that failed.
    """
    waiting, running, failed = list(jobs), [], []
    with tqdm(total=len(jobs), unit="notebook", disable=None) as bar:  # none where nobody watches

        def tell(job, status: dict) -> None:
            bar.update()
            message = f"  {status['message']}" if status["message"] else ""
            bar.write(f"[{len(jobs) - len(waiting) - len(running)}/{len(jobs)}] {job.name:32} "
                      f"{status['outcome']:7} {status['seconds']:5.0f} s{message}")
            sys.stdout.flush()

        try:
            while waiting or running:
                while waiting and len(running) < at_once and not (running and waiting[0].last):
                    job = waiting.pop(0)
                    if job.kept:
                        tell(job, job.status | {"outcome": "kept"})
                    else:
                        running.append(Attempt(job, threads))
                time.sleep(LOOK)
                for attempt in list(running):
                    if (result := attempt.result(patience)) is None:
                        continue
                    running.remove(attempt)
                    if result[0] == KILLED and attempt.tries == 1:
                        running.append(Attempt(attempt.job, threads, tries=2))
                        continue
                    status = attempt.job.finish(*result, seconds=round(time.monotonic() - attempt.begun, 1))
                    failed += [attempt.job] if status["outcome"] == "failed" else []
                    tell(attempt.job, status)
        except KeyboardInterrupt:
            farewell(running)
            raise
        finally:
            for attempt in running:
                attempt.child.end()
    return failed


def farewell(running: list[Attempt]) -> None:
    """Let trainings save and cells end; whoever presses Ctrl-C again does not wait for that."""
    print("stopping: trainings save what they have (Ctrl-C again ends at once)", file=sys.stderr)
    until = time.monotonic() + FAREWELL
    for attempt in running:
        attempt.child.tell(b"stop")
    while time.monotonic() < until and any(attempt.child.process.poll() is None for attempt in running):
        time.sleep(LOOK)


if __name__ == "__main__":
    if sys.argv[1:] == ["pictures"]:
        sys.exit(asyncio.run(draw()))
    if sys.argv[4:] == ["child"]:
        obey(heed)
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
