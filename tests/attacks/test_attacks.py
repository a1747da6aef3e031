"""Steps and forms against closed forms, hand-made cases and a plain re-writing of the released code."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import WorkbookError, randomness
from lib.attacks import forms, steps
from lib.attacks.steps import Threat
from lib.models import exits as early_exits
from lib.models import zoo
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch, worst_case

torch.set_num_threads(1)
TWO_CLASS = torch.randn(3, 2, 4, generator=randomness.generator(1, "weights"))
PGD = Threat(0.1, 0.03, 8)


def stream(seed=0):
    return randomness.generator(seed, "test")


def smallcnn(**options):
    network = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25, **options)
    last = network.heads[-1][-1]  # starts at zero, which would leave the last exit without a gradient
    torch.nn.init.normal_(last.weight, generator=randomness.generator(0, "last"))
    return network.eval()


def narrow_resnet():
    network = zoo.build("resnet38", exits="rdi", width_multiplier=0.25).train()
    images, _ = random_batch(16, (3, 32, 32), 10, seed=5)
    with torch.no_grad():
        network(images)  # running statistics that differ from a batch's
    return network.eval()


# ---- losses

def test_the_margin_loss_is_carlini_and_wagners():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [60.0, 1.0, 2.0], [1.0, 70.0, 2.0]])
    labels = torch.tensor([0, 1, 0, 0])
    expected = torch.tensor([-(1 + 50.0), -(-2 + 50.0), -(58 + 50.0), 0.0])  # the last is beaten by more than 50
    assert torch.equal(steps.per_sample(logits, labels, "margin"), expected)
    assert torch.equal(steps.per_sample(logits.expand(3, 4, 3), labels, "margin"), expected.expand(3, 4))


def test_cross_entropy_per_sample_matches_the_definition():
    logits, labels = torch.randn(3, 5, 4, generator=stream()), torch.tensor([0, 1, 2, 3, 0])
    expected = -logits.log_softmax(-1)[:, torch.arange(5), labels]
    assert torch.allclose(steps.per_sample(logits, labels), expected)


# ---- steps against closed forms

@pytest.mark.parametrize("loss", steps.LOSSES)
@pytest.mark.parametrize("exit, form", [(0, "single1"), (1, "single2"), (2, "main"), (2, "single3")])
def test_pgd_reaches_the_exact_worst_case_of_a_linear_exit(loss, exit, form):
    images, labels = random_batch(64)
    threat = Threat(0.15, 0.05, 8, loss=loss)
    found = forms.craft(form, linear_network(TWO_CLASS), images, labels, threat, generator=stream())
    assert torch.equal(found, worst_case(images, labels, TWO_CLASS[exit], 0.15))


def test_average_and_random_reach_the_worst_case_when_all_exits_agree():
    weights = TWO_CLASS[:1] * torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    images, labels = random_batch(64)
    for form in ("average", "random"):
        found = forms.craft(form, linear_network(weights), images, labels, Threat(0.15, 0.05, 8), generator=stream())
        assert torch.equal(found, worst_case(images, labels, TWO_CLASS[0], 0.15))


def test_fgsm_is_one_step_of_epsilon_and_the_released_one_goes_further():
    images, labels = random_batch(64)
    direction = (TWO_CLASS[2][1 - labels] - TWO_CLASS[2][labels]).view_as(images).sign()
    network = linear_network(TWO_CLASS)
    found = forms.craft("main", network, images, labels, Threat(0.1, algorithm="fgsm"), generator=stream())
    assert torch.equal(found, (images + 0.1 * direction).clamp(0, 1))
    authors = Threat(0.1, algorithm="fgsm_authors")
    found = forms.craft("main", network, images, labels, authors, generator=stream())
    start = images + torch.empty_like(images).uniform_(-0.1, 0.1, generator=stream())
    assert torch.allclose(found, (start + 0.1 * direction).clamp(0, 1), atol=1e-7)
    assert (found - images).abs().max() > 0.15


def test_the_random_start_is_not_clamped_before_the_first_gradient():
    seen = []
    images = torch.ones(4, 1, 2, 2)
    steps.ascend(lambda x: (seen.append(x.detach()), x.sum())[1], images, PGD, stream())
    assert seen[0].max() > 1 and (seen[0] - images).abs().max() <= 0.1 + 1e-6
    assert seen[1].max() <= 1
    with pytest.raises(WorkbookError, match="generator"):
        steps.begin(images, PGD, None)


@pytest.mark.parametrize("algorithm, form, exits, divisor", [
    ("wrm", "main", 1, 1), ("wrm_authors", "main", 1, 6), ("wrm", "average", 1, 1), ("wrm_authors", "average", 3, 6)])
def test_wrm_follows_its_recurrence(algorithm, form, exits, divisor):
    """The margin loss of a linear exit has a constant gradient g, so after T steps from start s the error
    x - x0 - c g is prod(1 - exits / sqrt(t + 2)) times what it was, with c = epsilon / divisor."""
    weights = TWO_CLASS[:1].expand(3, -1, -1) * 0.02  # small, so that the clamp to [0, 1] never acts
    images, labels = torch.full((6, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1, 1, 0])
    threat = Threat(0.02, steps=5, algorithm=algorithm, loss="margin")
    found = forms.craft(form, linear_network(weights), images, labels, threat, generator=stream())
    start = torch.empty_like(images).uniform_(-0.02, 0.02, generator=stream())
    pull = 0.02 / divisor * (weights[0][1 - labels] - weights[0][labels]).view_as(images)
    shrink = math.prod(1 - exits / math.sqrt(t + 2) for t in range(5))
    assert torch.allclose(found, images + pull + shrink * (start - pull), atol=1e-6)


def test_the_released_wrm_forgets_its_random_start():
    assert math.prod(1 - 1 / math.sqrt(t + 2) for t in range(20)) == pytest.approx(1.5e-4, rel=0.05)
    images = torch.full((5, 1, 4, 4), 0.5)
    found = steps.ascend(lambda x: 0 * x.sum(), images, Threat(0.3, steps=20, algorithm="wrm"), stream())
    assert 0 < (found - images).abs().max() < 0.3 * 1.6e-4


# ---- the budget, whatever the threat

@settings(max_examples=40, deadline=None)
@given(epsilon=st.floats(0, 1), step_size=st.floats(1e-3, 2), count=st.integers(1, 4), seed=st.integers(0, 2**16),
       algorithm=st.sampled_from(steps.ALGORITHMS), loss=st.sampled_from(steps.LOSSES), start=st.booleans(),
       form=st.sampled_from(forms.names(3)))
def test_every_attack_keeps_to_budget_and_range(epsilon, step_size, count, seed, algorithm, loss, start, form):
    threat = Threat(epsilon, step_size, count, start, algorithm, loss)
    images, labels = random_batch(5, seed=seed)
    kept = images.clone()
    found = forms.craft(form, linear_network(TWO_CLASS), images, labels, threat, generator=stream(seed),
                        thresholds=(0.3, 0.5))
    assert found.shape == images.shape and not found.requires_grad and torch.equal(images, kept)
    assert found.min() >= 0 and found.max() <= 1
    assert (found - images).abs().max() <= threat.reach + 1e-6


# ---- forms

def test_max_average_chooses_per_image_by_the_sum_over_exits():
    """Two exits read one pixel each. Image 0 suffers most from candidate 0, image 1 from candidate 1, and their sum
    over the batch would choose candidate 1 for both."""
    network = linear_network([[[4.0, 0], [0, 0]], [[0, 9.0], [0, 0]]], input_shape=(1, 1, 2))
    labels = torch.tensor([0, 0])
    images = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).view(2, 1, 1, 2)
    first = torch.tensor([[0.1, 0.5], [0.4, 0.5]]).view(2, 1, 1, 2)
    second = torch.tensor([[0.5, 0.45], [0.5, 0.0]]).view(2, 1, 1, 2)
    target = forms.Target.of(network, images, labels, PGD, None)
    chosen = target.strongest([first, second], stream())
    assert torch.equal(chosen, torch.stack([first[0], second[1]]))
    same_score = [first, first.clone()]
    chosen = target.strongest(same_score, stream())
    assert torch.equal(chosen, first)


def authors_single(network, x, y, threat, generator, exit):
    """The released single attack, re-written from its description: all exits forward, batch mean, masked clamps."""
    x_adv = x + torch.zeros_like(x).uniform_(-threat.epsilon, threat.epsilon, generator=generator)
    for _ in range(threat.steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = network(x_adv, None, generator)
        loss = F.cross_entropy(logits[exit], y)
        with torch.no_grad():
            x_adv = x_adv + threat.step_size * torch.sign(torch.autograd.grad(loss, x_adv)[0])
            above, below = x_adv > x + threat.epsilon, x_adv < x - threat.epsilon
            x_adv[above] = (x + threat.epsilon)[above]
            x_adv[below] = (x - threat.epsilon)[below]
            x_adv = x_adv.clamp(0, 1)
    return x_adv.detach()


def authors_max_average(network, x, y, threat, generator):
    candidates = [authors_single(network, x, y, threat, generator, k) for k in range(network.num_exits)]
    scores = []
    for candidate in candidates:
        logits = network(candidate, None, generator)
        scores.append(sum(F.cross_entropy(exit, y, reduction="none") for exit in logits).detach())
    result = candidates[0].clone()
    for i in range(len(x)):
        best = max(range(len(candidates)), key=lambda k: scores[k][i].item())
        result[i] = candidates[best][i]
    return result


@pytest.mark.parametrize("make, shape", [(smallcnn, (1, 28, 28)), (narrow_resnet, (3, 32, 32))])
def test_max_average_equals_the_released_form_bit_for_bit_in_every_schedule(make, shape):
    network, threat = make(), Threat(8 / 255, 2 / 255, 3)
    images, labels = random_batch(5, shape, 10)
    expected = authors_max_average(network, images, labels, threat, stream())
    for schedule in ("full", "prefix", "shrink"):
        found = forms.craft("max_average", network, images, labels, threat, generator=stream(), schedule=schedule)
        assert torch.equal(found, expected), schedule
    singles = [authors_single(network, images, labels, threat, stream(), k) for k in range(network.num_exits)]
    for k, expected in enumerate(singles):
        assert torch.equal(forms.craft(f"single{k + 1}", network, images, labels, threat, generator=stream()), expected)


def test_random_attack_draws_its_weights_once_per_call():
    network, (images, labels) = linear_network(TWO_CLASS), random_batch(6)
    seen = []
    target = forms.Target.of(network, images, labels, PGD, None)
    loss, generator = target.loss("random", stream()), stream()
    weights = torch.rand(3, 1, generator=generator)
    weights = weights / weights.sum()
    for x in (images, images.flip(0)):
        expected = (weights * steps.per_sample(network(x), labels)).sum()
        seen.append(torch.allclose(loss(x), expected))
    assert seen == [True, True] and weights.sum() == pytest.approx(1)


def test_gate_aware_follows_the_exit_that_fires_at_each_step():
    network, (images, labels) = linear_network(3 * TWO_CLASS), random_batch(64)
    craft = lambda form, **more: forms.craft(form, network, images, labels, PGD, generator=stream(), **more)  # noqa: E731
    assert torch.equal(craft("gate_aware", thresholds=(math.inf, 0)), craft("single1"))
    assert torch.equal(craft("gate_aware", thresholds=(-math.inf, -math.inf)), craft("main"))
    x = images + torch.empty_like(images).uniform_(-0.1, 0.1, generator=stream())
    thresholds, fired_at = torch.tensor([0.3, 0.4]), []
    for _ in range(PGD.steps):
        entropy = early_exits.entropy(network(x)).detach()
        exit = torch.where(entropy[0] < 0.3, 0, torch.where(entropy[1] < 0.4, 1, 2))
        fired_at.append(exit)
        p = network(x).softmax(-1)[exit, torch.arange(64)].detach()
        weight = 3 * TWO_CLASS[exit]  # (N, 2, pixels): gradient of the cross-entropy of that exit alone, by hand
        gradient = ((p - F.one_hot(labels, 2))[:, None] @ weight).view_as(x)
        x = (x + 0.03 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    assert torch.equal(craft("gate_aware", thresholds=tuple(thresholds.tolist())), x)
    assert len(set(fired_at[-1].tolist())) == 3 and not torch.equal(fired_at[0], fired_at[-1])


def test_gate_aware_reads_the_points_thresholds_and_disabled_exits():
    network, (images, labels) = linear_network(TWO_CLASS), random_batch(16)
    craft = lambda **more: forms.craft("gate_aware", network, images, labels, PGD, generator=stream(), **more)  # noqa: E731
    main = forms.craft("main", network, images, labels, PGD, generator=stream())
    closed = OperatingPoint(thresholds=(math.inf, math.inf), exits=(3,))
    assert torch.equal(craft(point=closed), main)
    assert torch.equal(craft(point=OperatingPoint(exits=(3,)), thresholds=(math.inf, math.inf)), main)
    with pytest.raises(WorkbookError, match="2 values"):
        craft()
    with pytest.raises(WorkbookError, match="1 thresholds given"):
        craft(thresholds=(0.5,))
