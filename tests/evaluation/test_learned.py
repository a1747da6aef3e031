"""What is read from a network: set by hand, then read back."""

import numpy as np
import pytest
import torch

from lib import WorkbookError
from lib.evaluation import learned, stats
from lib.models.layers import BatchNorm2d, Weighted
from lib.workbook import figures
from tests.helpers.networks import small


@pytest.fixture
def network():
    return small("resnet20", conditioning="float", input_shape=(3, 8, 8))


def test_statistics_are_those_of_the_last_batch_norm(network):
    norm = [m for m in network.stages[-1].modules() if isinstance(m, BatchNorm2d)][-1]
    norm.norms[0].running_mean.fill_(0.5)
    norm.norms[1].running_var.fill_(2.0)
    found = learned.batch_norms(network).groupby("bank")
    assert (found.get_group("BN_C")["mean"] == 0.5).all() and (found.get_group("BN_A")["variance"] == 2).all()
    assert len(found.get_group("BN_A")) == 16
    table = learned.batch_norms(network).assign(network="a")
    drawn = figures.boxes(table, ("mean", "variance"), "network", "bank", "t", "c")
    assert [(box.name, len(box.y)) for box in drawn.data] == [("BN_C", 16), ("BN_A", 16)] * 2
    with pytest.raises(WorkbookError, match="one set of batch norms"):
        learned.batch_norms(small("resnet20", input_shape=(3, 8, 8)))


def test_alphas_have_no_sign_and_go_from_image_to_classifier(network):
    noisy = [m for m in network.modules() if isinstance(m, Weighted)]
    with torch.no_grad():
        for depth, layer in enumerate(noisy):
            layer.alpha.fill_((-1) ** depth * (1 - depth / 10))
    table = learned.alphas(network)
    assert len(table) == len(noisy) and table["layer"].iloc[-1].endswith("linear")
    assert table["alpha"].tolist() == pytest.approx([abs(1 - d / 10) for d in range(len(noisy))])
    assert stats.trend(table["alpha"]).high < 0
    with pytest.raises(WorkbookError, match="no alpha"):
        learned.alphas(small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8)))


def test_rank_correlation_with_the_place():
    assert stats.trend(np.array([9.0, 5, 4, 1])).value == pytest.approx(-1)
    rising = stats.trend(np.arange(12.0))
    assert rising.value == pytest.approx(1) and rising.low > 0.9
    mixed = stats.trend(np.array([3.0, 1, 4, 1, 5, 9, 2, 6]))
    assert mixed.low < mixed.value < mixed.high
