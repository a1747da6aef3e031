"""FLOAT, its control, OAT, PNI and PGD-AT in the one loop: recipes, optimiser, resuming, and the timing of a step."""

import copy
import dataclasses
import math

import pytest
import torch

from lib.attacks.steps import Threat
from lib.models import zoo
from lib.training import loop, methods, recipes, timing
from lib.training.constraints import Unconstrained
from lib.training.training import Training
from tests.helpers.training_steps import network_of, recipe_of

CPU = torch.device("cpu")


def test_noise_scales_are_not_decayed_unless_told():
    for alpha_decay, expected in ((0.0, 1.0), (0.5, 0.95)):
        network = network_of("float")
        before = copy.deepcopy(dict(network.named_parameters()))
        recipe = recipe_of("float", weight_decay=0.2, alpha_decay=alpha_decay, momentum=0.0)
        optimiser = Unconstrained(network, recipe, torch.tensor(0.1)).optimiser
        held = [id(p) for group in optimiser.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in network.parameters())
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        for name, parameter in network.named_parameters():
            kept = expected if name.endswith(".alpha") else 0.98
            torch.testing.assert_close(parameter, kept * before[name], msg=name)


def test_the_control_sees_the_same_images_starts_and_order_as_float(tmp_path):
    """FLOAT with its alphas held at zero is the control, bit for bit: nothing else differs between the two."""
    found = []
    for method in ("float", "dual_bn"):
        training = Training(recipe_of(method, batch_size=16), tmp_path / method, CPU)
        for name, parameter in training.network.named_parameters():
            if name.endswith(".alpha"):
                parameter.data.zero_()
                parameter.requires_grad_(False)
        for _ in range(3):
            training.advance()
        found.append({k: v for k, v in training.network.state_dict().items() if not k.endswith("alpha")})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(t, found[1][name]) for name, t in found[0].items())


def test_resumed_noisy_training_is_bit_identical(tmp_path):
    """Weight noise, dropout, two widths, two optimiser groups, Nesterov: stopped after each step or not."""
    network = {**recipe_of("float_slim").network, "name": "wrn40_2", "width_multiplier": 0.5}
    recipe = recipe_of("float_slim", network=network, iterations=4, batch_size=8, nesterov=True, validate_every=2,
                       validation_images=8, validation=Threat(0.15, 0.1, 1))
    straight = loop.fit(recipe, tmp_path / "straight")
    calls = 1
    while not (result := loop.fit(recipe, tmp_path / "stopped", minutes=1e-9)).finished:
        calls += 1
    assert calls == 4 and result.metrics["loss"] == straight.metrics["loss"]
    alphas = 0
    for (name, ours), theirs in zip(result.network.state_dict().items(), straight.network.state_dict().values(),
                                    strict=True):
        assert torch.equal(ours, theirs), name
        alphas += name.endswith(".alpha") and ours.item() != 0.25
    assert alphas > 5, "noise scales have been trained"


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in ("pgd_at0", "pgd_at0.2", "pgd_at1", "float_slim", "oats")]


@pytest.mark.parametrize("method", ["float", "dual_bn", "oat", "pgd_at0.7", "pni", *SLOW])
def test_quick_recipes_learn(method, tmp_path):
    result = loop.fit(recipes.find(f"resnet20-digits-{method}-quick"), tmp_path)
    assert result.finished and result.metrics["validation_clean"] > 0.5, "chance is 0.1"


def test_every_knob_in_one_network_trains(tmp_path):
    """RDI's seven exits with FLOAT's noise and two widths: the loss sums all exits, the attack is their average."""
    recipe = recipes.find("rdi_resnet38-digits-float_slim-quick")
    assert recipe.attack_form == "average" and len(recipe.exit_weights) == 7
    training = Training(dataclasses.replace(recipe, batch_size=4), tmp_path, CPU)
    training.advance()
    assert training.network.knobs >= {"noise", "batch_norm", "width", "exits", "thresholds"}
    assert all(p.grad is not None and p.grad.any() for n, p in training.network.named_parameters() if "heads" in n)
    assert math.isfinite(training.means()["loss"])


# --- recipes ---------------------------------------------------------------------------------------------------------

OAT_STEP = 10 / 255 / 7  # min(1.25 epsilon, epsilon + 4/255) / 7 at 8/255


@pytest.mark.parametrize("name, batch, epochs, classes, shape", [
    ("resnet34-cifar10", 128, 200, 10, [3, 32, 32]), ("resnet34-cifar100", 128, 200, 100, [3, 32, 32]),
    ("wrn16_8-svhn", 128, 200, 10, [3, 32, 32]), ("wrn40_2-stl10", 64, 200, 10, [3, 96, 96]),
    ("resnet34-tiny_imagenet", 128, 120, 200, [3, 64, 64])])
@pytest.mark.parametrize("method", ["float", "float_slim", "dual_bn", "dual_bn_slim", "oat", "oats", "pgd_at0",
                                    "pgd_at0.2", "pgd_at0.7", "pgd_at1"])
def test_published_recipes(name, batch, epochs, classes, shape, method):
    r = recipes.find(f"{name}-{method}-paper")
    assert (r.batch_size, r.epochs, r.network["classes"], r.network["input_shape"]) == (batch, epochs, classes, shape)
    assert (r.learning_rate, r.momentum, r.nesterov, r.weight_decay, r.alpha_decay) == (0.1, 0.9, False, 5e-4, 0)
    assert (r.schedule, r.warmup, r.sampler, r.attack_mode, r.split) == ("cosine", 0, "epoch", "eval", "full")
    assert r.attack_form == "main" and r.adversarial_weight == float(method[6:] if "pgd" in method else 0.5)
    if method == "pgd_at0":
        assert r.threat is None
    else:
        assert (r.threat.epsilon, r.threat.steps, r.threat.random_start) == (8 / 255, 7, True)
        assert r.threat.step_size == pytest.approx(0.00560224, abs=1e-8)
    assert tuple(r.network.get("widths", (1.0,))) == ((1.0, 0.5) if "slim" in method or method == "oats" else (1.0,))
    per_epoch = 351
    rates = [r.rate_at(step, epochs * per_epoch, per_epoch) for step in (0, 350, 351, (epochs - 1) * 351)]
    assert rates[:2] == [0.1, 0.1] and rates[2] < 0.1 and rates[3] == pytest.approx(0, abs=1e-4)


def test_step_of_the_attack_by_oats_rule():
    assert methods.attack(8 / 255, 7).step_size == pytest.approx(0.00560224, abs=1e-8)
    assert methods.attack(8 / 255, 20).step_size == pytest.approx(0.00196078, abs=1e-8)
    assert methods.attack(0.3, 10).step_size == pytest.approx((0.3 + 4 / 255) / 10)


def test_pni_recipe_is_that_of_its_code():
    r = recipes.find("resnet20-cifar10-pni-paper")
    assert (r.epochs, r.batch_size, r.learning_rate, r.weight_decay, r.alpha_decay) == (160, 128, 0.1, 3e-4, 0)
    assert (r.nesterov, r.clean_epochs, r.threat) == (True, 5, Threat(0.031, 0.01, 7))
    assert [round(r.rate_at(e * 351, 160 * 351, 351), 6) for e in (79, 80, 119, 120, 159)] == [.1, .01, .01, .001, .001]
    network = zoo.build(**r.network)
    assert network.config["normalise"] == "cifar10" and sum(p.numel() for p in network.parameters()) == 269_722 + 20


@pytest.mark.parametrize("name, parameters", [
    ("resnet34-cifar10-float", 21_299_146 + 37), ("resnet34-cifar10-oat", 33_355_466),
    ("wrn16_8-svhn-float", 10_968_570 + 17), ("wrn40_2-stl10-dual_bn", 2_248_954),
    ("resnet34-cifar10-pgd_at1", 21_282_122)])
def test_published_networks_to_the_last_parameter(name, parameters):
    assert sum(p.numel() for p in zoo.build(**recipes.find(f"{name}-paper").network).parameters()) == parameters


@pytest.mark.parametrize("preset", ["quick", "laptop"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_small_recipes_differ_in_the_method_alone(method, preset):
    """Of one preset all methods share images, backbone and schedule, so that what differs is the method's doing."""
    r, other = recipes.find(f"resnet20-digits-{method}-{preset}"), recipes.find(f"resnet20-digits-float-{preset}")
    network = zoo.build(**r.network)
    assert network.num_exits == 1 and network.input_shape == (3, 16, 16)
    for field in ("dataset", "epochs", "iterations", "batch_size", "schedule", "warmup", "validation_images"):
        assert getattr(r, field) == getattr(other, field), field
    assert r.threat in (None, other.threat)
    for argument in ("width_multiplier", "depth_multiplier", "name"):
        assert r.network.get(argument) == other.network.get(argument)


# --- what a step costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, codes, expected", [
    ("float", None, 10), ("dual_bn", None, 10), ("oat", [0, 0.2, 0.7, 1], 15.75), ("oat", [0, 1], 11.5),
    ("oat", [0, 0.1, 0.2, 0.3, 0.4, 1], 3 + 17 * 106 / 128), ("pgd_at0.2", None, 20), ("pgd_at1", None, 20),
    ("pgd_at0", None, 3), ("pgd_at_half0.7", None, 10), ("pni", None, 20)])
def test_work_of_a_step_of_pgd_7_on_128_images(method, codes, expected):
    recipe = recipe_of(method, batch_size=128)
    recipe = dataclasses.replace(recipe, threat=recipe.threat and methods.attack(8 / 255, 7))
    assert timing.work(recipe, network_of(method, **({"codes": codes} if codes else {}))) == pytest.approx(expected)


def test_work_of_two_widths_is_the_sum_of_their_macs():
    recipe = dataclasses.replace(recipe_of("float_slim", batch_size=128), threat=methods.attack(8 / 255, 7))
    network = zoo.build("resnet34", conditioning="float", widths=(1.0, 0.5), width_multiplier=0.25)
    assert timing.work(recipe, network) == pytest.approx(12.5, rel=0.01)  # half the width is a quarter of the MACs


def test_steps_side_by_side():
    methods = ("float", "oat", "pgd_at0.2")
    rows = timing.side_by_side({m: recipe_of(m, batch_size=8) for m in methods}, rounds=3, experiment="a test")
    found = {(row["defence"], row["metric"]): row for row in rows}
    assert set(found) == {(m, metric) for m in methods
                          for metric in ("step_seconds", "step_ratio", "step_passes", "step_ratio_predicted", "pass_ms",
                                         "parameters")}
    seconds, passes, each = (found["oat", m]["value"] for m in ("step_seconds", "step_passes", "pass_ms"))
    assert each == pytest.approx(1e3 * seconds / passes / 8)
    assert found["float", "step_ratio"]["value"] == found["float", "step_ratio_predicted"]["value"] == 1
    assert found["oat", "step_ratio_predicted"]["value"] == pytest.approx((3 + 7 * 0.75) / 5)
    for row in rows:
        assert row["experiment"] == "a test" and row["images"] == 8 and row["steps"] == 2
        assert "low" not in row or 0 < row["low"] <= row["value"] <= row["high"]
