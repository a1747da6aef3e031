"""One notebook in one process of its own: python -m lib.workbook.headless NOTEBOOK OUTPUT PARAMETERS-AS-JSON.

Exit codes: 0 done, 1 a cell failed (its message is the last line of stderr), 138 the kernel was killed. With `child` as
fourth argument stdin comes from a parent: the line "stop" interrupts the cell, and the end of stdin ends everything.
"""

import json
import signal
import sys
import uuid
from pathlib import Path

FAILED, KILLED = 1, 138


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


def heed(line: bytes) -> None:
    import psutil

    for kernel in psutil.Process().children() if line == b"stop" else ():
        kernel.send_signal(signal.SIGINT)


if __name__ == "__main__":
    if sys.argv[4:] == ["child"]:
        from lib.workbook import children

        children.obey(heed)
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
