"""The ordering of the defences over several trainings."""

import numpy as np
import pytest

from lib.operating_point import OperatingPoint
from lib.workbook import seeds
from lib.workbook.networks import Trained
from lib.workbook.studies import Reading
from tests.evaluation.made_record import made


def defence(*worst: int) -> list[Reading]:
    """A training per number: so many of 100 images are right under its worst form, all clean ones are."""
    readings = []
    for right in worst:
        prediction = np.zeros((5, 2, 100), int)
        prediction[1:, :, right:] = 1
        record = made(("clean", "single1", "main", "average", "max_average"), prediction,
                     np.full(prediction.shape, 0.1), [0] * 100)
        readings.append(Reading(record, OperatingPoint(), (0.5,), "paper", trained=Trained("made", None, "")))
    return readings


def test_the_ordering_is_judged_over_trainings():
    found = {"standard": defence(0, 2, 1), "main": defence(20, 25, 22), "average": defence(50, 20, 35),
             "max_average": defence(60, 63, 61)}
    lines = seeds.verdicts(found)
    assert lines.loc["main branch withstands more than standard (paper's worst case)", "verdict"] == "held"
    unsure = lines.loc["average withstands more than main branch (paper's worst case)"]
    assert unsure["verdict"] == "too small to tell" and unsure["difference"] == "+12.7 points"
    assert lines.loc["robustness costs clean accuracy (standard above max-average)", "difference"] == "+0.0 points"
    assert seeds.measured(found["average"], "paper_worst") == pytest.approx((35, 20, 50))
    assert seeds.table(found).loc["average", "ATA, paper's worst case"] == "35.0 (20.0 to 50.0)"
