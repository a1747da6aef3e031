"""Recipes against the published schedules, objectives against hand-made cases, and what one training step does."""

import dataclasses
import hashlib
import math

import pytest
import torch

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.training import loop, objectives, recipes
from lib.training.objectives import Context
from lib.training.recipe import Recipe
from lib.training.training import Training

CPU = torch.device("cpu")


def tiny(**changes) -> Recipe:
    """A few steps of a quarter-width RDI-SmallCNN, dropout and attack included."""
    fields = dict(iterations=4, batch_size=8, validation_images=20, validate_every=2, validation=Threat(0.15, 0.1, 1))
    return dataclasses.replace(recipes.find("rdi_smallcnn-digits-max_average-quick"), **fields | changes)


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, batch, rate, decay, milestones, iterations, weights, threat", [
    ("rdi_smallcnn-mnist", 256, 0.033, 5e-4, (12000, 12900), 13100, None, (0.3, 0.01, 40)),
    ("smallcnn-mnist", 256, 0.033, 5e-4, (12000, 12900), 13100, None, (0.3, 0.01, 40)),
    ("rdi_resnet38-cifar10", 128, 0.1, 1e-4, (32000, 48000), 55000, (0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 2),
     (8 / 255, 2 / 255, 10)),
    ("resnet38-cifar10", 128, 0.1, 1e-4, (32000, 48000), 55000, None, (8 / 255, 2 / 255, 10)),
    ("rdi_mobilenet_v2-cifar10", 128, 0.05, 1e-4, (62000, 70000), 76000, (0.5, 0.5, 1), (8 / 255, 2 / 255, 10)),
])
def test_paper_recipes_are_the_published_ones(name, batch, rate, decay, milestones, iterations, weights, threat):
    r = recipes.find(f"{name}-main-paper")
    assert (r.batch_size, r.learning_rate, r.weight_decay, r.iterations) == (batch, rate, decay, iterations)
    assert (r.momentum, r.sampler, r.attack_mode, r.exit_weights) == (0.9, "iid", "authors", weights)
    assert (r.threat.epsilon, r.threat.step_size, r.threat.steps, r.threat.random_start) == (*threat, True)
    first, second = milestones
    factors = {0: 1, first - 1: 1, first: 0.1, second - 1: 0.1, second: 0.01, iterations - 1: 0.01}
    for step, factor in factors.items():
        assert r.rate_at(step, iterations, 100) == pytest.approx(rate * factor)
        assert r.threat_at(step, iterations) == r.threat
    standard = recipes.find(f"{name}-standard-paper")
    assert standard.threat is None and standard.exit_weights == weights and standard.objective == "standard"


def test_names_are_parsed_back_and_unknown_ones_meet_a_near_one():
    assert len(set(recipes.names())) == len(recipes.names())
    for name in recipes.names():
        r = recipes.find(name)
        network, dataset, defence, preset = name.split("-")
        assert (r.name, r.dataset, r.defence) == (name, dataset, defence)
        assert (r.network["exits"] == "rdi") == network.startswith("rdi_") and network.endswith(r.network["name"])
        assert r.exit_weights is None or len(r.exit_weights) in (3, 7)
    with pytest.raises(WorkbookError, match="did you mean rdi_smallcnn-mnist-max_average-laptop"):
        recipes.find("rdi_smallcnn-mnist-maxaverage-laptop")
    with pytest.raises(WorkbookError, match="<network>-<dataset>-<defence>-<preset>"):
        recipes.find("?")
    with pytest.raises(WorkbookError, match="no recipe"):
        recipes.find("smallcnn-mnist-average-paper")  # one exit has no average attack


def test_no_listed_recipe_has_become_another_training():
    """Trainings under way and shipped networks carry these digests; a new recipe joins under a new name."""
    assert recipes.find("cheap_resnet38-cifar10_jpeg-float_slim-laptop").digest() == "e34786fe7eb7c025"
    lines = sorted(f"{n} {recipes.find(n).digest()}" for n in recipes.names() if not n.endswith("-glance"))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith("8b4a4902899fa389")


@pytest.mark.parametrize("name", ["rdi_smallcnn-mnist", "rdi_resnet38-cifar10"])
def test_recipes_build_networks_with_as_many_exits_as_weights(name):
    for preset in ("quick", "paper"):
        r = recipes.find(f"{name}-average-{preset}")
        assert zoo.build(**r.network).num_exits == len(r.exit_weights or (1, 1, 1))


def test_one_side_branch_alone_can_be_defended():
    """The paper's footnote 1: recipes whose attack knows a single side exit, as many as the network has."""
    for network, early in recipes.EARLY.items():
        found = [name.split("-")[2] for name in recipes.names() if name.startswith(f"rdi_{network}-digits-single")
                 and name.endswith("-paper")]
        assert found == [f"single{k + 1}" for k in range(early)]
        assert zoo.build(**recipes.find(f"rdi_{network}-digits-main-quick").network).num_exits == early + 1
    side, last = (recipes.find(f"rdi_smallcnn-mnist-{defence}-paper") for defence in ("single1", "main"))
    assert dataclasses.replace(side, name="", defence="") == dataclasses.replace(last, name="", defence="")
    assert (side.attack_form, side.objective) == ("single1", "rdi")


def test_digest_changes_with_what_determines_the_weights_and_with_nothing_else():
    r = recipes.find("rdi_resnet38-cifar10-average-paper")
    assert Recipe.from_json(r.to_json()) == r and Recipe.from_json(r.to_json()).digest() == r.digest()
    for same in (dict(name="other"), dict(validate_every=7), dict(validation=None), dict(validation_images=3)):
        assert dataclasses.replace(r, **same).digest() == r.digest()
    changes = (dict(seed=1), dict(batch_size=64), dict(threat=dataclasses.replace(r.threat, steps=11)),
               dict(network={**r.network, "width_multiplier": 0.5}), dict(exit_weights=None), dict(warmup=0.1),
               dict(attack_mode="batch"))
    assert len({dataclasses.replace(r, **change).digest() for change in changes} | {r.digest()}) == len(changes) + 1


def test_recipe_of_another_version_or_without_length_is_refused():
    r = tiny()
    with pytest.raises(WorkbookError, match="another version"):
        Recipe.from_json({**r.to_json(), "invented": 1})
    with pytest.raises(WorkbookError, match="either iterations or epochs"):
        dataclasses.replace(r, epochs=2)
    with pytest.raises(WorkbookError, match="unknown schedule 'steps'"):
        dataclasses.replace(r, schedule="steps")
    with pytest.raises(WorkbookError, match="smaller batch_size"):
        dataclasses.replace(r, batch_size=10_000).total(500)


def test_rate_and_budget_rise_and_fall_where_they_should():
    r = tiny(schedule="linear", warmup=0.2, epsilon_warmup=0.5, learning_rate=1.0, threat=Threat(0.3, 0.1, 2))
    rates = [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert [round(r.rate_at(t, 10, 5), 6) for t in range(10)] == rates
    assert [round(r.threat_at(t, 10).epsilon, 6) for t in (0, 1, 4, 9)] == [0.06, 0.12, 0.3, 0.3]
    assert all(r.threat_at(t, 10).step_size == pytest.approx(r.threat_at(t, 10).epsilon / 3) for t in range(10))
    cosine = dataclasses.replace(r, schedule="cosine", warmup=0.0)  # once per epoch, 0 after the last one
    assert [cosine.rate_at(t, 10, 5) for t in (0, 4, 5, 9)] == [1, 1, pytest.approx(0.5), pytest.approx(0.5)]
    assert {dataclasses.replace(cosine, schedule="constant").rate_at(t, 10, 5) for t in range(10)} == {1.0}


# --- objectives ----------------------------------------------------------------------------------------------------


class Scripted:
    """Stands in for a network: returns prepared logits, and notes in which order it was asked."""

    def __init__(self, calls, clean, adversarial):
        self.calls, self.clean, self.adversarial = calls, clean, adversarial

    def __call__(self, images, point=None, generator=None):
        self.calls.append("adversarial" if images.item() == 1 else "clean")
        return self.adversarial if images.item() == 1 else self.clean


@pytest.mark.parametrize("objective, share, order", [
    ("rdi", 0.5, ["attack", "clean", "adversarial"]), ("rdi", 0.2, ["attack", "clean", "adversarial"]),
    ("pgd_at", 0.7, ["attack", "adversarial", "clean"]), ("pgd_at", 1.0, ["attack", "adversarial", "clean"]),
    ("pgd_at", 0.0, ["clean"]), ("standard", 0.5, ["clean"]),
])
def test_losses_and_their_order_against_a_hand_made_case(objective, share, order, monkeypatch):
    """Two exits, two images of classes 0 and 1; probabilities are chosen, so every cross-entropy is a known log."""
    clean = torch.tensor([[[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.6, 0.4]]]).log()
    adversarial = torch.tensor([[[0.3, 0.7], [0.5, 0.5]], [[0.1, 0.9], [0.9, 0.1]]]).log()
    clean_loss = 2 * -(math.log(0.5) + math.log(0.8)) / 2 + 3 * -(math.log(0.9) + math.log(0.4)) / 2
    adversarial_loss = 2 * -(math.log(0.3) + math.log(0.5)) / 2 + 3 * -(math.log(0.1) + math.log(0.1)) / 2
    calls = []
    monkeypatch.setattr(objectives, "attacked", lambda *_: calls.append("attack") or torch.tensor(1.0))
    recipe = tiny(exit_weights=(2.0, 3.0), adversarial_weight=share)
    context = Context(recipe, recipe.threat, 0, lambda purpose: None)
    network = Scripted(calls, clean, adversarial)
    loss, metrics = getattr(objectives, objective)(network, torch.tensor(0.0), torch.tensor([0, 1]), context)
    share = 0.0 if objective == "standard" else share
    assert loss.item() == pytest.approx((1 - share) * clean_loss + share * adversarial_loss, rel=1e-6)
    assert calls == order
    assert metrics["clean_accuracy"] == 0.5 and metrics.get("adversarial_accuracy", torch.tensor(0.0)) == 0


def test_authors_mode_passes_through_batch_norm_79_times_a_step(tmp_path):
    """10 steps x 7 exits + 7 selection passes + clean + adversarial, as the released checkpoint's counter says."""
    recipe = recipes.find("rdi_resnet38-digits-max_average-paper")
    network = {**recipe.network, "width_multiplier": 0.25, "depth_multiplier": 0.34}
    recipe = dataclasses.replace(recipe, network=network, batch_size=2, threat=Threat(8 / 255, 2 / 255, 10))
    weights = {}
    for mode, passes in (("authors", 79), ("batch", 2)):
        training = Training(dataclasses.replace(recipe, attack_mode=mode), tmp_path, CPU)
        training.advance()
        counters = [t for name, t in training.network.named_buffers() if name.endswith("num_batches_tracked")]
        assert {int(t) for t in counters} == {passes}
        weights[mode] = dict(training.network.named_parameters())
    for name, t in weights["batch"].items():  # the same images, so the same weights; only the statistics differ
        torch.testing.assert_close(t, weights["authors"][name], rtol=0, atol=0)


# --- one step, one training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay, momentum, tolerance", [(0, 0, 0), (0, 0.9, 0), (0.01, 0, 0), (0.01, 0.9, 1e-6)])
def test_fused_sgd_with_a_tensor_rate_is_plain_sgd(weight_decay, momentum, tolerance):
    """Over six steps with a change of rate: bit for bit, but for one fused rounding where decay meets momentum."""
    source = torch.Generator().manual_seed(0)
    start, rate = torch.randn(16, 8, 3, 3, generator=source), torch.tensor(0.1)
    fused, plain = (torch.nn.Parameter(start.clone(memory_format=torch.channels_last)) for _ in range(2))
    options = dict(momentum=momentum, weight_decay=weight_decay)
    optimisers = (torch.optim.SGD([fused], lr=rate, fused=True, **options),
                  torch.optim.SGD([plain], lr=0.1, foreach=False, **options))
    for step in range(6):
        rate.fill_(0.1 if step < 3 else 0.01)
        optimisers[1].param_groups[0]["lr"] = 0.1 if step < 3 else 0.01
        gradient = torch.randn(16, 8, 3, 3, generator=source)
        for weight, optimiser in zip((fused, plain), optimisers, strict=True):
            weight.grad = gradient.clone(memory_format=torch.channels_last)
            optimiser.step()
    torch.testing.assert_close(fused, plain, rtol=0, atol=tolerance)


def test_training_follows_the_schedule_and_the_gradient(tmp_path):
    """Without momentum and decay a step moves the weights by exactly -rate x gradient."""
    recipe = tiny(iterations=4, momentum=0.0, schedule="multistep", milestones=(2,), warmup=0.0, learning_rate=0.5,
                  weight_decay=0.0)
    training = Training(recipe, tmp_path, CPU)
    for rate in (0.5, 0.5, 0.05, 0.05):
        before = [p.detach().clone() for p in training.network.parameters()]
        training.advance()
        for old, new in zip(before, training.network.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), old - rate * new.grad)


def test_an_epoch_shows_every_image_once_and_iid_never_repeats_one_in_a_batch(tmp_path):
    def batches(training, epochs):
        for step in range(epochs * training.per_epoch):
            training.step = step
            yield training.indices()

    training = Training(tiny(batch_size=50), tmp_path, CPU)
    seen = list(batches(training, 1))
    assert torch.cat(seen).unique().numel() == 50 * training.per_epoch
    training.step = training.per_epoch
    assert not torch.equal(training.indices(), seen[0])
    iid = Training(tiny(batch_size=50, sampler="iid"), tmp_path, CPU)
    seen = list(batches(iid, 1))
    assert all(b.unique().numel() == 50 for b in seen)
    assert torch.cat(seen).unique().numel() < 50 * len(seen)


@pytest.mark.parametrize("defence", ["standard", "average", pytest.param("main", marks=pytest.mark.slow),
                                     pytest.param("max_average", marks=pytest.mark.slow)])
def test_quick_recipes_learn(defence, tmp_path):
    recipe = recipes.find(f"rdi_smallcnn-digits-{defence}-quick")
    result = loop.fit(recipe, tmp_path)
    assert result.finished and result.step == result.total == 100
    assert result.metrics["validation_clean"] > 0.4, "chance is 0.1"
    if defence in ("average", "max_average"):
        assert result.metrics["validation_robust"] > 0.2


def test_last_and_best_are_described_and_best_is_the_best_of_the_history(tmp_path):
    result = loop.fit(tiny(iterations=6, learning_rate=0.3), tmp_path)
    last, best = (checkpoints.load(tmp_path / f"{name}.safetensors") for name in ("last", "best"))
    assert last.metadata["finished"] and last.metadata["step"] == 6 and last.metadata["data_variant"]
    assert Recipe.from_json(last.metadata["recipe"]).digest() == last.metadata["recipe_digest"]
    rows = [line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines()]
    history = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["step"] for row in history] == ["2", "4", "6"]
    robust = [float(row["validation_robust"]) for row in history]
    assert best.metadata["metrics"]["validation_robust"] == max(robust)
    assert best.metadata["step"] == int(history[robust.index(max(robust))]["step"])
    assert not result.network.training


def test_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_state(tmp_path):
    recipe = tiny(iterations=50, learning_rate=1e18, schedule="constant", warmup=0.0, validate_every=1000)
    with pytest.raises(WorkbookError, match=r"not a finite number at step \d+ .*learning_rate below 1e\+18") as caught:
        loop.fit(recipe, tmp_path, save_seconds=0)
    step = int(str(caught.value).split("at step ")[1].split()[0])
    path = tmp_path / "state.safetensors"
    if path.exists():
        tensors, values = checkpoints.load_state(path)
        assert values["step"] < step and all(t.isfinite().all() for t in tensors.values())
    assert not (tmp_path / "last.safetensors").exists()
