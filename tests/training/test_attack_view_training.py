"""Training that attacks a faster copy of its network: the same training up to rounding, refreshed at every step."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.models.layers import Weighted
from lib.models.view import VIEWS, AttackView
from lib.training import loop, objectives, recipes, timing
from lib.training.objectives import OBJECTIVES, at_every_width
from lib.training.training import Training
from tests.helpers import training_steps as steps
from tests.helpers.networks import small

CPU = torch.device("cpu")
RDI = dataclasses.replace(recipes.find("rdi_smallcnn-digits-max_average-quick"), iterations=6, batch_size=16,
                          epsilon_warmup=0.0, validate_every=3, validation_images=20,
                          validation=Threat(0.15, 0.1, 1))


def rdi_resnet(view=None, **changes):
    recipe = recipes.find("rdi_resnet38-digits-max_average-laptop")
    network = {**recipe.network, "width_multiplier": 0.25, "depth_multiplier": 0.34}
    return dataclasses.replace(recipe, **{"network": network, "threat": Threat(0.15, 0.05, 3), "batch_size": 8,
                                          "attack_view": view, "epsilon_warmup": 0.0, **changes})


@pytest.mark.parametrize("changes, sentence", [
    (dict(attack_view="int8"), "unknown attack_view 'int8'; choose from folded, bf16"),
    (dict(attack_view="folded", attack_mode="authors"), "in mode authors attack the network itself"),
    (dict(attack_view="bf16", attack_mode="batch"), "a bf16 view stands for the network in mode eval"),
])
def test_a_recipe_says_which_views_it_can_attack(changes, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        dataclasses.replace(RDI, **changes)


def test_a_view_is_part_of_a_recipe_and_none_keeps_its_name():
    digests = {view: dataclasses.replace(RDI, attack_view=view).digest() for view in (None, *VIEWS)}
    assert len(set(digests.values())) == 3 and digests[None] == RDI.digest()
    without = {name: value for name, value in RDI.to_json().items() if name != "attack_view"}  # an older version's
    assert recipes.Recipe.from_json(without).digest() == RDI.digest()
    assert objectives.view_of(small("smallcnn"), RDI) is None


def step_of(recipe, network, view):
    """(loss, weights) after one step on eight images."""
    context = steps.context_of(recipe, view=view)
    images = steps.images_for(network).to(next(network.parameters()).dtype)
    loss, _ = at_every_width(OBJECTIVES[recipe.objective], network, images, steps.LABELS, context)
    loss.backward()
    optimiser = torch.optim.SGD(network.parameters(), 0.05)
    optimiser.step()
    return loss.item(), torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("kind", ["rdi", "float", "oat", "pni", "pgd_at1"])
def test_a_folded_view_makes_the_same_step_but_for_rounding(kind):
    """In float64, where no pixel's gradient sits on the fence: the same loss and weights to 1e-9."""
    recipe = rdi_resnet() if kind == "rdi" else steps.recipe_of(kind)
    network = small(**recipe.network).train() if kind == "rdi" else steps.network_of(kind)
    network.double()
    twin = copy.deepcopy(network)
    expected, weights = step_of(recipe, network, None)
    loss, seen = step_of(recipe, twin, AttackView(twin, torch.float64))
    assert loss == pytest.approx(expected, rel=1e-9)
    assert (seen - weights).abs().max() < 1e-9 * weights.abs().max()


@pytest.mark.parametrize("kind, bound", [("folded", 1e-3), ("bf16", 2e-2)])
def test_in_single_and_half_precision_the_loss_is_as_high(kind, bound, tmp_path):
    found = []
    for view in (None, kind):
        training = Training(rdi_resnet(view), tmp_path / str(view), CPU)
        training.advance()
        found.append(training.means()["loss"])
    assert found[1] == pytest.approx(found[0], rel=bound)


@pytest.mark.parametrize("kind", VIEWS)
def test_the_view_is_attacked_and_follows_the_weights_at_every_step(kind, tmp_path, monkeypatch):
    training = Training(rdi_resnet(kind), tmp_path, CPU)
    gaps, targets, before = [], [], []

    def look():
        with torch.no_grad():
            network = training.network.eval()
            x = steps.images_for(network)
            gaps.append((training.view(x) - network(x)).abs().max() / network(x).abs().max())
            before.append(next(training.network.parameters()).detach().clone())
            training.network.train()

    calls = steps.spy_on_attacks(monkeypatch, before=look)
    craft = objectives.forms.craft
    monkeypatch.setattr(objectives.forms, "craft", lambda form, target, *a, **o: (targets.append(target),
                                                                             craft(form, target, *a, **o))[1])
    for _ in range(3):
        training.advance()
    assert len(calls) == 3 and all(target is training.view for target in targets)
    assert max(gaps) < (1e-4 if kind == "folded" else 0.05)
    assert not torch.equal(before[0], before[1]) and not torch.equal(before[1], before[2])
    assert all(p.grad is None for p in training.view.parameters())


@pytest.mark.parametrize("kind", VIEWS)
def test_a_resumed_training_ends_at_the_same_bits(kind, tmp_path):
    recipe = dataclasses.replace(RDI, attack_view=kind)
    straight = loop.fit(recipe, tmp_path / "straight")
    calls = 1
    while not (result := loop.fit(recipe, tmp_path / "stopped", minutes=1e-9)).finished:
        calls += 1
    assert calls == recipe.iterations
    assert checkpoints.load(result.path).digest == checkpoints.load(straight.path).digest


def test_steps_with_views_can_be_timed():
    rows = timing.side_by_side({str(view): rdi_resnet(view) for view in (None, *VIEWS)}, rounds=1)
    assert {row["defence"] for row in rows} == {"None", "folded", "bf16"}
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.parametrize("form, mode, expected", [
    ("main", "eval", 6 + 2 * 3 * 0.9), ("average", "eval", 6 + 2 * 3), ("max_average", "batch", 6 + 2 + 2 * 3 * 1.4),
    ("max_average", "authors", 6 + 2 + 3 * (2 + 1.4)), ("main", "authors", 6 + 3 * (1 + 0.9))])
def test_work_counts_the_passes_of_each_attack(form, mode, expected):
    """Two exits: the first after 0.4 with a head of 0.1, the last after 0.9 with none; three attack steps."""
    recipe = rdi_resnet(defence=form, attack_mode=mode)
    found = timing.needed(recipe, small("smallcnn"), np.array([0.4, 0.5]), np.array([0.1, 0.0]))
    assert found == pytest.approx(expected)


def test_the_noise_s_deviation_is_computed_once_a_step(monkeypatch):
    recipe, network = steps.recipe_of("float"), steps.network_of("float")
    twin, counted, deviation = copy.deepcopy(network), [], Weighted.deviation
    noisy = [m for m in network.modules() if isinstance(m, Weighted) and m.alpha is not None]
    expected = OBJECTIVES["float"](twin, steps.images_for(twin), steps.LABELS, steps.context_of(recipe))[0]

    def told(layer, at):
        counted.append(layer.deviations is None)
        return deviation(layer, at)

    monkeypatch.setattr(Weighted, "deviation", told)
    assert torch.equal(steps.run("float", network)[0], expected)
    assert sum(counted) == len(noisy) and len(counted) > 2 * len(noisy)
    assert all(layer.deviations is None for layer in noisy)


@pytest.mark.slow
def test_trained_accuracy_is_the_same_within_noise(tmp_path):
    """A quick recipe of PGD-AT, two seeds, attacking the network or a view of it: mean clean and robust accuracy."""
    found = {}
    for view in (None, *VIEWS):
        asked = [dataclasses.replace(recipes.find("resnet20-digits-pgd_at0.7-quick"), attack_view=view, seed=seed)
                 for seed in range(2)]
        reports = [loop.fit(r, tmp_path / f"{view}{r.seed}").metrics for r in asked]
        found[view] = [sum(r[name] for r in reports) / 2 for name in ("validation_clean", "validation_robust")]
    for view in VIEWS:
        assert found[view] == pytest.approx(found[None], abs=0.12), found  # 200 images: 0.03 from drawing them alone
    assert found[None][0] > 0.5
