"""What is read from FLOAT's weights: set by hand, then read back."""

import numpy as np
import pytest
import torch

from lib import WorkbookError
from lib.models.layers import BatchNorm2d, Weighted
from lib.workbook import float_anatomy, lambda_study
from lib.workbook.parameters import Settings
from tests.networks import small


@pytest.fixture
def network():
    return small("resnet20", conditioning="float", input_shape=(3, 8, 8))


def test_statistics_are_those_of_the_last_batch_norm(network):
    last = network.stages[-1]
    norm = [m for m in last.modules() if isinstance(m, BatchNorm2d)][-1]
    norm.norms[0].running_mean.fill_(0.5)
    norm.norms[1].running_var.fill_(2.0)
    found = float_anatomy.statistics(network)
    assert (found["BN_C"]["mean"] == 0.5).all() and (found["BN_A"]["variance"] == 2).all()
    assert len(found["BN_A"]["mean"]) == 16
    table = float_anatomy.statistics_table({"FLOAT": network})
    assert table.loc[("FLOAT", "BN_C"), "mean: average"] == 0.5
    with pytest.raises(WorkbookError, match="one set of batch norms"):
        float_anatomy.statistics(small("resnet20", input_shape=(3, 8, 8)))


def test_alphas_have_no_sign_and_go_from_image_to_classifier(network):
    noisy = [m for m in network.modules() if isinstance(m, Weighted)]
    with torch.no_grad():
        for depth, layer in enumerate(noisy):
            layer.alpha.fill_((-1) ** depth * (1 - depth / 10))
    table = float_anatomy.alphas(network)
    assert len(table) == len(noisy) and table["layer"].iloc[-1].endswith("linear")
    assert table["alpha"].tolist() == pytest.approx([abs(1 - d / 10) for d in range(len(noisy))])
    assert float_anatomy.depth_verdict(network)["verdict"] == "held"
    with pytest.raises(WorkbookError, match="no alpha"):
        float_anatomy.alphas(small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8)))


def test_rank_correlation_with_depth():
    assert float_anatomy.falls(np.array([9.0, 5, 4, 1]))["value"] == pytest.approx(-1)
    rising = float_anatomy.falls(np.arange(12.0))
    assert rising["value"] == pytest.approx(1) and rising["low"] > 0.9
    mixed = float_anatomy.falls(np.array([3.0, 1, 4, 1, 5, 9, 2, 6]))
    assert mixed["low"] < mixed["value"] < mixed["high"]


@pytest.mark.parametrize("preset", ["quick", "laptop", "paper"])
def test_every_record_holds_both_batch_norms_and_the_point_half_way(preset):
    assert {0.0, 0.5, 1.0} <= set(lambda_study.SIZES[preset]["mixes"])


def test_the_shipped_records_answer_every_question_of_the_notebook(tmp_path):
    """Nothing is recorded where the networks came with their records."""
    settings = Settings(preset="laptop", weights="shipped", seed=0, run_dir=tmp_path / "21", device="cpu", images=500,
                        notebook="21_batch_norm_and_alpha", dataset="digits", network="resnet20")
    found = lambda_study.members(settings, None, lambda_study.obtain(settings, ("float", "dual_bn", "pni")))
    assert len(float_anatomy.mixing_figure(found, "shipped").data) == 6
    assert float_anatomy.rescaling_figure(found["pni"], "shipped").data and len(float_anatomy.verdicts(found)) == 5


def test_figures_hold_every_channel_and_layer(network):
    boxes = float_anatomy.statistics_figure({"FLOAT": network}, "made").data
    assert [len(b.y) for b in boxes] == [16] * 4
    assert len(float_anatomy.alpha_figure({"FLOAT": network}, "made").data[0].y) == len(float_anatomy.alphas(network))
