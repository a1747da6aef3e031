"""Modes, schedules and streams of randomness: what an attack may leave behind, and what it may depend on."""

import pytest
import torch

from lib import WorkbookError, randomness
from lib.attacks import forms
from lib.attacks.decision import MODES, attack_mode
from lib.attacks.steps import Threat
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import random_batch

torch.set_num_threads(1)
THREAT = Threat(8 / 255, 2 / 255, 3)


def stream(seed=0):
    return randomness.generator(seed, "test")


def build(conditioning="none", name="resnet38", **options):
    """A small RDI network whose running statistics differ from a batch's, with two modules in a state of their own."""
    network = zoo.build(name, exits="rdi", conditioning=conditioning, width_multiplier=0.25, depth_multiplier=1 / 3,
                        **options).train()
    with torch.no_grad():
        network(random_batch(8, network.input_shape, 10, seed=5)[0], None, stream())
    return network


def buffers(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def counters(network):
    return {int(v) for name, v in network.named_buffers() if name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def batch():
    return random_batch(5, (3, 32, 32), 10)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_restores_every_modules_state_also_after_an_error(mode):
    network = build()
    frozen = network.stages[0]
    frozen.eval()
    before = [(m.training, getattr(m, "track_running_stats", None)) for m in network.modules()]
    with attack_mode(network, mode):
        assert all(m.training == (mode != "eval") for m in network.modules())
    with pytest.raises(ZeroDivisionError), attack_mode(network, mode):
        raise ZeroDivisionError
    assert before == [(m.training, getattr(m, "track_running_stats", None)) for m in network.modules()]


def test_an_unknown_mode_lists_the_modes(batch):
    with pytest.raises(WorkbookError, match="eval, batch, authors"), attack_mode(build(), "train"):
        pass


@pytest.mark.parametrize("conditioning", ["dual_bn", "share_stats", "share_affine"])
def test_mode_batch_leaves_the_statistics_of_every_bank_alone(conditioning, batch):
    network = build(conditioning)
    before = buffers(network)
    forms.craft("main", network, *batch, THREAT, generator=stream(), mode="batch", point=OperatingPoint(batch_norm=1.0))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("form", forms.names(7))
def test_eval_and_batch_leave_buffers_and_gradients_alone_and_authors_counts_every_pass(form, batch):
    network = build()
    before = buffers(network)
    for mode in ("eval", "batch"):
        forms.craft(form, network, *batch, THREAT, generator=stream(), mode=mode, thresholds=[0.5] * 6)
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert counters(network) == {1}
    forms.craft(form, network, *batch, THREAT, generator=stream(), mode="authors", thresholds=[0.5] * 6)
    passes = 7 * 3 + 7 if form == "max_average" else 3
    assert counters(network) == {1 + passes}
    assert network.training and all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("form", ["single2", "main", "average", "max_average"])
def test_batch_gives_the_authors_images_without_touching_buffers(form, batch):
    images = {}
    for mode, schedule in (("authors", None), ("batch", "prefix"), ("batch", "full"), ("eval", None)):
        network = build()
        images[mode, schedule] = forms.craft(form, network, *batch, THREAT, generator=stream(), mode=mode,
                                             schedule=schedule)
    assert torch.equal(images["authors", None], images["batch", "prefix"])
    assert torch.equal(images["authors", None], images["batch", "full"])
    assert not torch.equal(images["authors", None], images["eval", None])


def test_the_running_statistics_of_authors_are_those_of_plain_forwards(batch):
    """Replay: the same iterates through network(x) in train mode move the statistics the same way."""
    images, labels = batch
    network, replay = build(), build()
    forms.craft("single3", network, images, labels, THREAT, generator=stream(), mode="authors")
    x = images + torch.empty_like(images).uniform_(-THREAT.epsilon, THREAT.epsilon, generator=stream())
    for _ in range(THREAT.steps):
        x = x.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(replay(x)[2], labels)
        x = (x + THREAT.step_size * torch.autograd.grad(loss, x)[0].sign()).detach()
        x = x.clamp(images - THREAT.epsilon, images + THREAT.epsilon).clamp(0, 1)
    for (name, ours), theirs in zip(network.named_buffers(), replay.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


# ---- schedules

@pytest.mark.parametrize("algorithm", ["pgd", "fgsm_authors", "wrm", "wrm_authors"])
def test_schedules_give_the_same_images_for_every_algorithm(algorithm, batch):
    network, threat = build().eval(), Threat(8 / 255, 2 / 255, 2, algorithm=algorithm, loss="margin")
    full, prefix, shrink = (forms.craft("max_average", network, *batch, threat, generator=stream(), schedule=s)
                            for s in ("full", "prefix", "shrink"))
    assert torch.equal(full, prefix) and torch.equal(prefix, shrink)


def test_prefix_runs_no_stage_behind_its_exit(batch):
    network = build().eval()

    def fail(*_):
        raise AssertionError("ran")

    hooks = [part.register_forward_hook(fail) for part in (*network.stages[network.taps[2] + 1:], *network.heads[3:],
                                                           *network.heads[:2])]
    forms.craft("single3", network, *batch, THREAT, generator=stream())
    with pytest.raises(AssertionError, match="ran"):
        forms.craft("single3", network, *batch, THREAT, generator=stream(), schedule="full")
    for hook in hooks:
        hook.remove()


def test_shrink_runs_each_part_once_per_step_on_the_groups_that_are_left(batch):
    network, rows, stages = build().eval(), {}, {}
    for k, head in enumerate(network.heads):
        head.register_forward_hook(lambda m, inputs, out, k=k: rows.setdefault(k, []).append(len(inputs[0])))
    for s, stage in enumerate(network.stages):
        stage.register_forward_hook(lambda m, inputs, out, s=s: stages.setdefault(s, []).append(len(inputs[0])))
    forms.craft("max_average", network, *batch, THREAT, generator=stream(), schedule="shrink")
    assert rows == {k: [5] * THREAT.steps + [35] for k in range(7)}  # every head on its own group, then the scoring
    groups = [sum(tap >= s for tap in network.taps) for s in range(len(network.stages))]
    assert stages == {s: [5 * n] * THREAT.steps + [35] for s, n in enumerate(groups)}
    assert groups[0] == 7 and groups[-1] < 7


@pytest.mark.parametrize("conditioning, point, mode, refused", [
    ("none", None, "authors", "prefix"),
    ("none", None, "authors", "shrink"),
    ("none", None, "batch", "shrink"),
    ("pni", None, "eval", "shrink"),
    ("float", OperatingPoint(noise=torch.full((5,), 0.5)), "eval", "shrink"),
    ("none", None, "eval", "fastest"),
])
def test_a_schedule_that_would_change_the_images_is_refused(conditioning, point, mode, refused, batch):
    with pytest.raises(WorkbookError, match=f"schedule '{refused}'"):
        forms.craft("main", build(conditioning), *batch, THREAT, generator=stream(), point=point, mode=mode,
                    schedule=refused)


def test_a_frozen_draw_shrinks_exactly(batch):
    network, point = build("float").eval(), OperatingPoint(noise=1.0, batch_norm=1.0, draw=3)
    prefix, shrink = (forms.craft("max_average", network, *batch, THREAT, generator=stream(), point=point, schedule=s)
                      for s in ("prefix", "shrink"))
    assert torch.equal(prefix, shrink)


# ---- randomness

@pytest.mark.parametrize("mode", MODES)
def test_one_generator_decides_everything_and_the_global_one_is_not_touched(mode):
    network = zoo.build("smallcnn", exits="rdi", conditioning="pni", input_shape=(1, 28, 28), width_multiplier=0.25)
    images, labels = random_batch(4, (1, 28, 28), 10)
    state = torch.random.get_rng_state()
    for form in forms.names(3):
        first, again, other = (forms.craft(form, network, images, labels, THREAT, generator=stream(seed), mode=mode,
                                           thresholds=(0.5, 0.5)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_is_fresh_at_each_step(batch):
    """With a random start off, two steps of a noisy network differ from two steps under one frozen draw."""
    network, threat = build("pni").eval(), Threat(8 / 255, 2 / 255, 2, random_start=False)
    seen = []
    network.heads[-1].register_forward_hook(lambda m, inputs, out: seen.append(out.detach()))
    tiny = Threat(0.0, 1e-9, 2, random_start=False)
    forms.craft("main", network, *batch, tiny, generator=stream())
    forms.craft("main", network, *batch, tiny, generator=stream(), point=OperatingPoint(draw=0))
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    with pytest.raises(WorkbookError, match="generator"):
        forms.craft("main", network, *batch, threat, generator=None)


@pytest.mark.parametrize("conditioning, point", [("none", None), ("float", OperatingPoint(noise=1.0, batch_norm=1.0))])
def test_a_forms_images_in_a_suite_depend_on_no_other_form(conditioning, point, batch):
    network = build(conditioning).eval()
    common = dict(seed=7, batch_index=3, point=point, thresholds=[1.0] * 6)
    everything = forms.suite(network, *batch, THREAT, forms.names(7), **common)
    assert list(everything) == list(forms.names(7))
    for form in ("single2", "average", "max_average", "random", "gate_aware"):
        assert torch.equal(forms.suite(network, *batch, THREAT, [form], **common)[form], everything[form])
    alone = forms.craft("single2", network, *batch, THREAT, point=point,
                        generator=randomness.generator(7, "attack", "single2", 3))
    assert torch.equal(everything["single2"], alone)
    other = forms.suite(network, *batch, THREAT, ["main", "single7"], seed=7, batch_index=4, point=point)
    assert torch.equal(other["main"], other["single7"]) and not torch.equal(other["main"], everything["main"])


def test_a_suite_crafts_each_single_attack_once(batch):
    network, passes = build().eval(), []
    network.stages[0].register_forward_hook(lambda *_: passes.append(1))
    forms.suite(network, *batch, THREAT, forms.paper_forms(7), seed=0)
    assert len(passes) == 7 * THREAT.steps + 7 + THREAT.steps  # singles, scoring, average
