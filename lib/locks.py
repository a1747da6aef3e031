"""One process at a time: a lock on a file, which the system frees when its holder ends, however it ends."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # torch brings it along

from lib import WorkbookError

NOTICE_SECONDS = 60  # of waiting, between notices


@contextmanager
def held(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`. Whoever comes second waits, and says so, or is refused where `refusal` says why.

    Raises WorkbookError for that, and when the file may not be written.
    """
    lock, taken = FileLock(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not taken:
            try:
                lock.acquire(timeout=0 if refusal else NOTICE_SECONDS, poll_interval=0.2)
                taken = True
            except Timeout:
                if refusal:
                    raise WorkbookError(refusal) from None
                print(f"waiting for another process, which holds {path.name}", file=sys.stderr, flush=True)
    except OSError as error:
        raise WorkbookError(f"{path.parent} may not be written ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def beside(made: Path) -> AbstractContextManager[None]:
    """Hold what is made at `made`: whoever comes second waits, and then finds it there."""
    return held(made.with_name(f".{made.name}.lock"))
