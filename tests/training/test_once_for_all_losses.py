"""Losses and gradients of FLOAT, OAT, PNI and PGD-AT against hand-made cases and plain networks."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lib import randomness
from lib.models import zoo
from lib.models.layers import Weighted
from lib.operating_point import OperatingPoint
from lib.training import objectives
from lib.training.objectives import OBJECTIVES, sample_lambdas
from tests.helpers.training_steps import LABELS, context_of, images_for, network_of, recipe_of, run, spy_on_attacks


class Scripted:
    """Returns prepared logits (1, N, classes): the clean ones unless it is shown images made of ones."""

    code_values = (0.0, 0.2, 0.7, 1.0)

    def __init__(self, clean, adversarial):
        self.clean, self.adversarial, self.points = clean, adversarial, []

    def __call__(self, images, point=None, generator=None):
        self.points.append(point)
        return (self.adversarial if images.min() == 1 else self.clean)[None]


def test_oat_loss_of_a_hand_made_batch(monkeypatch):
    """Four images with lambdas 0, 0.2, 0.7, 1: the mean of (1 - lambda) l_C + lambda l_A; the first has no l_A."""
    lambdas, right = torch.tensor([0.0, 0.2, 0.7, 1.0]), torch.tensor([[0.9, 0.8, 0.6, 0.5], [0.0, 0.4, 0.3, 0.1]])
    probabilities = torch.stack([right, 1 - right], dim=-1).log()
    network = Scripted(probabilities[0], probabilities[1, 1:])
    monkeypatch.setattr(objectives, "sample_lambdas", lambda *_: (lambdas, 1))
    shown = []
    monkeypatch.setattr(objectives, "attacked", lambda network, images, labels, context, point: shown.append(
        (images, point.code)) or torch.ones_like(images))
    images = torch.arange(4.0).view(4, 1, 1, 1) / 10
    loss, metrics = objectives.oat(network, images, torch.zeros(4, dtype=torch.long), context_of(recipe_of("oat")))
    clean, adversarial = -right.log()
    expected = (clean[0] + 0.8 * clean[1] + 0.2 * adversarial[1] + 0.3 * clean[2] + 0.7 * adversarial[2]
                + adversarial[3]) / 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(shown[0][0], images[1:]) and torch.equal(shown[0][1], lambdas[1:])
    assert torch.equal(network.points[0].code, lambdas) and torch.equal(network.points[1].code, lambdas[1:])
    assert metrics["clean_accuracy"] == 1 and metrics["adversarial_accuracy"] == 0


def test_gradient_of_an_image_with_lambda_zero_reaches_the_clean_affine_only(monkeypatch):
    """lambdas 0, 1, 1, ...: only the first image has a clean loss, so all of BN_C's gradient is its own."""
    network, lambdas = network_of("oat"), torch.tensor([0.0] + 7 * [1.0])
    twin, images = copy.deepcopy(network), images_for(network)
    monkeypatch.setattr(objectives, "sample_lambdas", lambda *_: (lambdas, 1))
    run("oat", network)[0].backward()
    logits = twin(images, OperatingPoint(code=lambdas))
    (F.cross_entropy(logits[0, :1], LABELS[:1]) / 8).backward()
    pairs = dict(zip(dict(network.named_parameters()), zip(network.parameters(), twin.parameters(), strict=True),
                     strict=True))
    affine = {name: pair for name, pair in pairs.items() if ".norms." in name}
    assert {name.split(".norms.")[1][0] for name in affine} == {"0", "1"}
    for name, (ours, alone) in affine.items():
        if ".norms.0." in name:
            torch.testing.assert_close(ours.grad, alone.grad, rtol=1e-4, atol=1e-7)
        else:
            assert alone.grad is None or not alone.grad.any()
            assert ours.grad.any()


@pytest.mark.parametrize("values, batch, zeros", [
    ((0.0, 0.1, 0.2, 0.3, 0.4, 1.0), 128, 22), ((0.0, 0.2, 0.7, 1.0), 128, 32), ((0.0, 0.1, 0.2, 0.3, 0.4, 1.0), 16, 3),
    ((0.2, 0.0, 0.7, 1.0), 16, 4), ((0.0, 1.0), 15, 8)])
def test_lambda_sampler(values, batch, zeros):
    network = SimpleNamespace(code_values=values, code_lambdas=torch.tensor(values))
    lambdas, count = sample_lambdas(network, batch, randomness.generator(0))
    assert count == zeros and len(lambdas) == batch
    assert (lambdas[:zeros] == 0).all() and (lambdas[zeros:] > 0).all()
    many, count = sample_lambdas(network, 30_000, randomness.generator(1))
    shares = torch.stack([(many[count:] == torch.tensor(v)).float().mean() for v in values if v])
    assert (shares - 1 / (len(values) - 1)).abs().max() < 0.012, "every other lambda is equally likely"
    assert torch.equal(lambdas, sample_lambdas(network, batch, randomness.generator(0))[0])


def test_all_widths_of_oats_see_the_same_lambdas(monkeypatch):
    calls = spy_on_attacks(monkeypatch)
    run("oats", network_of("oats"))
    wide, narrow = (call["point"] for call in calls)
    assert (wide.width, narrow.width) == (1.0, 0.5) and torch.equal(wide.code, narrow.code)
    assert not torch.equal(calls[0]["result"], calls[1]["result"]), "each width is attacked anew"


@pytest.mark.parametrize("split, clean_images, attacked_images", [("full", 8, 8), ("half", 4, 4)])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_pgd_at_on_the_full_batch_and_on_halves(split, clean_images, attacked_images, share, monkeypatch):
    network = network_of("pgd_at0.2")
    twin, calls, images = copy.deepcopy(network), spy_on_attacks(monkeypatch), images_for(network)
    loss, _ = run("pgd_at0.2", network, adversarial_weight=share, split=split)
    (call,) = calls
    first = 8 - attacked_images
    assert torch.equal(call["images"], images[first:]) and torch.equal(call["labels"], LABELS[first:])
    adversarial = F.cross_entropy(twin(call["result"])[0], LABELS[first:])
    clean = F.cross_entropy(twin(images[:clean_images])[0], LABELS[:clean_images])
    torch.testing.assert_close(loss, (1 - share) * clean + share * adversarial)


def test_float_gradients_in_a_full_step(monkeypatch):
    """dL/dalpha = sum(g * eta sigma) and dL/dtheta = dL_C/dtheta + g, where g is the gradient at the noisy weights of
    the adversarial half, found by a network without noise machinery that holds these weights."""
    network = network_of("float").double()
    calls = spy_on_attacks(monkeypatch)
    plain = zoo.build(**{**network.config, "conditioning": "dual_bn"}).double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith("alpha")})
    images = images_for(network).double()
    recipe = recipe_of("float")
    objectives.float_(network, images, LABELS, context_of(recipe))[0].backward()

    (0.5 * F.cross_entropy(plain(images[:4], OperatingPoint(batch_norm=0.0))[0], LABELS[:4])).backward()
    clean = {name: p.grad.clone() for name, p in plain.named_parameters() if p.grad is not None}
    plain.zero_grad()
    eta = torch.randn(network.noise_elements, generator=randomness.generator(0, "adversarial")).double()
    noise = {}
    with torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, Weighted):
                weight = plain.get_submodule(name).weight
                part = eta[layer.noise_start:layer.noise_start + weight.numel()].view_as(weight)
                noise[name] = part * weight.std()
                weight += layer.alpha * noise[name]
    logits = plain(calls[0]["result"], OperatingPoint(batch_norm=1.0))[0]
    (0.5 * F.cross_entropy(logits, LABELS[4:])).backward()
    assert len(noise) == 8
    for name, sigma_eta in noise.items():
        ours, g = network.get_submodule(name), plain.get_submodule(name).weight.grad
        torch.testing.assert_close(ours.alpha.grad, (g * sigma_eta).sum(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours.weight.grad, clean[f"{name}.weight"] + g, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["float_slim", "oats", "float_slim_heads", "pgd_at0.7"])
def test_slim_gradient_is_the_sum_of_the_gradients_of_the_widths(method):
    options = {} if "slim" in method or method == "oats" else {"widths": (1.0, 0.5)}
    network, recipe = network_of(method, **options), recipe_of(method)
    twin, images = copy.deepcopy(network), images_for(network)
    loss, metrics = run(method, network)
    loss.backward()
    each, total = [], {}
    for width in (1.0, 0.5):
        alone, _ = OBJECTIVES[recipe.objective](twin, images, LABELS, context_of(recipe, width=width))
        each.append(alone.detach())
        gradients = torch.autograd.grad(alone, list(twin.parameters()), allow_unused=True)
        for (name, p), g in zip(twin.named_parameters(), gradients, strict=True):
            if g is None:
                continue
            total[name] = total.get(name, 0) + g
            if width == 0.5 and name == "stages.1.main.0.weight":  # the narrow network is the leading channels
                assert g[: len(p) // 2, : len(p) // 2].any()
                assert not g[len(p) // 2 :].any() and not g[:, len(p) // 2 :].any()
    torch.testing.assert_close(metrics["loss"], sum(each))
    assert each[0] != each[1]
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, total[name], rtol=1e-5, atol=1e-7, msg=name)


def test_pni_attacks_its_own_predictions_but_trains_on_the_labels(monkeypatch):
    network = network_of("pni")
    twin, calls, images = copy.deepcopy(network), spy_on_attacks(monkeypatch), images_for(network)
    loss, _ = run("pni", network)
    clean = twin(images, generator=randomness.generator(0, "clean"))[0]
    assert torch.equal(calls[0]["labels"], clean.argmax(-1)) and not torch.equal(calls[0]["labels"], LABELS)
    adversarial = twin(calls[0]["result"], generator=randomness.generator(0, "adversarial"))[0]
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(clean, LABELS) + 0.5 * F.cross_entropy(adversarial, LABELS))


def test_pni_starts_with_clean_epochs(monkeypatch):
    calls, recipe = spy_on_attacks(monkeypatch), recipe_of("pni", clean_epochs=5)
    network = network_of("pni")
    twin = copy.deepcopy(network)
    loss, metrics = run("pni", network, context_of(recipe, epoch=4))
    expected = F.cross_entropy(twin(images_for(network), generator=randomness.generator(0, "clean"))[0], LABELS)
    assert not calls and "adversarial_accuracy" not in metrics
    torch.testing.assert_close(loss, expected)
    run("pni", network, context_of(recipe, epoch=5))
    assert len(calls) == 1
