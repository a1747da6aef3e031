"""Whether a progress bar has somebody to look at it."""

import os


def watched() -> bool:
    """WORKBOOK_LIVE where it is set, else whether this runs inside Jupyter or at a terminal."""
    told = os.environ.get("WORKBOOK_LIVE", "")
    return told not in ("0", "false") if told else "JPY_SESSION_NAME" in os.environ or os.isatty(2)
