"""ATMC's factors, projection, codebook and costs against hand-made cases; its constraints in the loop and its files."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.models.cost import cost
from lib.models.factors import Factors, composed, factorise
from lib.models.layers import Chain, GlobalAveragePool
from lib.models.parts import Backbone, Tap
from lib.models.view import AttackView
from lib.training import loop, recipes
from lib.training.admm import (
    Compression,
    codebook,
    compressible,
    compression,
    nonzeros_for,
    project,
    sparse_cost,
)
from tests.helpers.networks import images, small

TABLE_5 = 56.82 / 79.42


def tiny(**changes):
    """A few steps of a quarter-width, third-depth ResNet-38 on digits in colour, PGD-defended."""
    fields = dict(iterations=4, batch_size=8, validation_images=8, validate_every=100, threat=Threat(0.15, 0.15, 1),
                  validation=Threat(0.15, 0.1, 1), learning_rate=0.01, schedule="constant", warmup=0.0)
    return dataclasses.replace(recipes.find("resnet38-digits-main-quick"), **fields | changes)


def nonzeros(tensors) -> int:
    return sum(int((t != 0).sum()) for t in tensors)


def started(share=0.5, bits=2, interval=2, rate=0.05, **changes):
    """A compression under way on factors that are all in use: (network, method, the k that it keeps)."""
    network = factorise(small("resnet38"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for t in compressible(network):
            t.add_(0.01 * torch.randn(t.shape, generator=generator))
    k = int(share * sum(t.numel() for t in compressible(network)))
    rate = torch.tensor(rate)
    return network, Compression(network.train(), tiny(**changes), rate, nonzeros=k, bits=bits, interval=interval), k


# --- factors ---


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (40, 3, 3, 3), (10, 16)])
def test_factors_compose_as_written(shape):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator)
    factors = Factors(dense)
    assert torch.equal(factors(), dense) and sum(int(p.count_nonzero()) for p in factors.parameters()) == dense.numel()
    with torch.no_grad():
        for parameter in factors.parameters():
            parameter.normal_(generator=generator)
    a, b, c = (p.detach().numpy().astype(np.float64) for p in (factors.a, factors.b, factors.c))
    rank = min(shape[0], dense[0].numel())
    expected = (b + np.eye(rank)) @ a + c if rank == shape[0] else b @ (a + np.eye(rank)) + c
    np.testing.assert_allclose(factors().detach().numpy().reshape(shape[0], -1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet38", "smallcnn"])
def test_a_factorised_network_starts_as_the_dense_one(name):
    network = small(name)
    factorised = factorise(network)
    x = images(network)
    assert torch.equal(factorised(x), network(x)) and torch.equal(composed(factorised)(x), network(x))
    assert factorised.config["factorised"] and not composed(factorised).config["factorised"]
    assert composed(network) is network and cost(factorised) == cost(network)
    torch.testing.assert_close(AttackView(factorised)(x), network(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(WorkbookError, match="without conditioning"):
        factorise(small("resnet20", conditioning="float"))


# --- projection and codebook ---


def test_projection_keeps_the_largest_of_all_tensors_together():
    first, second = torch.tensor([[3.0, -0.5], [1.0, -4.0]]), torch.tensor([2.0, 0.1, -2.5])
    project([first, second], 4)
    assert first.tolist() == [[3, 0], [0, -4]] and second.tolist() == [2, 0, -2.5]
    project([first, second], 100)
    assert nonzeros([first, second]) == 4


def test_projection_keeps_no_more_than_asked_among_equals():
    equal = torch.ones(50)
    project([equal], 7)
    assert nonzeros([equal]) == 7


def test_codebook_finds_separate_clusters_and_leaves_zeros():
    centres = torch.tensor([-2.0, -1.0, 1.0, 3.0])
    spread = 0.05 * torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    values = torch.cat([(centres[:, None] + spread).flatten(), torch.zeros(100)])
    quantised = codebook(values, 2)
    expected = torch.cat([(centres + spread.mean(1))[:, None].expand(4, 200).flatten(), torch.zeros(100)])
    torch.testing.assert_close(quantised, expected)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_codebook_moves_each_entry_to_the_nearest_of_few_centres(bits):
    values = torch.randn(40, 50, generator=torch.Generator().manual_seed(bits))
    values[values.abs() < 0.3] = 0
    quantised = codebook(values, bits)
    centres = quantised.unique()
    assert len(centres) <= 2**bits + 1 and (quantised[values == 0] == 0).all() and quantised.shape == values.shape
    nearest = (values.reshape(-1, 1) - centres).abs().min(1).values.view_as(values)
    torch.testing.assert_close((values - quantised).abs(), nearest, atol=1e-6, rtol=0)


def test_a_one_bit_codebook_is_the_best_of_all_splits():
    """With 0 fixed, two clusters on either side of a middle one: every such split of the sorted values is tried."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.double).sort().values
    best = min(torch.cat([values[:i] - values[:i].mean(), values[i:j], values[j:] - values[j:].mean()]).square().sum()
               for i in range(1, 59) for j in range(i + 1, 60))
    assert (codebook(values, 1) - values).square().sum() == pytest.approx(best)


def test_codebook_leaves_a_tensor_of_few_nonzeros_alone():
    values = torch.tensor([0.0, 1.0, -2.0, 0.0, 1.5, 1.25])
    assert torch.equal(codebook(values, 2), values)
    assert len(codebook(values, 1).unique()) <= 3


# --- one step after another ---


def test_nonzeros_never_exceed_k_and_the_dual_stays_finite():
    network, method, k = started()
    x = images(network, 16)
    labels = torch.arange(16) % 10
    for step in range(1, 7):
        method.optimiser.zero_grad()
        (torch.nn.functional.cross_entropy(network(x)[-1], labels) + method.penalty()).backward()
        method.optimiser.step()
        assert nonzeros(method.theta) > k  # momentum and decay would bring them back
        told = method.after_step(step)
        assert nonzeros(method.theta) <= k and nonzeros(method.copies) <= k
        assert max(len(t.unique()) for t in method.copies) <= 2**2 + 1
        assert all(dual.isfinite().all() for dual in method.duals) and told["penalty"].isfinite()
        if step == 1:
            assert all((dual == 0).all() for dual in method.duals)
    assert any((dual != 0).any() for dual in method.duals)
    deployed = method.deployed()
    assert nonzeros(compressible(deployed)) <= k
    for (name, buffer), (_, trained) in zip(deployed.named_buffers(), network.named_buffers(), strict=True):
        assert torch.equal(buffer, trained), name  # batch norm is the trained one's


def test_the_dual_adds_up_what_separates_the_two():
    _, method, _ = started(interval=1)
    expected = [torch.zeros_like(t) for t in method.theta]
    for step in (1, 2, 3):
        method.after_step(step)
        expected = [u + t - c for u, t, c in zip(expected, method.theta, method.copies, strict=True)]
    for dual, sums in zip(method.duals, expected, strict=True):
        torch.testing.assert_close(dual.detach(), sums.detach())


def test_the_penalty_is_its_formula_and_falls_under_its_own_gradient():
    network, method, _ = started(interval=5, rate=2.0, momentum=0.0, weight_decay=0.0)
    rows = zip(method.theta, method.duals, method.copies, strict=True)
    by_hand = 0.1 / 2 * sum((t + u - c).detach().double().square().sum().item() for t, u, c in rows)
    assert method.penalty().item() == pytest.approx(by_hand, rel=1e-4)
    values, gaps = [method.penalty().item()], []
    for step in range(1, 41):
        method.optimiser.zero_grad()
        method.penalty().backward()
        method.optimiser.step()
        told = method.after_step(step)
        values.append(told["penalty"].item())
        gaps.append(told["gap"].item())
    assert values[4] < values[0]  # between two updates of the copy
    assert gaps[-1] < 0.1 * gaps[0]  # and over many of them, theta and theta' come together


# --- costs ---


@pytest.fixture
def one_convolution(monkeypatch):
    """conv 1 -> 2, 3x3, on 8x8 images, then a linear layer 2 -> 3."""
    def backbone(parts, *, exits, classes, input_shape, depth):
        return Backbone([Chain(parts.conv(1, 2, 3))], [Tap(0, Chain(GlobalAveragePool(), parts.linear(2, classes)))])

    monkeypatch.setitem(zoo.BACKBONES, "tiny", backbone)
    return zoo.build("tiny", classes=3, input_shape=(1, 8, 8))


def test_the_three_counts_of_a_tiny_network_by_hand(one_convolution):
    network = factorise(one_convolution)
    conv, linear = network.stages[0][0].factors, network.heads[0][1].factors
    with torch.no_grad():
        for t in compressible(network):
            t.zero_()
        conv.a[0, :4] = 1.0  # 4 + 1 + 2 non-zeros at 64 positions
        conv.b[1, 0] = 1.0
        conv.c[1, 5:7] = 1.0
        linear.b[0, 0] = 1.0  # 1 at one
    counts = sparse_cost(network, bits=8)
    assert counts.dense_conv_macs == 18 * 64
    assert counts.sparse_conv_macs == 7 * 64
    assert (counts.nonzeros, counts.stored_bits) == (8, 64)
    assert counts.share == pytest.approx(7 / 18) and counts.sparse_mflops == 7 * 64 / 2**20


def test_dense_counts_agree_with_the_flop_counter():
    network = small("resnet38")
    counted, dense = cost(network).exits[-1], sparse_cost(network)
    assert dense.dense_conv_macs == counted.paper_macs
    assert dense.sparse_conv_macs == dense.dense_conv_macs  # nothing is zero
    assert dense == sparse_cost(factorise(network))


@pytest.mark.parametrize("share", [TABLE_5, 0.3, 1.0])
def test_k_is_the_largest_that_stays_within_the_share(share):
    network = factorise(small("resnet38"))
    k = nonzeros_for(network, share)
    for nonzero, within in ((k, True), (k + 1, share == 1)):
        projected = factorise(small("resnet38"))
        project(compressible(projected), nonzero)
        assert (sparse_cost(projected).share <= share) == within
    with pytest.raises(WorkbookError, match="outside"):
        nonzeros_for(network, 1.5)


# --- in the loop ---


def constrained(path) -> list[torch.Tensor]:
    """The factors in a file, read without this project's reader."""
    return [t for name, t in load_file(path).items() if ".factors." in name]


def test_dense_projected_quantised_and_what_is_in_the_file(tmp_path):
    dense = loop.load_or_fit(tiny(), tmp_path / "dense")
    start = factorise(dense)
    k = nonzeros_for(start, TABLE_5)
    sparse = loop.fit(compression(tiny(), start, nonzeros=k), tmp_path / "projected", start=start)
    assert 0 < nonzeros(constrained(sparse.path)) <= k
    recipe = compression(tiny(), sparse.network, nonzeros=k, bits=3, interval=2)
    final = loop.fit(recipe, tmp_path / "quantised", start=sparse.network)
    assert {"penalty", "gap", "validation_robust"} <= final.metrics.keys()
    checkpoints.save(tmp_path / "half.safetensors", final.network, dtype=torch.float16)
    for path in (final.path, tmp_path / "quantised" / "best.safetensors", tmp_path / "half.safetensors"):
        tensors = constrained(path)
        assert len(tensors) == 3 * 16 and 0 < nonzeros(tensors) <= k
        assert max(len(t.unique()) for t in tensors) <= 2**3 + 1
    network = checkpoints.load(final.path).network
    x = images(network)
    assert torch.equal(network(x), final.network(x))
    counts = sparse_cost(network, bits=3)
    assert counts.nonzeros <= k and counts.stored_bits == 3 * counts.nonzeros and counts.share < 0.9


def test_a_killed_compression_goes_on_bit_for_bit(tmp_path):
    start = factorise(small("resnet38"))
    recipe = compression(tiny(), start, nonzeros=3000, bits=2, interval=2)
    whole = loop.load_or_fit(recipe, tmp_path / "whole", start=start)
    for _ in range(recipe.iterations):
        result = loop.fit(recipe, tmp_path / "stepwise", start=start, minutes=1e-9)
    assert result.finished
    assert checkpoints.digest(result.network.state_dict()) == checkpoints.digest(whole.state_dict())
