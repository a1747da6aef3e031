"""The one value for all knobs: the published lambda table, ranges, and its way through JSON."""

import math

import pytest
import torch

from lib import WorkbookError
from lib.operating_point import OperatingPoint

PUBLISHED = [  # lambda_th, lambda_n -> scale, bank (C = 0, A = 1): FLOAT section 3.2 and Eq. 5 at the paper's lambdas
    (0.0, 0.0, 0.0, 0), (0.0, 0.2, 0.2, 1), (0.0, 0.7, 0.7, 1), (0.0, 1.0, 1.0, 1),
    (0.5, 0.0, 0.0, 0), (0.5, 0.2, 0.4, 0), (0.5, 0.7, 0.4, 1), (0.5, 1.0, 1.0, 1),
]


@pytest.mark.parametrize("threshold, value, scale, bank", PUBLISHED)
def test_published_lambdas(threshold, value, scale, bank):
    point = OperatingPoint.from_lambda(value, threshold)
    assert point.noise == pytest.approx(scale) and point.batch_norm == bank


def test_at_the_switch_full_noise_belongs_to_the_clean_bank_and_just_above_starts_anew():
    at, above = OperatingPoint.from_lambda(0.5, 0.5), OperatingPoint.from_lambda(0.5 + 1e-9, 0.5)
    assert (at.noise, at.batch_norm) == (1.0, 0.0)
    assert above.noise == pytest.approx(0, abs=1e-8) and above.batch_norm == 1.0


@pytest.mark.parametrize("threshold", [0.25, 0.8])
def test_any_switch_spans_both_banks(threshold):
    below, top = OperatingPoint.from_lambda(threshold / 2, threshold), OperatingPoint.from_lambda(1.0, threshold)
    assert (below.noise, below.batch_norm) == (pytest.approx(0.5), 0.0)
    assert (top.noise, top.batch_norm) == (pytest.approx(1.0), 1.0)


@pytest.mark.parametrize("values", [
    dict(noise=-0.1), dict(noise=math.nan), dict(noise=math.inf), dict(noise=torch.tensor([0.5, -1.0])),
    dict(batch_norm=1.1), dict(batch_norm=-0.1), dict(batch_norm=math.nan), dict(thresholds=(0.3, math.nan)),
])
def test_out_of_range(values):
    with pytest.raises(WorkbookError):
        OperatingPoint(**values)


@pytest.mark.parametrize("values, kind", [
    (dict(noise="1"), "a number"), (dict(noise=True), "a number"), (dict(noise=(0.1, 0.2)), "a number"),
    (dict(batch_norm="clean"), "a number"), (dict(code="0.2"), "a number"), (dict(width="half"), "a number"),
    (dict(draw=1.5), "a whole number"), (dict(draw=-1), "numbered from 0"), (dict(exits=(1.5,)), "whole numbers"),
    (dict(exits=2), "whole numbers"), (dict(thresholds=0.5), "a list of numbers"), (dict(thresholds="a"), "a list")])
def test_what_is_no_number_is_refused(values, kind):
    with pytest.raises(WorkbookError, match=kind):
        OperatingPoint(**values)


@pytest.mark.parametrize("arguments", [(0.2, 1.0), (0.2, -0.1), (-0.1, 0.5), (math.nan, 0.5), (0.2, math.nan)])
def test_lambda_out_of_range(arguments):
    with pytest.raises(WorkbookError):
        OperatingPoint.from_lambda(*arguments)


@pytest.mark.parametrize("noise", [1.5, torch.tensor([0.0, 2.0])])
def test_more_noise_than_trained_warns(noise):
    with pytest.warns(UserWarning, match="above 1"):
        assert OperatingPoint(noise=noise).noise is noise


def test_used_names_only_the_knobs_that_are_set():
    assert OperatingPoint().used() == frozenset()
    assert OperatingPoint(noise=0.0, draw=0).used() == {"noise", "draw"}
    assert OperatingPoint(noise=0.0).replace(noise=None, width=0.5).used() == {"width"}


def test_json_there_and_back():
    point = OperatingPoint(noise=0.5, batch_norm=1.0, draw=3, width=0.5, exits=[2, 3], thresholds=[-math.inf, 0.5])
    assert OperatingPoint.from_json(point.to_json()) == point
    assert point.to_json()["thresholds"] == ["-inf", 0.5]


def test_json_of_one_value_per_image():
    back = OperatingPoint.from_json(OperatingPoint(code=torch.tensor([0.0, 0.5])).to_json())
    assert torch.equal(back.code, torch.tensor([0.0, 0.5]))


def test_unknown_knob_in_json():
    with pytest.raises(WorkbookError, match="wdith"):
        OperatingPoint.from_json({"wdith": 0.5})
