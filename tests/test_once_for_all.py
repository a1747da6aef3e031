"""FLOAT, its control, OAT, PNI and PGD-AT against hand-made cases: what a step reads, moves and leaves alone."""

import copy
import dataclasses
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from lib import randomness
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.models.layers import BatchNorm2d, Weighted
from lib.operating_point import OperatingPoint
from lib.training import loop, losses, once_for_all, recipes
from lib.training.constraints import Unconstrained
from lib.training.losses import Context
from lib.training.once_for_all import OBJECTIVES, at_every_width, ends, sample_lambdas
from lib.training.training import Training
from tests.networks import small

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def recipe_of(method, **changes):
    """The quick recipe with an attack of two steps."""
    recipe = recipes.find(f"resnet20-digits-{method}-quick")
    threat = recipe.threat and Threat(0.15, 0.1, 2)
    return dataclasses.replace(recipe, **{"threat": threat, "clean_epochs": 0, "epsilon_warmup": 0.0, **changes})


def network_of(method, seed=0, **options):
    """The recipe's network, as small as it gets, in train mode, with statistics and alphas far from their start."""
    arguments = {**recipe_of(method).network, "width_multiplier": 0.25, "input_shape": (3, 8, 8), **options}
    return small(seed=seed, **arguments).train()


def images_for(network, count=8):
    return torch.rand(count, *network.input_shape, generator=randomness.generator(0, "training images"))


def context_of(recipe, seed=0, **fields):
    return Context(recipe, recipe.threat, **{"epoch": 0, **fields},
                   generator=lambda what: randomness.generator(seed, what))  # fmt: skip


def run(method, network, context=None, **changes):
    """(loss, metrics) of one step on eight images."""
    recipe = recipe_of(method, **changes)
    return at_every_width(OBJECTIVES[recipe.objective], network, images_for(network), LABELS,
                          context or context_of(recipe))  # fmt: skip


def spy_on_attacks(monkeypatch, before=lambda: None, after=lambda: None):
    """Arguments and result of every `forms.craft` to come, with something to do before and after each."""
    calls, craft = [], forms.craft

    def spied(form, network, images, labels, threat, **options):
        before()
        result = craft(form, network, images, labels, threat, **options)
        calls.append({"form": form, "images": images, "labels": labels, "threat": threat, "result": result, **options})
        after()
        return result

    monkeypatch.setattr(forms, "craft", spied)
    return calls


# --- a step touches what it should, in its order (oracle 5) ----------------------------------------------------------


def watch_norms(network, monkeypatch):
    """[(phase, bank, images, in train mode)] of every pass through the first batch norm, phases parted by the attack."""
    log, phase, norm = [], ["clean"], next(m for m in network.modules() if isinstance(m, BatchNorm2d))
    for bank, inner in enumerate(norm.norms):
        inner.register_forward_hook(lambda m, x, y, bank=bank: log.append((phase[0], bank, len(x[0]), m.training)))
    calls = spy_on_attacks(monkeypatch, lambda: phase.__setitem__(0, "attack"),
                           lambda: phase.__setitem__(0, "adversarial"))  # fmt: skip
    return log, calls


C, A = 0, 1  # banks
PASSES = {  # (phase, bank, images, train mode): eight images; OAT's four lambdas make two of them zeros
    "float": [("clean", C, 4, True), *[("attack", A, 4, False)] * 2, ("adversarial", A, 4, True)],
    "dual_bn": [("clean", C, 4, True), *[("attack", A, 4, False)] * 2, ("adversarial", A, 4, True)],
    "oat": [("clean", C, 2, True), ("clean", A, 6, True), *[("attack", A, 6, False)] * 2, ("adversarial", A, 6, True)],
    "pni": [("clean", C, 8, True), *[("attack", C, 8, False)] * 2, ("adversarial", C, 8, True)],
}  # fmt: skip


@pytest.mark.parametrize("method", PASSES)
def test_the_passes_of_a_step_their_images_banks_and_modes(method, monkeypatch):
    network = network_of(method)
    log, calls = watch_norms(network, monkeypatch)
    run(method, network)
    assert log == PASSES[method]
    assert [call["form"] for call in calls] == ["main"] and calls[0]["mode"] == "eval"


@pytest.mark.parametrize("method, banks", [("float", 2), ("dual_bn", 2), ("oat", 2), ("pni", 1), ("float_slim", 4)])
def test_only_the_training_passes_move_statistics_and_counters(method, banks, monkeypatch):
    network, seen = network_of(method), []
    every_state = lambda: {name: b.clone() for name, b in network.named_buffers()}  # noqa: E731
    spy_on_attacks(monkeypatch, lambda: seen.append(every_state()), lambda: seen.append(every_state()))
    start = every_state()
    run(method, network)
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before), "the attack moved a buffer"
    end = every_state()
    norms = [name.removesuffix("num_batches_tracked") for name in start if name.endswith("num_batches_tracked")]
    counts = Counter(int(end[f"{name}num_batches_tracked"]) for name in norms)
    expected = {"oat": {1: len(norms) // 2, 2: len(norms) // 2}, "pni": {2: len(norms)}}.get(method, {1: len(norms)})
    assert counts == expected and len({name.split(".norms.")[1] for name in norms}) == banks
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert {f"{name}running_mean" for name in norms} | {f"{name}running_var" for name in norms} <= moved
    if method in ("float", "dual_bn"):  # between the two training passes only BN_C has moved
        first = {name for name in start if not torch.equal(start[name], seen[0][name])}
        assert first and {name.split(".norms.")[1][0] for name in first} == {"0"}
        assert {name.split(".norms.")[1][0] for name in end if not torch.equal(seen[1][name], end[name])} == {"1"}


@pytest.mark.parametrize("method", ["float", "oat", "pni", "pgd_at0.7"])
def test_the_attack_leaves_gradients_and_modes_as_they_were(method, monkeypatch):
    network = network_of(method)
    network.stages[0].eval()  # a part that somebody has frozen stays so
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    modes = [m.training for m in network.modules()]
    calls = spy_on_attacks(monkeypatch, after=lambda: seen.append([m.training for m in network.modules()]))
    seen = []
    run(method, network)
    assert len(calls) == 1 and seen == [modes] and [m.training for m in network.modules()] == modes
    assert all((p.grad == 3).all() and p.requires_grad for p in network.parameters())


def test_operating_points_of_a_step_and_of_the_validation(monkeypatch):
    calls = spy_on_attacks(monkeypatch)
    for method in ("float_slim", "dual_bn", "pni"):
        run(method, network_of(method))
    assert [call["point"].to_json() for call in calls] == [
        dict(noise=1.0, batch_norm=1.0, width=1.0), dict(noise=1.0, batch_norm=1.0, width=0.5), dict(batch_norm=1.0), {}]
    told = {method: [point.to_json() for point in ends(network_of(method))]
            for method in ("float", "dual_bn", "oat", "pni", "pgd_at1")}  # fmt: skip
    assert told == {"float": [dict(noise=0.0, batch_norm=0.0), dict(noise=1.0, batch_norm=1.0)],
                    "dual_bn": [dict(batch_norm=0.0), dict(batch_norm=1.0)],
                    "oat": [dict(code=0.0), dict(code=1.0)], "pni": [{}, {}], "pgd_at1": [{}, {}]}  # fmt: skip


def test_fresh_noise_at_every_step_of_the_attack():
    """Two steps of the attack see two draws, both from the attack's stream, behind the random start."""
    network, drawn = network_of("float"), []
    layer = next(m for m in network.modules() if isinstance(m, Weighted))
    parts = layer.parts
    layer.parts = lambda at: drawn.append(at.eta(layer).clone() if at.noisy else None) or parts(at)
    run("float", network)
    clean, first, second, adversarial = drawn
    source = randomness.generator(0, "attack")
    torch.rand(4, 3, 8, 8, generator=source)  # the random start takes as many numbers
    expected = [torch.randn(network.noise_elements, generator=source) for _ in range(2)]
    expected.append(torch.randn(network.noise_elements, generator=randomness.generator(0, "adversarial")))
    assert clean is None
    for eta, whole in zip((first, second, adversarial), expected, strict=True):
        assert torch.equal(eta.flatten(), whole[layer.noise_start:layer.noise_start + layer.weight.numel()])


@pytest.mark.parametrize("method", ["float_slim", "dual_bn", "oats", "pni", "pgd_at0.2", "pgd_at_half0.7"])
def test_all_draws_come_from_the_streams_of_the_step(method):
    """With dropout too: the global generator is neither read nor moved, and the same streams give the same step."""
    found = []
    for seed in (0, 1):
        network = network_of(method, **dict(name="wrn40_2") if method != "pni" else {})
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        loss, _ = run(method, network)
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append(loss)
    assert torch.equal(*found)
    other, _ = run(method, network_of(method, **dict(name="wrn40_2") if method != "pni" else {}),
                   context_of(recipe_of(method), seed=1))  # fmt: skip
    assert not torch.equal(other, loss)


# --- losses and gradients --------------------------------------------------------------------------------------------


class Scripted:
    """Returns prepared logits (1, N, classes): the clean ones unless it is shown images made of ones."""

    code_values = (0.0, 0.2, 0.7, 1.0)

    def __init__(self, clean, adversarial):
        self.clean, self.adversarial, self.points = clean, adversarial, []

    def __call__(self, images, point=None, generator=None):
        self.points.append(point)
        return (self.adversarial if images.min() == 1 else self.clean)[None]


def test_oat_loss_of_a_hand_made_batch(monkeypatch):
    """Four images with lambdas 0, 0.2, 0.7, 1: the mean of (1 - lambda) l_C + lambda l_A, where l_A of the first is 0."""
    lambdas, right = torch.tensor([0.0, 0.2, 0.7, 1.0]), torch.tensor([[0.9, 0.8, 0.6, 0.5], [0.0, 0.4, 0.3, 0.1]])
    probabilities = torch.stack([right, 1 - right], dim=-1).log()
    network = Scripted(probabilities[0], probabilities[1, 1:])
    monkeypatch.setattr(once_for_all, "sample_lambdas", lambda *_: (lambdas, 1))
    shown = []
    monkeypatch.setattr(once_for_all, "attacked", lambda network, images, labels, context, point: shown.append(
        (images, point.code)) or torch.ones_like(images))
    images = torch.arange(4.0).view(4, 1, 1, 1) / 10
    loss, metrics = once_for_all.oat(network, images, torch.zeros(4, dtype=torch.long), context_of(recipe_of("oat")))
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
    monkeypatch.setattr(once_for_all, "sample_lambdas", lambda *_: (lambdas, 1))
    run("oat", network)[0].backward()
    logits = twin(images, OperatingPoint(code=lambdas))
    (F.cross_entropy(logits[0, :1], LABELS[:1]) / 8).backward()
    pairs = dict(zip(dict(network.named_parameters()), zip(network.parameters(), twin.parameters(), strict=True),
                     strict=True))  # fmt: skip
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
    ((0.0, 0.2, 0.7, 1.0), 16, 4), ((0.0, 1.0), 15, 8)])  # fmt: skip
def test_lambda_sampler(values, batch, zeros):
    lambdas, count = sample_lambdas(values, batch, randomness.generator(0))
    assert count == zeros and len(lambdas) == batch
    assert (lambdas[:zeros] == 0).all() and (lambdas[zeros:] > 0).all()
    many, count = sample_lambdas(values, 30_000, randomness.generator(1))
    shares = torch.stack([(many[count:] == torch.tensor(v)).float().mean() for v in values[1:]])
    assert (shares - 1 / (len(values) - 1)).abs().max() < 0.012, "every other lambda is equally likely"
    assert torch.equal(lambdas, sample_lambdas(values, batch, randomness.generator(0))[0])


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
    once_for_all.float_(network, images, LABELS, context_of(recipe))[0].backward()

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


# --- in the loop -----------------------------------------------------------------------------------------------------


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
    """Weight noise, dropout, two widths, two optimiser groups, Nesterov: stopped after every step against straight on."""
    network = {**recipe_of("float_slim").network, "name": "wrn40_2", "width_multiplier": 0.5}
    recipe = recipe_of("float_slim", network=network, iterations=4, batch_size=8, nesterov=True, validate_every=2,
                       validation_images=8, validation=Threat(0.15, 0.1, 1))  # fmt: skip
    straight = loop.fit(recipe, tmp_path / "straight", progress=False)
    calls = 1
    while not (result := loop.fit(recipe, tmp_path / "stopped", progress=False, minutes=1e-9)).finished:
        calls += 1
    assert calls == 4 and result.metrics["loss"] == straight.metrics["loss"]
    alphas = 0
    for (name, ours), theirs in zip(result.network.state_dict().items(), straight.network.state_dict().values(),
                                    strict=True):  # fmt: skip
        assert torch.equal(ours, theirs), name
        alphas += name.endswith(".alpha") and ours.item() != 0.25
    assert alphas > 5, "noise scales have been trained"


@pytest.mark.parametrize("method", ["float", "oat", "pni"])
def test_quick_recipes_learn(method, tmp_path):
    result = loop.fit(recipes.find(f"resnet20-digits-{method}-quick"), tmp_path, progress=False)
    assert result.finished and result.metrics["validation_clean"] > 0.4, "chance is 0.1"


def test_every_knob_in_one_network_trains(tmp_path):
    """RDI's seven exits with FLOAT's noise and two widths: the loss sums all exits, the attack is their average."""
    recipe = recipes.find("rdi_resnet38-digits-float_slim-quick")
    assert recipe.attack_form == "average" and len(recipe.exit_weights) == 7
    training = Training(dataclasses.replace(recipe, batch_size=4), tmp_path, CPU)
    training.advance()
    assert training.network.knobs >= {"noise", "batch_norm", "width", "exits", "thresholds"}
    assert all(p.grad is not None and p.grad.any() for n, p in training.network.named_parameters() if "heads" in n)
    assert math.isfinite(training.means()["loss"])
