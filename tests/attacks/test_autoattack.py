"""The AutoAttack adapter: a closed-form worst case, one operating point after the other, and nothing left behind."""

import sys

import pytest
import torch

from lib import WorkbookError
from lib.attacks import autoattack
from lib.attacks.decision import Decision
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch, worst_case
from tests.helpers.networks import images, small

pytest.importorskip("pyautoattack")
FEW = dict(iterations=8, queries=20, batch_size=8)


def four_class_network(seed=0):
    """Two classes that matter and two that never win (AutoAttack's DLR loss asks for more than two)."""
    weights = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed))
    weights[:, 2:] = 0
    return linear_network(weights, [[0.0, 0.0, -50.0, -50.0]]), weights[0]


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.3])
def test_it_breaks_exactly_what_can_be_broken(epsilon):
    network, weights = four_class_network()
    x, y = random_batch(24)
    found = autoattack.run(network, x, y, epsilon, attacks=("apgd-ce",), **FEW | {"iterations": 30})
    worst = network(worst_case(x, y, weights[:2], epsilon))[-1].argmax(-1)
    assert torch.equal(found.robust, worst == y) and found.robust.any() and not found.robust.all()
    assert (found.adversarial - x).abs().max() <= epsilon + 1e-6
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    assert torch.equal(network(found.adversarial)[-1].argmax(-1) == y, found.robust)


def test_it_stands_where_it_is_told_and_leaves_nothing_behind():
    network = small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8)).train()
    x = images(network, 6)
    labels = {b: network.eval()(x, OperatingPoint(batch_norm=b))[-1].argmax(-1) for b in (0.0, 1.0)}
    network.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tracer = sys.gettrace()
    for bank, said in labels.items():
        found = autoattack.run(network, x, said, 1e-6, attacks=("apgd-ce",), point=OperatingPoint(batch_norm=bank),
                               **FEW | {"iterations": 2})
        assert found.robust.all()  # all were right at this point, and the budget is next to nothing
    assert torch.equal(torch.rand(3), expected) and network.training and sys.gettrace() is tracer


def test_noisy_points_are_for_rand_and_frozen_ones_for_standard():
    network = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    x, noisy = images(network, 4), OperatingPoint(noise=1.0, batch_norm=1.0)
    y = network(x, noisy.replace(draw=0))[-1].argmax(-1)
    with pytest.raises(WorkbookError, match="fresh noise"):
        autoattack.run(network, x, y, 0.1, point=noisy)
    first = autoattack.run(network, x, y, 0.05, version="rand", attacks=("apgd-ce",), point=noisy, **FEW)
    again = autoattack.run(network, x, y, 0.05, version="rand", attacks=("apgd-ce",), point=noisy, **FEW)
    assert torch.equal(first.adversarial, again.adversarial)
    frozen = autoattack.run(network, x, y, 1e-6, attacks=("apgd-ce",), point=noisy.replace(draw=0), **FEW)
    assert frozen.robust.all() and not any("random" in flag for flag in frozen.flags)


def test_every_attack_of_the_standard_version_runs():
    network, _ = four_class_network(1)
    x, y = random_batch(6)
    alone = autoattack.run(network, x, y, 0.05, attacks=("apgd-ce",), **FEW)
    found = autoattack.run(network, x, y, 0.05, **FEW)
    assert not (found.robust & ~alone.robust).any()  # more attacks, never more robust


def test_unknown_versions_and_attacks_are_refused():
    network, _ = four_class_network()
    x, y = random_batch(2)
    for wrong in (dict(version="plus"), dict(attacks=("fab",)), dict(version="rand", attacks=("square",))):
        with pytest.raises(WorkbookError, match="it has standard"):
            autoattack.run(network, x, y, 0.1, **wrong)


def test_the_published_size_is_the_package_own():
    network, _ = four_class_network()
    made = autoattack._attacker(network, 0.1, "standard", 0, "cpu")
    before = {name: dict(vars(getattr(made, name))) for name in ("apgd", "apgd_targeted", "fab", "square")}
    autoattack._resize(made, 100, 5000, 10)
    assert before == {name: vars(getattr(made, name)) for name in before}


def test_apgd_checks_its_step_after_these_iterations(monkeypatch):
    from pyautoattack.autopgd_base import APGDAttack

    checked, theirs = [], APGDAttack.check_oscillation
    monkeypatch.setattr(APGDAttack, "check_oscillation", lambda self, losses, last, *rest, **options: (
        checked.append(last + 1), theirs(self, losses, last, *rest, **options))[1])
    network, _ = four_class_network()
    x, _ = random_batch(4)
    autoattack.run(network, x, network(x)[-1].argmax(-1), 1e-3, attacks=("apgd-ce",))
    assert checked == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_dlr_loss_on_hand_made_logits():
    """-(z_y - max other) / (largest - third largest); above 0 where the answer is wrong."""
    made = autoattack._attacker(torch.nn.Identity(), 0.1, "rand", 0, "cpu")
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0], [2.0, 7.0, 4.0, -1.0]])
    labels = torch.tensor([0, 1, 3])
    expected = torch.tensor([-(5 - 3) / (5 - 1), -(3 - 5) / (5 - 1), -(-1 - 7) / (7 - 2)])
    torch.testing.assert_close(made.apgd.dlr_loss(logits, labels), expected)


@pytest.mark.parametrize("what, point", [(None, OperatingPoint(thresholds=(0.4,))), (1, None), ("mean", None)])
def test_any_decision_is_attacked_to_its_closed_form_worst_case(what, point):
    """Both exits lean on the same weights (the first half as sure), so that every decision has one worst image."""
    _, weights = four_class_network()
    network = linear_network(torch.stack([0.5 * weights, weights]), [[0.0, 0.0, -50.0, -50.0]] * 2)
    x, y = random_batch(24)
    found = autoattack.run(network, x, y, 0.1, attacks=("apgd-ce",), point=point, decision=what,
                           **FEW | {"iterations": 30})
    worst = network(worst_case(x, y, weights[:2], 0.1))[-1].argmax(-1)
    assert torch.equal(found.robust, worst == y) and found.robust.any() and not found.robust.all()


def test_what_it_cannot_honour_is_refused():
    network, _ = four_class_network()
    exits = linear_network(torch.randn(2, 4, 4), None)
    x, y = random_batch(2)
    with pytest.raises(WorkbookError, match="no knob"):
        autoattack.run(network, x, y, 0.1, point=OperatingPoint(thresholds=()))
    with pytest.raises(WorkbookError, match="reads no thresholds"):
        autoattack.run(exits, x, y, 0.1, point=OperatingPoint(thresholds=(0.1,)), decision=2)


def test_a_noisy_mean_over_draws_takes_the_standard_version():
    network = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    at = OperatingPoint(noise=1.0, batch_norm=1.0)
    x = images(network, 4)
    with torch.no_grad():
        y = Decision(network, at, draws=3)(x).argmax(-1)
    found = autoattack.run(network, x, y, 1e-6, attacks=("apgd-ce",), point=at, draws=3, **FEW)
    assert found.robust.all()


def test_a_killed_run_goes_on_and_another_is_refused(tmp_path, monkeypatch):
    network, _ = four_class_network(1)
    x, y = random_batch(12)
    settings = dict(epsilon=0.05, attacks=("apgd-ce", "square"), **FEW)
    whole = autoattack.run(network, x, y, **settings)
    ran, attacker = [], autoattack._attacker

    def dies(*args):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(1)
        return attacker(*args)

    monkeypatch.setattr(autoattack, "_attacker", dies)
    with pytest.raises(KeyboardInterrupt):
        autoattack.run(network, x, y, folder=tmp_path, **settings)
    ran.clear()
    again = autoattack.run(network, x, y, folder=tmp_path, **settings)
    assert len(ran) == 1  # only what was left
    assert torch.equal(again.adversarial, whole.adversarial) and torch.equal(again.robust, whole.robust)
    for other in (dict(settings, epsilon=0.1), dict(settings, seed=1)):
        with pytest.raises(WorkbookError, match="another run"):
            autoattack.run(network, x, y, folder=tmp_path, **other)
    with pytest.raises(WorkbookError, match="another run"):
        autoattack.run(four_class_network(2)[0], x, y, folder=tmp_path, **settings)


def test_images_are_judged_over_frozen_draws():
    network = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    x, noisy, quiet = images(network, 6), OperatingPoint(noise=1.0, batch_norm=1.0), OperatingPoint(noise=0.0)
    labels = network(x, quiet)[-1].argmax(-1)
    assert autoattack.judged(network, x, labels, quiet).tolist() == [1.0] * 6
    each = [(network(x, noisy.replace(draw=d))[-1].argmax(-1) == labels).double() for d in range(4)]
    assert autoattack.judged(network, x, labels, noisy, draws=4).tolist() == torch.stack(each).mean(0).tolist()
