"""What a training step of FLOAT, its control, OAT, PNI and PGD-AT runs, moves and leaves alone."""

from collections import Counter

import pytest
import torch

from lib import randomness
from lib.models.layers import BatchNorm2d, Weighted
from tests.helpers.training_steps import context_of, network_of, recipe_of, run, spy_on_attacks


def watch_norms(network, monkeypatch):
    """[(phase, bank, images, in train mode)] of all passes through the first norm; the attack parts the phases."""
    log, phase, norm = [], ["clean"], next(m for m in network.modules() if isinstance(m, BatchNorm2d))
    for bank, inner in enumerate(norm.norms):
        inner.register_forward_hook(lambda m, x, y, bank=bank: log.append((phase[0], bank, len(x[0]), m.training)))
    calls = spy_on_attacks(monkeypatch, lambda: phase.__setitem__(0, "attack"),
                           lambda: phase.__setitem__(0, "adversarial"))
    return log, calls


C, A = 0, 1  # banks
PASSES = {  # (phase, bank, images, train mode): eight images; OAT's four lambdas make two of them zeros
    "float": [("clean", C, 4, True), *[("attack", A, 4, False)] * 2, ("adversarial", A, 4, True)],
    "dual_bn": [("clean", C, 4, True), *[("attack", A, 4, False)] * 2, ("adversarial", A, 4, True)],
    "oat": [("clean", C, 2, True), ("clean", A, 6, True), *[("attack", A, 6, False)] * 2, ("adversarial", A, 6, True)],
    "pni": [("clean", C, 8, True), *[("attack", C, 8, False)] * 2, ("adversarial", C, 8, True)],
}


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
    robust = dict(noise=1.0, batch_norm=1.0)
    assert [call["point"].to_json() for call in calls] == [
        {**robust, "width": 1.0}, {**robust, "width": 0.5}, dict(batch_norm=1.0), {}]
    told = {method: [point.to_json() for point in network_of(method).ends()]
            for method in ("float", "dual_bn", "oat", "pni", "pgd_at1")}
    assert told == {"float": [dict(noise=0.0, batch_norm=0.0), dict(noise=1.0, batch_norm=1.0)],
                    "dual_bn": [dict(batch_norm=0.0), dict(batch_norm=1.0)],
                    "oat": [dict(code=0.0), dict(code=1.0)], "pni": [{}, {}], "pgd_at1": [{}, {}]}


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
                   context_of(recipe_of(method), seed=1))
    assert not torch.equal(other, loss)
