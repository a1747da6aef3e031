"""The trade-off workbook: accuracy, adversarial robustness and computation, traded at inference time.

Importing `lib` stays cheap: only the standard library is touched here.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"  # committed, small
ATLASES = DATA / "atlases"  # committed, small
DATASETS = Path(os.environ.get("WORKBOOK_DATA") or DATA / "datasets")  # ignored: downloads and unpacked archives
RUNS = DATA / "runs"  # ignored: everything a run writes


class WorkbookError(Exception):
    """Something the user can mend: one sentence that says what was wrong and what to do."""
