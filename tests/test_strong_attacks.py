"""Other attackers on the same points: who they are, and how their verdicts are read."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.data import Split
from lib.evaluation import recording
from lib.workbook import strong_attacks
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from tests.networks import images, small

COLOUR = SimpleNamespace(threat=dict(epsilon=8 / 255, step_size=2 / 255, train_steps=7, steps=20), name="made",
                         variant="by hand")


def test_threats_are_the_papers_in_both_readings():
    found = strong_attacks.threats(COLOUR, "paper")
    assert found["PGD-7"].step_size * 255 == pytest.approx(10 / 7)
    assert found["PGD-20, step by formula"].step_size * 255 == pytest.approx(0.5)
    assert found["PGD-20, step of training"].step_size == found["PGD-7"].step_size
    assert found["PGD-20, step ε/4"].step_size * 255 == pytest.approx(2)
    assert found["CW∞, PGD-20"].loss == "margin" and found["FGSM"].algorithm == "fgsm"
    assert {t.steps for t in strong_attacks.threats(COLOUR, "quick").values()} == {1, 7, 10}


@pytest.fixture(scope="module")
def members():
    """A network that is right on every clean image at its λ = 1, under three of the threats."""
    network = small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8))
    pictures = Split((images(network, 12) * 255).byte(), torch.zeros(12, dtype=torch.int64))
    member = Member("dual_bn", Trained("resnet20-made-dual_bn-quick", network, ""), None)
    with torch.inference_mode():
        labels = network(pictures.floats()[0], member.point(1.0))[-1].argmax(-1).clone()
    pictures = Split(pictures.images, labels)
    threats = dict(list(strong_attacks.threats(COLOUR, "quick").items())[:3])
    made = recording.record(network, pictures, strong_attacks.plan(threats)(network), dataset="made",
                       data_variant="by hand")
    return {"dual_bn": Member("dual_bn", member.trained, made)}, threats, pictures


def test_the_worst_of_all_is_per_image(members):
    found, threats, _ = members
    member = found["dual_bn"]
    at = member.point(1.0)
    every = np.stack([strong_attacks.right(member, at, t) for t in threats.values()])
    assert np.array_equal(strong_attacks.worst(member, at, threats), every.min(0))
    table = strong_attacks.table(found, threats)
    assert table.shape == (2, 5) and table.loc[("control (dual BN, no noise)", "BN_A"), "clean"] == "100.0"
    assert len(strong_attacks.figure(found, threats, "made").data[0].x) == 4


def test_autoattack_is_told_the_point_and_says_what_ran(members):
    pytest.importorskip("pyautoattack")
    found, _, pictures = members
    settings = SimpleNamespace(preset="quick", seed=0, notebook="24_x", weights="train")
    dataset = SimpleNamespace(**vars(COLOUR), test=pictures)
    lines = strong_attacks.auto(found, settings, dataset, 4)
    assert [(line["version"], line["point"]) for line in lines] == [("standard", "BN_A")]
    assert "not AutoAttack" in lines[0]["attacks"] and np.array_equal(lines[0]["verdict"], lines[0]["judged"])
    assert len(strong_attacks.auto_rows(lines, settings, dataset)) == 2
    assert strong_attacks.auto_table(lines).shape == (1, 6)


def test_a_network_that_hides_its_gradients_is_found_out(members):
    found, _, pictures = members
    settings = SimpleNamespace(preset="quick", seed=0, images=12)
    dataset = SimpleNamespace(**vars(COLOUR), test=pictures)
    honest = strong_attacks.soundness(found, settings, dataset)["control (dual BN, no noise)"]
    assert len(honest) == 5 and honest.iloc[0] == "yes (0)" and honest.iloc[1].startswith("yes")
    masked = copy.deepcopy(found["dual_bn"].network)
    with torch.no_grad():
        masked.heads[-1][-1].weight.mul_(1e6)  # every answer as before, every probability 0 or 1
    member = dataclasses.replace(found["dual_bn"], trained=Trained("made", masked, ""))
    hidden = strong_attacks.soundness({"dual_bn": member}, settings, dataset)["control (dual BN, no noise)"]
    assert hidden.iloc[1].startswith("NO") and hidden.iloc[2].startswith("NO")
