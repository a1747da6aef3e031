"""What short robust training on colour images is made of: N-FGSM, bf16 passes, smoothed labels, averaged weights."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lib import WorkbookError, checkpoints, data
from lib.attacks import steps
from lib.attacks.steps import Threat
from lib.operating_point import OperatingPoint
from lib.training import loop, recipes
from lib.training.constraints import Averaged
from lib.training.training import Training
from tests.helpers.networks import small

CPU = torch.device("cpu")
TINY = dataclasses.replace(recipes.find("resnet20-digits-float-quick"), iterations=30, batch_size=16, schedule="linear",
                           validate_every=10, validation_images=40)


def test_n_fgsm_is_one_unprojected_step_from_twice_the_ball():
    """de Jorge et al. 2022: x + eta + epsilon sign(grad at x + eta), eta uniform in +-2 epsilon, range kept."""
    threat, images = Threat(0.1, algorithm="n_fgsm"), torch.full((64, 1, 8, 8), 0.5)
    seen = []

    def loss(x):
        seen.append(x.detach().clone())
        return x.sum()

    found = steps.ascend(loss, images, threat, torch.Generator().manual_seed(0))
    (start,) = seen
    assert 0.19 < (start - images).abs().max() <= 0.2
    torch.testing.assert_close(found, start + 0.1)
    assert 0.29 < (found - images).abs().max() <= threat.reach == pytest.approx(0.3)
    edge = steps.ascend(loss, torch.ones(4, 1, 8, 8), threat, torch.Generator().manual_seed(0))
    assert seen[1].max() > 1 and edge.max() == 1


def test_smoothed_labels_are_the_mixture_with_the_uniform_distribution():
    logits, labels = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(1)), torch.arange(5)
    target = 0.9 * F.one_hot(labels, 10) + 0.01
    expected = -(target * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(steps.per_sample(logits, labels, smoothing=0.1), expected)


@pytest.mark.parametrize("method", ["float_slim", "oat", "pni"])
def test_passes_in_bf16_give_the_losses_of_float32_up_to_its_rounding(method, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = recipes.find(f"resnet20-digits-{method}-quick")
        training = Training(dataclasses.replace(recipe, precision=precision, iterations=3), tmp_path, CPU)
        for _ in range(3):
            training.advance()
        losses[precision] = training.means()["loss"]
        assert {p.dtype for p in training.network.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]  # it was not float32 under another name
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


@pytest.mark.slow
def test_a_training_in_bf16_is_as_accurate_as_in_float32(tmp_path):
    reached = {}
    for precision in ("fp32", "bf16"):
        recipe = dataclasses.replace(recipes.find("resnet20-digits-pgd_at1-quick"), precision=precision, iterations=300,
                                     epochs=None, validation_images=200)
        reached[precision] = loop.fit(recipe, tmp_path / precision).metrics
    for name in ("validation_clean", "validation_robust"):  # 200 images: one deviation is at most 3.5 points
        assert abs(reached["bf16"][name] - reached["fp32"][name]) <= 0.1


def test_the_average_is_the_exponential_mean_from_two_thirds_on():
    network = small("smallcnn")
    average = Averaged(network, dataclasses.replace(TINY, average_decay=0.9), torch.tensor(0.1), total=30, settle=None)
    weight, expected = next(network.parameters()), None
    for step in range(1, 31):
        with torch.no_grad():
            weight += 1
        average.after_step(step)
        if step < 20:
            assert average.mean is None
        elif step == 20:
            expected = weight.clone()
        else:
            kept = min(0.9, (step - 19) / (step - 10))
            expected = kept * expected + (1 - kept) * weight.detach()
    torch.testing.assert_close(next(average.mean.parameters()), expected)


@pytest.mark.slow
def test_averaged_weights_with_statistics_of_their_own_are_no_worse_than_the_raw_ones(tmp_path):
    recipe = dataclasses.replace(recipes.find("resnet20-digits-float-quick"), iterations=300, epochs=None,
                                 schedule="constant", average_decay=0.98, validation_images=200)
    training = Training(recipe, tmp_path, CPU)
    while training.step < training.total:
        training.advance()
    images, labels = training.data.test.floats()

    def right(network, **point):
        with torch.no_grad():
            logits = network.eval()(images, OperatingPoint(noise=0.0, **point))[-1]
        return (logits.argmax(-1) == labels).float().mean().item()

    averaged, raw = training.deployed(), training.network
    assert not any(torch.equal(a, b) for a, b in zip(averaged.parameters(), raw.parameters(), strict=True) if a.dim())
    for bank in (0.0, 1.0):
        assert right(averaged, batch_norm=bank) >= right(raw, batch_norm=bank) - 0.01


@pytest.mark.parametrize("stops", [[15], [22, 27]])
def test_a_stopped_training_goes_on_to_the_same_average(stops, tmp_path):
    recipe = dataclasses.replace(TINY, average_decay=0.9)
    whole = loop.fit(recipe, tmp_path / "whole")
    for stop in stops:
        training = Training(recipe, tmp_path / "parts", CPU)
        training.resume()
        while training.step < stop:
            training.advance()
            training.report()
        training.save()
    parts = loop.fit(recipe, tmp_path / "parts")
    assert parts.finished and parts.metrics | {"seconds": 0} == whole.metrics | {"seconds": 0}
    assert checkpoints.load(parts.path).digest == checkpoints.load(whole.path).digest


@pytest.mark.parametrize("changes", [dict(average_decay=1.0), dict(average_decay=0.9, constraint={"name": "atmc"})])
def test_an_average_that_cannot_be_is_refused(changes):
    with pytest.raises(WorkbookError, match="average_decay"):
        dataclasses.replace(TINY, **changes)


def test_a_fall_of_held_out_accuracy_is_said_and_the_best_network_kept(tmp_path, capsys, monkeypatch):
    scores = iter([0.5, 0.3, 0.45])
    monkeypatch.setattr(Training, "validate", lambda self: {"validation_clean": next(scores)})
    loop.fit(TINY, tmp_path)
    told = capsys.readouterr().err
    assert told.count("catastrophic overfitting") == 1 and "below 0.500" in told
    assert checkpoints.load(tmp_path / "best.safetensors").metadata["step"] == 10


def test_networks_on_colour_images_share_one_schedule():
    same = {}
    for name in ("cheap_resnet38-cifar10_jpeg-float_slim", "cheap_resnet38-cifar10_jpeg-dual_bn_slim",
                 "rdi_resnet38-cifar10_jpeg-max_average", "resnet38-cifar10_jpeg-main", "resnet20-cifar10_jpeg-oat",
                 "resnet20-cifar10_jpeg-pgd_at1", "rdi_mobilenet_v2-cifar10_jpeg-main"):
        recipe = recipes.find(f"{name}-laptop")
        assert "width_multiplier" not in recipe.network
        for field in ("epochs", "batch_size", "learning_rate", "weight_decay", "schedule", "warmup", "threat",
                      "attack_view", "precision"):
            same.setdefault(field, set()).add(getattr(recipe, field))
    assert {field for field, values in same.items() if len(values) > 1} == set()
    assert data.SOURCES["cifar10"].threat["epsilon"] == recipe.threat.epsilon
