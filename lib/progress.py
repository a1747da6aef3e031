"""Whether somebody looks on: at sliders, or at a progress bar."""

import os


def is_live() -> bool:
    """WORKBOOK_LIVE where it is set, else whether a Jupyter server started this kernel (papermill and nbval do not)."""
    told = os.environ.get("WORKBOOK_LIVE", "")
    return told not in ("0", "false") if told else "JPY_SESSION_NAME" in os.environ


def watched() -> bool:
    """`is_live`, or nothing was said and this runs at a terminal."""
    return is_live() or (not os.environ.get("WORKBOOK_LIVE") and os.isatty(2))
