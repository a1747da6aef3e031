"""Every attack reaches the optimum that a linear network has in closed form; other libraries' PGD agrees with ours."""

import math

import pytest
import torch

from lib import CHECKPOINTS, WorkbookError, checkpoints, data, randomness
from lib.attacks import autoattack, forms, steps, strong
from lib.attacks.decision import Decision
from lib.attacks.steps import Threat
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch, worst_case
from tests.helpers.networks import images, small

torch.set_num_threads(1)
EPSILON = 0.08


def known(n=48, exits=1):
    """A linear network, images it is right on, and which of them (N,) stay right at the worst point of the ball."""
    shape = (1, 4, 4)
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    x, _ = random_batch(n, shape)
    bias = -(weight @ x.flatten(1).mean(0))
    network = linear_network(torch.stack([weight * (k + 1) / exits for k in range(exits)]),
                             torch.stack([bias * (k + 1) / exits for k in range(exits)]), shape)
    y = network(x)[-1].argmax(-1)
    right = network(worst_case(x, y, weight, EPSILON))[-1].argmax(-1) == y
    assert 0.2 < right.float().mean() < 0.8
    return network, x, y, right


@pytest.mark.parametrize("algorithm", ["pgd", "fgsm"])
@pytest.mark.parametrize("loss", steps.LOSSES)
def test_every_form_reaches_the_optimum(algorithm, loss):
    network, x, y, right = known(exits=2)
    threat = Threat(EPSILON, EPSILON / 4, 12, algorithm=algorithm, loss=loss)
    for form in forms.names(2):
        made = forms.craft(form, network, x, y, threat, generator=randomness.generator(0, form), thresholds=(0.4,))
        assert torch.equal(network(made)[-1].argmax(-1) == y, right), form


@pytest.mark.parametrize("point", [None, OperatingPoint(thresholds=(0.6,))])
def test_every_attack_of_the_suite_reaches_the_optimum_alone(point, monkeypatch):
    """Both exits lean on the same weights, so that where an image leaves does not change its worst point."""
    pytest.importorskip("pyautoattack")
    network, x, y, right = known(24, exits=1 if point is None else 2)
    suite = strong.names(network, point)
    reroutes = () if point is None else ("reroute 1", "reroute 2")
    again = [f"margin {n}" for n in range(3, 10 - len(reroutes))]
    assert suite == ("gate_aware", "margin", "margin 2", *reroutes, *again, "apgd-ce", "fab-t", "square")
    for name in suite:
        monkeypatch.setattr(strong, "names", lambda *_, name=name: (name,))
        ((said, made, left),) = strong.attacked(network, x, y, Threat(EPSILON, 0.01, 1), point=point)
        assert said == name and (made - x).abs().max() <= EPSILON + 1e-6 and 0 <= made.min() <= made.max() <= 1
        left = left > 0
        assert torch.equal(Decision(network, point)(made).argmax(-1) == y, left)
        if name.startswith("reroute"):
            assert not (right & ~left).any()
        else:
            assert torch.equal(left, right), name


def test_square_finds_what_gradients_find():
    pytest.importorskip("pyautoattack")
    network, x, y, right = known(16)
    found = autoattack.run(network, x, y, EPSILON, attacks=("square",), queries=1000)
    assert not (right & ~found.robust).any() and (found.robust == right).float().mean() > 0.9


def test_later_attacks_meet_only_the_images_that_are_left_in_batches_of_them(monkeypatch):
    pytest.importorskip("pyautoattack")
    network, x, y, _ = known(24)
    met, craft = [], strong.craft
    monkeypatch.setattr(strong, "craft", lambda name, n, images, *rest: (met.append(len(images)),
                                                                        craft(name, n, images, *rest))[1])
    monkeypatch.setattr(strong, "names", lambda *_: ("gate_aware", "margin"))
    (_, first, left), (_, second, after) = strong.attacked(network, x, y, Threat(EPSILON, 0.01, 1), batch_size=20)
    count = int(left.sum())
    assert met == [20, 4, count] and count < 20
    assert torch.equal(first[left == 0], second[left == 0]) and (after <= left).all()


def test_a_killed_suite_takes_up_its_finished_attacks(tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    network, x, y, _ = known(12)
    monkeypatch.setattr(strong, "names", lambda *_: ("gate_aware", "margin", "apgd-ce"))

    def whole(folder, epsilon=EPSILON):
        return list(strong.attacked(network, x, y, Threat(epsilon, 0.01, 1), folder=folder))

    expected, crafted, craft = whole(None), [], strong.craft
    monkeypatch.setattr(strong, "craft", lambda name, *rest: (crafted.append(name), craft(name, *rest))[1])
    begun = strong.attacked(network, x, y, Threat(EPSILON, 0.01, 1), folder=tmp_path)
    next(begun), next(begun)
    again = whole(tmp_path)
    assert crafted == ["gate_aware", "margin", "apgd-ce"]
    for one, other in zip(expected, again, strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])
    with pytest.raises(WorkbookError, match="another run"):
        whole(tmp_path, 0.01)


def test_every_network_meets_as_many_attacks_and_none_towards_a_closed_exit():
    plain, exits = small("smallcnn"), small("smallcnn", exits="rdi")
    at, closed = (OperatingPoint(thresholds=t) for t in ((0.5, 0.5), (0.5, -math.inf)))
    assert len(strong.names(plain)) == len(strong.names(exits, at)) == len(strong.names(exits, closed)) == 24
    assert [n for n in strong.names(exits, closed) if "reroute" in n] == ["reroute 1", "reroute 3"]
    assert not any("reroute" in n for n in strong.names(exits, OperatingPoint(thresholds=(-math.inf, -math.inf))))


def test_fresh_noise_is_judged_over_its_draws_and_the_worst_images_are_kept(monkeypatch):
    pytest.importorskip("pyautoattack")
    network = checkpoints.load(CHECKPOINTS / "resnet20-digits-float-laptop.safetensors").network
    monkeypatch.setattr(strong, "names", lambda *_: ("gate_aware", "margin"))
    monkeypatch.setattr(strong, "STEPS", 5)
    x, y = data.load("digits", shape=network.input_shape).test[:24].floats()
    at = OperatingPoint(noise=1.0, batch_norm=1.0)
    before = torch.full((24,), strong.DRAWS)
    for _, made, right in strong.attacked(network, x, y, Threat(0.15, 0.01, 1), point=at):
        counted = sum((network(made, at.replace(draw=d))[-1].argmax(-1) == y).int() for d in range(strong.DRAWS))
        assert torch.equal(right, counted) and (right <= before).all()
        before = right
    assert ((right > 0) & (right < strong.DRAWS)).any()


def test_the_best_iterate_is_kept_and_never_worse_than_the_last():
    network = small("smallcnn", exits="rdi")
    x = images(network, 12)
    y = network(x)[-1].argmax(-1)
    threat = Threat(0.1, 0.08, 7)

    def margin(z):
        return steps.lead(z, y)

    kept = steps.climb(lambda x: network(x)[-1], margin, margin, x, threat, randomness.generator(0, "a"))
    last = steps.ascend(lambda x: margin(network(x)[-1]).sum(), x, threat, randomness.generator(0, "a"))
    assert (margin(network(kept)[-1]) >= margin(network(last)[-1]) - 1e-6).all()
    assert (kept - x).abs().max() <= 0.1 + 1e-6


def test_rerouting_breaks_what_the_gates_hide():
    """The last exit cannot be broken; the first is wrong but unsure, and surer only where the last is surer too."""
    pytest.importorskip("pyautoattack")
    ones = torch.ones(4)
    network = linear_network(torch.stack([torch.stack([10 * ones, 0 * ones]), torch.stack([0 * ones, 5 * ones])]),
                             [[-19.0, 0.0], [0.0, 0.0]])
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.ones(3, dtype=torch.int64)
    at = OperatingPoint(thresholds=(0.1,))
    assert torch.equal(Decision(network, at)(x).argmax(-1), y)
    left = {name: bool(right.all()) or int(right.sum()) for name, _, right in strong.attacked(
        network, x, y, Threat(0.1, 0.01, 1), point=at)}
    assert left["gate_aware"] is True and left["margin 2"] is True and left["reroute 1"] == 0


def test_dlr_by_hand():
    logits, labels = torch.tensor([[5.0, 3.0, 1.0, 0.0], [2.0, 7.0, 4.0, -1.0]]), torch.tensor([0, 3])
    torch.testing.assert_close(strong.dlr(logits, labels), torch.tensor([-2 / 4, 8 / 5]))


@pytest.fixture(scope="module")
def undefended():
    """A trained network's last exit as a plain module, 100 images, and what our PGD leaves right."""
    network = checkpoints.load(CHECKPOINTS / "rdi_smallcnn-digits-max_average-laptop.safetensors").network
    x, y = data.load("digits", shape=network.input_shape).test[:100].floats()
    threat = Threat(0.15, 0.03, 20)
    made = forms.craft("main", network, x, y, threat, generator=randomness.generator(0, "ours"))
    return Decision(network).eval(), x, y, threat, (network(made)[-1].argmax(-1) == y).float().mean().item()


def test_foolboxs_pgd_agrees(undefended):
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    model, x, y, threat, ours = undefended
    attack = foolbox.attacks.LinfPGD(abs_stepsize=threat.step_size, steps=threat.steps, random_start=True)
    torch.manual_seed(0)
    _, made, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=threat.epsilon)
    assert abs((model(made).argmax(-1) == y).float().mean().item() - ours) <= 0.01


def test_torchattacks_pgd_agrees(undefended):
    torchattacks = pytest.importorskip("torchattacks", exc_type=ImportError)
    model, x, y, threat, ours = undefended
    torch.manual_seed(0)
    made = torchattacks.PGD(model, eps=threat.epsilon, alpha=threat.step_size, steps=threat.steps)(x, y)
    assert abs((model(made).argmax(-1) == y).float().mean().item() - ours) <= 0.01
