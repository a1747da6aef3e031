"""The jobs of a run, each in a process of its own: side by side, watched, tried again, stopped."""

import json
import os
import sys
import time

from tqdm import tqdm

from lib import ROOT, WorkbookError, checkpoints
from lib.workbook import report
from lib.workbook.headless import FAILED, KILLED, Child

LOOK, FAREWELL = 0.1, 10.0  # seconds between looks at running notebooks; seconds to end in after the first Ctrl-C


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Attempt:
    """A job in a process of its own, which finds this checkout's lib first and holds `threads` cores (None: all)."""

    def __init__(self, job, threads: int | None, tries: int = 1):
        self.job, self.threads, self.tries, self.begun = job, threads, tries, time.monotonic()
        job.folder.mkdir(parents=True, exist_ok=True)
        for old in (job.folder / "status.json", *job.files):
            old.unlink(missing_ok=True)
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"WORKBOOK_LIVE": "0", "PYTHONPATH": os.pathsep.join(path)}
        if threads:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        with open(job.folder / "log.txt", "wb") as log:
            self.child = Child("lib.workbook.headless", str(job.notebook.path), str(job.output),
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

    def finish(self, code: int, message: str) -> dict:
        """Write the job's page and status."""
        job = self.job
        try:
            report.page(job.output)
        except WorkbookError as error:  # not whole, as when the disk was full
            code, message = code or FAILED, message if code else str(error)
        status = {"outcome": "failed" if code else "done", "message": message if code else "", "digest": job.digest,
                  "fingerprint": job.fingerprint, "parameters": job.parameters,
                  "seconds": round(time.monotonic() - self.begun, 1)}
        checkpoints.replace(job.folder / "status.json", json.dumps(status, indent=1).encode())
        return status


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
            bar.write(f"[{len(jobs) - len(waiting) - len(running)}/{len(jobs)}] {job.notebook.name:32} "
                      f"{status['outcome']:7} {status['seconds']:5.0f} s{message}")
            sys.stdout.flush()

        try:
            while waiting or running:
                while waiting and len(running) < at_once:
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
                    status = attempt.finish(*result)
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
