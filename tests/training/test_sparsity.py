"""Sparse structure selection against hand values, a closed form and the unpruned network; then in the loop."""

import copy
import dataclasses

import pytest
import torch

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.models.cost import cost
from lib.training import loop, recipes
from lib.training.constraints import continued
from lib.training.sparsity import APGNAG, DEAD, PUBLISHED_WIDTHS, Selection, factors, prune, published, selection
from lib.training.training import Training
from tests.helpers.networks import images, small

CPU = torch.device("cpu")


def tiny(defence="standard", **changes):
    """A few steps of a quarter-width, third-depth ResNet-38 on digits in colour."""
    fields = dict(iterations=4, batch_size=8, validation_images=8, validate_every=100)
    if defence != "standard":
        fields |= dict(threat=Threat(0.15, 0.15, 1), validation=Threat(0.15, 0.1, 1))
    return dataclasses.replace(recipes.find(f"resnet38-digits-{defence}-quick"), **fields | changes)


def scaled(**options):
    """A thin ResNet-38 with factors between 0 and 2, a third of them dead, one block wholly."""
    network = small("resnet38", channel_scales=True, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in factors(network).values():
            factor.uniform_(0.1, 2.0, generator=generator)
            factor[torch.randperm(len(factor), generator=generator)[:len(factor) // 3]] = 0
        list(factors(network).values())[2].zero_()
    return network


# --- the optimiser ---


def test_two_proximal_steps_by_hand():
    """w = 1, v = 0, lr 0.1, gamma 2, m 0.9. Gradient 0.5: z .95, s .75, v -.25, w .525; then -1: z .625, s .425,
    v -.1 - .225 = -.325, w .1325."""
    factor = torch.nn.Parameter(torch.tensor([1.0]))
    optimiser = APGNAG([{"params": [factor], "gamma": 2.0}], lr=torch.tensor(0.1), momentum=0.9)
    for gradient, velocity, expected in ((0.5, -0.25, 0.525), (-1.0, -0.325, 0.1325)):
        factor.grad = torch.tensor([gradient])
        optimiser.step()
        assert optimiser.state[factor]["momentum_buffer"].item() == pytest.approx(velocity)
        assert factor.item() == pytest.approx(expected)


def test_factors_never_fall_below_zero_and_stay_there():
    factor = torch.nn.Parameter(torch.tensor([0.05, 0.5]))
    optimiser = APGNAG([{"params": [factor], "gamma": 1.0}], lr=0.1, momentum=0.9)
    for _ in range(30):
        factor.grad = torch.tensor([0.0, 0.0])
        optimiser.step()
        assert (factor >= 0).all()
    assert factor.tolist() == [0, 0]


def test_weights_beside_the_factors_take_plain_nesterov_steps_with_decay():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    factor = torch.nn.Parameter(torch.ones(3))
    options = dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimisers = (APGNAG([{"params": [ours]}, {"params": [factor], "gamma": 0.0}], **options),
                  torch.optim.SGD([plain], **options))
    for step in range(4):
        for weight, optimiser in zip((ours, plain), optimisers, strict=True):
            weight.grad = (weight.detach() - step).sin()
            factor.grad = torch.zeros(3)
            optimiser.step()
    torch.testing.assert_close(ours, plain)
    assert factor.tolist() == [1, 1, 1]  # neither gradient nor gamma, so no decay either


def test_exactly_the_channels_that_the_closed_form_kills_die():
    """argmin over s >= 0 of 1/2 |s - t|^2 + gamma sum(s) is max(t - gamma, 0)."""
    target = torch.tensor([1.0, 0.8, 0.3, 0.09, 0.05, -0.5])
    factor = torch.nn.Parameter(torch.ones(6))
    optimiser = APGNAG([{"params": [factor], "gamma": 0.1}], lr=0.05, momentum=0.9)
    for _ in range(500):
        optimiser.zero_grad()
        (factor - target).square().sum().div(2).backward()
        optimiser.step()
    torch.testing.assert_close(factor.detach(), torch.tensor([0.9, 0.7, 0.2, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert (factor[3:] == 0).all()


def test_channels_that_cannot_help_die_in_a_network_and_the_others_live():
    """Channels 1 and 3 reach nothing behind the block, the others make up the target."""
    network = small("resnet38", channel_scales=True).train()
    block = network.stages[1][0]
    with torch.no_grad():
        block.main[3].weight.mul_(5)[:, [1, 3]] = 0
    inputs = torch.rand(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    at = network.conditions(None)
    wanted = copy.deepcopy(block)(inputs, at).detach()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith("scale"))
    method = Selection(network, tiny(), torch.tensor(0.1), gamma=0.005)
    for _ in range(300):
        method.optimiser.zero_grad()
        (block(inputs, at) - wanted).square().sum(1).mean().backward()
        method.optimiser.step()
    assert (factors(method.deployed())["stages.1.0"] > 0).tolist() == [True, False, True, False]


# --- surgery ---


@pytest.mark.parametrize("exits", ["none", "rdi"])
def test_pruned_and_unpruned_logits_are_equal(exits):
    network = scaled(exits=exits)
    pruned = prune(network)
    x = images(network, 16)
    torch.testing.assert_close(pruned(x), network(x), atol=1e-5, rtol=0)
    assert [len(w) for w in pruned.config["inner"]] == [2, 2, 2] and not pruned.config["channel_scales"]


def test_the_pruned_network_is_really_smaller_and_rebuilds_from_its_file(tmp_path):
    network = scaled()
    pruned = prune(network)
    alive = [max(1, int((factor > 0).sum())) for factor in factors(network).values()]
    assert sum(pruned.config["inner"], []) == alive and alive[2] == 1
    for width, block in zip(alive, list(pruned.stages)[1:], strict=True):
        first, norm, second = (block[0].main[i] for i in (0, 1, 3))
        assert first.weight.shape[0] == second.weight.shape[1] == norm.norms[0].num_features == width
    assert cost(pruned).macs < cost(network).macs and cost(pruned).parameters < cost(network).parameters
    checkpoints.save(tmp_path / "pruned.safetensors", pruned)
    x = images(network)
    assert torch.equal(checkpoints.load(tmp_path / "pruned.safetensors").network(x), pruned(x))


def test_pruning_leaves_the_original_alone_and_keeps_the_mode():
    network = scaled()
    before = checkpoints.digest(network.state_dict())
    assert not prune(network).training and prune(network.train()).training
    assert checkpoints.digest(network.state_dict()) == before


@pytest.mark.parametrize("label, mflops", [("r004", 69.227), ("r005", 58.574), ("r006", 50.383), ("r007", 49.381),
                                           ("r008", 42.543)])
def test_published_widths_have_the_published_costs(label, mflops):
    recipe = recipes.find(f"resnet38-cifar10-main-paper-{label}")
    assert recipe == published(recipes.find("resnet38-cifar10-main-paper"), label)
    assert cost(zoo.build(**recipe.network)).exits[-1].paper_mflops == pytest.approx(mflops, abs=5e-4)


def test_what_cannot_be_selected_or_pruned_says_so():
    with pytest.raises(WorkbookError, match="channel_scales=True"):
        prune(small("resnet38"))
    with pytest.raises(WorkbookError, match="without conditioning"):
        prune(small("resnet38", channel_scales=True, conditioning="dual_bn"))
    with pytest.raises(WorkbookError, match="no channel factors"):
        Selection(small("resnet20"), tiny(), torch.tensor(0.1), gamma=0.1)
    with pytest.raises(WorkbookError, match=", ".join(PUBLISHED_WIDTHS)):
        published(tiny(), "r009")


# --- in the loop ---


def test_dead_factors_are_exactly_zero_in_what_is_handed_back_and_written(tmp_path):
    start = scaled()
    alive = sum(int((factor > 0).sum()) for factor in factors(start).values())
    result = loop.fit(continued(selection(tiny(), 2.0), start), tmp_path, start=start)
    values = torch.cat(list(factors(result.network).values())).detach()
    assert ((values == 0) | (values > DEAD)).all() and 0 < (values > 0).sum() < alive
    written = torch.cat(list(factors(checkpoints.load(result.path).network).values()))
    assert torch.equal(written, values)
    assert result.metrics["alive"] <= 1


def test_select_prune_then_defend_with_inherited_or_fresh_weights(tmp_path):
    start = scaled()
    sparse = loop.load_or_fit(continued(selection(tiny(), 0.35), start), tmp_path / "sparse", start=start)
    pruned = prune(sparse)
    assert cost(pruned).macs < 0.9 * cost(start).macs
    inherited = continued(tiny("main"), pruned)
    fresh = continued(tiny("main"), pruned, inherit=False)
    assert inherited.digest() != fresh.digest()
    begun = Training(inherited, tmp_path, CPU, pruned).network.eval()
    x = images(pruned)
    torch.testing.assert_close(begun(x), sparse(x), atol=1e-5, rtol=0)
    assert not torch.allclose(Training(fresh, tmp_path, CPU).network.eval()(x), sparse(x), atol=1e-2)
    for name, recipe, start in (("inherited", inherited, pruned), ("fresh", fresh, None)):
        result = loop.fit(recipe, tmp_path / name, start=start)
        assert result.finished and result.network.config["inner"] == pruned.config["inner"]
        assert 0 <= result.metrics["validation_robust"] <= 1


def test_a_recipe_that_starts_from_weights_wants_exactly_these(tmp_path):
    network = small("resnet38")
    recipe = continued(tiny("main"), network)
    with pytest.raises(WorkbookError, match="start="):
        loop.fit(recipe, tmp_path)
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    with pytest.raises(WorkbookError, match="unchanged"):
        loop.fit(recipe, tmp_path, start=network)


def test_a_killed_selection_goes_on_bit_for_bit(tmp_path):
    recipe = selection(tiny(), 0.35)
    whole = loop.load_or_fit(recipe, tmp_path / "whole")
    for _ in range(recipe.iterations):
        result = loop.fit(recipe, tmp_path / "stepwise", minutes=1e-9)
    assert result.finished
    assert checkpoints.digest(result.network.state_dict()) == checkpoints.digest(whole.state_dict())
