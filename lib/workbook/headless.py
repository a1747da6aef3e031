"""One notebook in one process of its own: python -m lib.workbook.headless NOTEBOOK OUTPUT PARAMETERS-AS-JSON.

Exit codes: 0 done, 1 a cell failed (its message is the last line of stderr), 138 the kernel was killed.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

FAILED, KILLED = 1, 138


def run(notebook: Path, output: Path, parameters: dict) -> int:
    """Execute `notebook` with `parameters` into `output`, which holds what was reached whatever happens."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    quiet = Config()
    quiet.KernelManager.transport = "ipc"  # parallel kernels would now and then claim the same port
    folder = tempfile.mkdtemp(prefix="workbook-")  # a socket's path must be short
    quiet.KernelManager.ip = os.path.join(folder, "kernel")
    try:
        papermill.execute_notebook(str(notebook), str(output), parameters, kernel_name="python3",
                                   cwd=str(notebook.parent), progress_bar=False, store_widget_state=False,
                                   log_output=False, config=quiet)
    except papermill.PapermillExecutionError as error:
        print(f"cell {error.cell_index}: {error.ename}: {error.evalue}".replace("\n", " "), file=sys.stderr)
        return FAILED
    except DeadKernelError:
        print("the kernel was killed, most often for lack of memory", file=sys.stderr)
        return KILLED
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
