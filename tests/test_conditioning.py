"""The table of conditionings: what follows from a row, a row of one's own, and a name that has none."""

import pytest
import torch

from lib import WorkbookError
from lib.evaluation import points
from lib.models import conditioning, zoo
from lib.models.conditioning import Conditioning
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.training.objectives import OBJECTIVES
from tests import training_steps as steps
from tests.networks import images, small, source

TWO = dict(codes=(0.0, 0.2, 1.0), code_size=4)


@pytest.mark.parametrize("name, lambda_n, lambda_th, expected", [
    ("none", 0.3, 0.5, {}), ("float", 0.3, 0.5, dict(noise=0.6, batch_norm=0.0)),
    ("float", 0.75, 0.5, dict(noise=0.5, batch_norm=1.0)), ("dual_bn", 0.3, 0.5, dict(batch_norm=0.0)),
    ("dual_bn", 0.3, 0.0, dict(batch_norm=1.0)), ("pni", 0.3, 0.5, dict(noise=0.3)), ("oat", 0.3, 0.5, dict(code=0.2)),
])
def test_one_knob_puts_every_network_somewhere(name, lambda_n, lambda_th, expected):
    network = small("resnet20", conditioning=name, **(TWO if name == "oat" else {}))
    point = network.at(lambda_n, lambda_th)
    assert {k: pytest.approx(v) for k, v in expected.items()} == point.to_json()
    network(images(network, 2), point, source())


@pytest.mark.parametrize("make", [
    lambda: small("resnet20", conditioning="flaot"), lambda: Conditioning.named("flaot"),
    lambda: zoo.build("resnet20", conditioning="flaot")])
def test_a_conditioning_without_a_row_is_an_error(make):
    with pytest.raises(WorkbookError, match=r"unknown conditioning 'flaot' \(did you mean float\?\); choose from none"):
        make()


@pytest.mark.parametrize("row", [dict(banks=3), dict(banks=0), dict(film=True), dict(film=True, banks=1)])
def test_a_row_that_cannot_be(row):
    with pytest.raises(WorkbookError, match="banks"):
        Conditioning(**row)


def test_a_conditioning_of_your_own(monkeypatch):
    """FLOAT's noise behind one batch norm: trained, attacked, folded and read at points by its row alone."""
    monkeypatch.setitem(conditioning.CONDITIONINGS, "noise_only", Conditioning(noisy=True))
    network = small("resnet20", conditioning="noise_only")
    assert network.knobs == {"noise", "draw"} and len(network.stages[0][1].norms) == 1
    assert network.ends() == (OperatingPoint(noise=0.0), OperatingPoint(noise=1.0))
    assert points.nodes(network, (0.0, 1.0), (0.0, 0.5)) == network.ends()
    x, noisy = images(network), OperatingPoint(noise=1.0, draw=3)
    torch.testing.assert_close(AttackView(network)(x, noisy), network(x, noisy), rtol=1e-3, atol=1e-4)
    assert torch.equal(network(x), network(x, OperatingPoint(noise=0.0)))
    assert not torch.equal(network(x), network(x, noisy))
    recipe = steps.recipe_of("float")
    loss, _ = OBJECTIVES["float"](network.train(), steps.images_for(network), steps.LABELS, steps.context_of(recipe))
    loss.backward()
    alphas = [p.grad for name, p in network.named_parameters() if name.endswith("alpha")]
    assert alphas and all(grad is not None and grad.isfinite().all() for grad in alphas)
