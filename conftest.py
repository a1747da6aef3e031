"""What all tests share, kernels that nbval starts included: they inherit this environment."""

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parent)
sys.path[:] = [ROOT, *(p for p in sys.path if p != ROOT)]  # this checkout's `lib`, whatever else is installed
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (ROOT, os.environ.get("PYTHONPATH")) if p)
os.environ["WORKBOOK_LIVE"] = "0"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it, and children inherit that
os.environ.setdefault("WORKBOOK_PRESET", "quick")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the same numbers on every machine
    os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with the reason, where there is none."""
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if needy:
        import torch

        if not torch.cuda.is_available():
            for item in needy:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
