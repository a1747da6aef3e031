"""The table of conditionings: what follows from a row, a row of one's own, and a name that has none."""

import copy

import pytest
import torch

from lib import WorkbookError, checkpoints
from lib.evaluation import points
from lib.models import conditioning, zoo
from lib.models.conditioning import Conditioning, Conditions
from lib.models.layers import BatchNorm2d
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.training.objectives import OBJECTIVES
from tests.helpers import training_steps as steps
from tests.helpers.networks import images, small, source

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


# --- two banks that share their statistics, or their affine ---

@pytest.mark.parametrize("shared", ["statistics", "affine"])
def test_the_second_bank_by_hand(shared):
    """(x - mean) / sqrt(variance + eps) * weight + bias, of which only one half is the second bank's own."""
    norm, x = BatchNorm2d(3, banks=2, shared=shared).eval(), torch.randn(6, 3, 4, 4, generator=source())
    clean, adversarial = norm.norms
    for n, tensor in enumerate(norm.state_dict().values()):
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 2, generator=source(n))
    statistics, affine = (clean, adversarial) if shared == "statistics" else (adversarial, clean)
    mean, variance, weight, bias = (t.view(3, 1, 1) for t in (
        statistics.running_mean, statistics.running_var, affine.weight, affine.bias))
    y = norm(x, Conditions(batch_norm=1.0))
    torch.testing.assert_close(y, (x - mean) / (variance + 1e-5).sqrt() * weight + bias)
    assert not torch.allclose(y, norm(x, Conditions(batch_norm=0.0)))


def test_equal_affines_over_one_set_of_statistics_are_one_batch_norm():
    ours, plain = BatchNorm2d(3, banks=2, shared="statistics"), torch.nn.BatchNorm2d(3)
    for step, bank in enumerate((0.0, 1.0, 1.0, 0.0)):
        x = torch.randn(6, 3, 4, 4, generator=source(step)) + step
        assert torch.equal(ours(x, Conditions(batch_norm=bank)), plain(x))
    assert all(torch.equal(getattr(bank, name), kept) for bank in ours.norms for name, kept in plain.named_buffers())
    assert torch.equal(ours.eval()(x, Conditions(batch_norm=1.0)), plain.eval()(x))


@pytest.mark.parametrize("name, weights", [("share_stats", 271_098), ("share_affine", 271_098 - 1376)])
def test_what_two_banks_share_stays_one_through_copies_casts_and_files(name, weights, tmp_path):
    network = zoo.build("resnet20", conditioning=name)
    assert network.weight_count() == weights and network.knobs == {"batch_norm"}
    small_one = small("resnet20", conditioning=name)
    x, robust = images(small_one, 4), small_one.ends()[1]
    for end in small_one.train().ends():
        small_one(x, end).sum().backward()
    with torch.no_grad():
        for n, p in enumerate(small_one.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=source(n)))
    checkpoints.save(tmp_path / "one.safetensors", small_one.eval())
    kept = checkpoints.load(tmp_path / "one.safetensors").network
    for other in (copy.deepcopy(small_one), kept, copy.deepcopy(small_one).double().float()):
        clean, adversarial = other.stages[0][1].norms
        assert (adversarial.running_mean is clean.running_mean) == (name == "share_stats")
        assert (adversarial.weight is clean.weight) == (name == "share_affine")
        assert clean is not small_one.stages[0][1].norms[0] and torch.equal(other(x, robust), small_one(x, robust))
        assert not torch.allclose(other(x, robust), other(x))
    torch.testing.assert_close(AttackView(small_one)(x, robust), small_one(x, robust), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", [dict(shared="statistics"), dict(banks=2, shared="weights")])
def test_banks_that_share_what_they_have_not(row):
    with pytest.raises(WorkbookError, match="share"):
        Conditioning(**row)
