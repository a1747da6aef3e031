"""Whether somebody looks on: at sliders, or at a progress bar."""

import os
import sys

NO = ("", "0", "false")


def is_live() -> bool:
    """Whether this is a notebook's kernel, whoever started it; WORKBOOK_LIVE (runner, tests) and CI say otherwise."""
    if told := os.environ.get("WORKBOOK_LIVE"):
        return told not in NO
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and os.environ.get("CI", "").lower() in NO


def watched() -> bool:
    """`is_live`, or nothing was said and this runs at a terminal."""
    return is_live() or (not os.environ.get("WORKBOOK_LIVE") and os.isatty(2))
