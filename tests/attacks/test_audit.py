"""The audit names what is broken and leaves the sound alone; the decision it judges is the one asked for."""

import json
import math

import pytest
import torch

from lib import CHECKPOINTS, WorkbookError, __main__, checkpoints, data, evaluating
from lib.attacks import audit as audits
from lib.attacks.audit import audit, step_checks
from lib.attacks.decision import Decision
from lib.attacks.steps import Threat
from lib.models.exits import route
from lib.operating_point import OperatingPoint
from tests.helpers.broken import BROKEN, broken
from tests.helpers.linear_oracle import linear_network, random_batch, worst_case
from tests.helpers.networks import images, small

torch.set_num_threads(1)
SHIPPED = CHECKPOINTS / "rdi_resnet38-digits-max_average-laptop.safetensors"
SMALL = CHECKPOINTS / "rdi_smallcnn-digits-max_average-laptop.safetensors"


@pytest.fixture(scope="module")
def sound():
    """(a trained, defended network with batch norm and exits; images; labels)."""
    network = checkpoints.load(SHIPPED).network
    return network, *data.load("digits", shape=network.input_shape).test[:24].floats()


@pytest.mark.parametrize("how", BROKEN)
def test_broken_networks_are_named(sound, how):
    network, x, y = sound
    found = audit(broken(network, how), x, y, point=OperatingPoint(thresholds=network.paper_thresholds))
    assert how in found["flags"] and set(found["flags"]) <= {how, "zero gradients"}
    assert not found["checks"][how]["passed"] and found["images"] == 24


def test_a_sound_network_is_not_flagged_and_is_left_as_it_was():
    network = checkpoints.load(SMALL).network
    x, y = data.load("digits", shape=network.input_shape).test[:24].floats()
    before = checkpoints.digest(network.state_dict())
    found = audit(network, x, y, Threat(0.15, 0.03, 10), OperatingPoint(thresholds=network.paper_thresholds))
    assert found["flags"] == [] and len(found["checks"]) == 11
    assert checkpoints.digest(network.state_dict()) == before and not network.training


def test_fresh_noise_that_is_a_knob_is_no_disease():
    network = small("resnet20", conditioning="float", input_shape=(3, 16, 16))
    x = images(network, 8)
    at = OperatingPoint(noise=1.0, batch_norm=1.0)
    flags = audit(network, x, network(x, at.replace(draw=0))[-1].argmax(-1), Threat(0.05, 0.02, 3), at)["flags"]
    assert not set(flags) & {*BROKEN, "zero gradients"}


@pytest.mark.parametrize("threat, said", [
    (Threat(0.15, 0.001, 20), ["steps cannot reach the budget"]),
    (Threat(8 / 255, 2, 10), ["steps jump over the budget"]),
    (Threat(8 / 255, 2 / 255, 4), []), (Threat(0.1, algorithm="fgsm"), []), (Threat(0.0, 0.1, 1), [])])
def test_steps_that_do_not_fit_the_budget_are_said(threat, said):
    assert [name for name, check in step_checks(threat).items() if not check.passed] == said


def test_one_image_of_a_handful_proves_nothing(monkeypatch):
    network = checkpoints.load(SMALL).network
    x, y = data.load("digits", shape=network.input_shape).test[:16].floats()
    for lost, said in ((1, False), (2, True)):
        monkeypatch.setattr(audits, "_under", lambda left, attacks, lost=lost: torch.arange(len(left.labels)) >= lost)
        found = audits.audit(network, x, y, Threat(0.15, 0.03, 10), right=torch.ones(16, dtype=bool), others=False)
        assert ("one step breaks more" in found["flags"]) == said


def test_a_weak_attack_is_said_to_be_weak():
    weights = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(2))
    x, _ = random_batch(48, (1, 4, 4))
    network = linear_network(weights, -(weights[0] @ x.flatten(1).mean(0))[None], (1, 4, 4))
    y = network(x)[-1].argmax(-1)
    assert (network(worst_case(x, y, weights[0], 0.1))[-1].argmax(-1) == y).float().mean() < 0.5
    assert audit(network, x, y, Threat(0.1, 0.03, 8))["flags"] == []
    weak = audit(network, x, y, Threat(0.1, 1e-4, 8))["flags"]
    assert {"steps cannot reach the budget", "other attacks break more", "one step breaks more"} <= set(weak)


def test_evaluate_says_it_beside_the_number(tmp_path, capsys):
    path, out = tmp_path / "sure.safetensors", tmp_path / "x.json"
    network = checkpoints.load(SMALL).network
    with torch.no_grad():
        for head in network.heads:
            head[-1].weight *= 1e4
            head[-1].bias *= 1e4
    checkpoints.save(path, network)
    common = "--dataset digits --device cpu --attack clean,main --images 12"

    def evaluate(text):
        evaluating.evaluate(__main__.parse(["evaluate", *text.split(), "--json", str(out)]))
        return json.loads(out.read_text())["audit"], capsys.readouterr().out

    found, printed = evaluate(f"{path} {common} --steps 2 --step-size 0.1")
    assert "saturated logits" in found["flags"] and "!" in printed and "saturated logits" in printed
    found, printed = evaluate(f"{SMALL} {common} --steps 3 --step-size 0.001")
    assert "steps cannot reach the budget" in found["flags"] and "steps cannot reach the budget" in printed


def test_epsilon_alone_scales_the_step(sound):
    dataset = data.load("digits")
    args = __main__.parse("evaluate x --dataset digits --epsilon 0.3".split())
    assert evaluating.find_threat(args, dataset) == Threat(0.3, dataset.threat["step_size"] * 0.3 / 0.15, 20)
    args = __main__.parse("evaluate x --dataset digits --epsilon 0.3 --step-size 0.01".split())
    assert evaluating.find_threat(args, dataset).step_size == 0.01


def test_the_decision_is_the_one_asked_for(sound):
    network, x, _ = sound
    at = OperatingPoint(thresholds=tuple(0.5 for _ in range(network.num_exits - 1)))
    with torch.no_grad():
        every = network(x)
        assert torch.equal(Decision(network, at)(x).argmax(-1), route(network, x, at)[0])
        closed = at.replace(exits=(2,))
        assert torch.equal(Decision(network, closed)(x).argmax(-1), route(network, x, closed)[0])
        assert torch.equal(Decision(network)(x), every[-1]) and torch.equal(Decision(network, None, 2)(x), every[1])
        torch.testing.assert_close(Decision(network, None, "mean")(x).exp(), every.softmax(-1).mean(0))
        noisy, at = small("resnet20", conditioning="float"), OperatingPoint(noise=1.0, batch_norm=1.0)
        x = images(noisy)
        expected = torch.stack([noisy(x, at.replace(draw=d))[-1].softmax(-1) for d in range(3)]).mean(0)
        torch.testing.assert_close(Decision(noisy, at, draws=3)(x).exp(), expected)


def test_decisions_that_cannot_be_honoured_are_refused(sound):
    network, at = sound[0], OperatingPoint(thresholds=(0.1,) * 6)
    for point, what, draws, match in ((at, 3, 1, "reads no thresholds"), (at, "mean", 1, "reads no thresholds"),
                                      (OperatingPoint(exits=(2,)), None, 1, "thresholds"), (None, 9, 1, "from 1 to 7"),
                                      (None, "median", 1, "unknown decision"), (at, None, 5, "all the same")):
        with pytest.raises(WorkbookError, match=match):
            Decision(network, point, what, draws=draws)
    assert math.isinf(Decision(network, at.replace(exits=(1,))).thresholds[1])
