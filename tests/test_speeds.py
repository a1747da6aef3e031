"""Measured time tables, exits tuned against costs, and the notebook that shows both."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.evaluation import routing, speeds
from lib.evaluation.routing import ExitCosts
from lib.models import exits
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from lib.workbook import engine_speed, exit_speed
from tests.made_atlas import made
from tests.networks import images, small

INF = math.inf

# Eight clean images, three exits. Exit 1 is right and certain on the first four; exit 2 on six; the last one on all.
ENTROPY = np.float32([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.6, 0.7], [0] * 8])
CORRECT = np.array([[1] * 4 + [0] * 4, [1] * 6 + [0] * 2, [1] * 8], bool)


def costs(*heads):
    return ExitCosts(np.array([1.0, 2.0, 3.0]), np.array([*heads, 0.0]))


@pytest.mark.parametrize("heads, expected", [
    ((0.1, 0.1), (np.float32(0.5), np.float32(0.6))),  # four leave at exit 1, two more at exit 2
    ((0.1, 2.0), (np.float32(0.5), -INF)),  # the second head costs more than it saves
    ((2.0, 0.1), (-INF, np.float32(0.6))),
    ((5.0, 5.0), (-INF, -INF)),  # leaving early never pays: every exit is closed
])  # fmt: skip
def test_the_known_optimum_is_found(heads, expected):
    assert speeds.tuned(ENTROPY[None], CORRECT[None], costs(*heads)) == expected


def test_thresholds_stop_before_the_first_loss_whatever_comes_behind():
    """Image 3 would be lost; images 4 to 6, which the last exit has wrong, would make up for it."""
    entropy, correct = np.stack([np.arange(1, 7) / 10, np.zeros(6)]), np.array([[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    cheap = ExitCosts(np.array([1.0, 9.0]), np.array([0.1, 0.0]))
    assert speeds.tuned(np.float32(entropy)[None], correct[None] == 1, cheap) == (np.float32(0.3),)


def test_attacked_views_are_judged_together_and_may_lose_the_slack():
    """Leaving early costs nothing on clean images, but one of five is then wrong under attack."""
    entropy = np.float32([[[0.1, 0.2, 0.3, 0.4, 0.5], [0] * 5]] * 2)
    correct = np.ones((2, 2, 5), bool)
    correct[1, 0, 3] = False
    table = ExitCosts(np.array([1.0, 9.0]), np.array([0.1, 0.0]))
    assert speeds.tuned(entropy, correct, table) == (np.float32(0.4),)
    assert speeds.tuned(entropy, correct, table, slack=0.2) == (INF,)
    correct[0, 1, 3] = False  # what the last exit has wrong on clean images cannot be lost under attack
    assert speeds.tuned(entropy, correct, table) == (INF,)


def recorded(seed, num_exits, count, views):
    """Random entropies and answers; what is uncertain is more often wrong."""
    source = np.random.default_rng(seed)
    entropy = source.random((views, num_exits, count)).round(2).astype(np.float32)
    right = source.random((views, num_exits, count)) > entropy * source.random()
    return entropy, right, ExitCosts(np.cumsum(source.random(num_exits) + 0.1), source.random(num_exits) * 0.3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(5, 40), st.integers(1, 4), st.sampled_from([0, 0.1]))
def test_nothing_is_lost_where_it_was_chosen(seed, num_exits, count, views, slack):
    entropy, right, table = recorded(seed, num_exits, count, views)
    found = speeds.tuned(entropy, right, table, slack)
    leaving = routing.decide(entropy, found)
    routed = routing.at_exit(right, leaving)
    assert routed[0].sum() >= right[0, -1].sum()
    assert routed.all(0).sum() >= right[:, -1].all(0).sum() - slack * count
    closed = table.cumulative([-INF] * (num_exits - 1))[-1]
    assert table.cumulative(found)[leaving[0]].mean() <= closed + 1e-12
    assert all((leaving != k).all() for k, threshold in enumerate(found) if threshold == -INF)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 30))
def test_with_one_early_exit_no_rival_threshold_is_quicker(seed, count):
    """All cuts of the images, by brute force; allowed is one whose every smaller cut loses nothing either."""
    entropy, right, table = recorded(seed, 2, count, 1)
    found = speeds.tuned(entropy, right, table, ranks=1000)
    cuts, allowed = [*np.unique(entropy[0, 0])[1:], INF], [-INF]
    for cut in cuts:
        if np.where(entropy[0, 0] < cut, right[0, 0], right[0, 1]).sum() < right[0, 1].sum():
            break
        allowed.append(cut)
    spent = [table.cumulative([t])[routing.decide(entropy[0], [t])].mean() for t in (*allowed, *found)]
    assert spent[-1] == min(spent)


def test_a_time_table_has_a_positive_time_for_every_part():
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    for subject, count in itertools.product((network, AttackView(network)), (1, 6)):
        found = speeds.time_table(subject, images(network, count), passes=3, warm_up=1)
        assert found.trunk.shape == found.heads.shape == (7,)
        assert (np.diff(found.trunk, prepend=0) > 0).all() and (found.heads > 0).all()
        assert found.cumulative([-INF] * 6)[-1] == pytest.approx(found.trunk[-1] + found.heads[-1])
        assert found.cumulative([1.0] * 6)[-1] == pytest.approx(found.trunk[-1] + found.heads.sum())


def test_a_time_table_runs_every_part_once_a_pass_and_tells_nothing_to_the_network():
    network, calls = small("smallcnn", exits="rdi"), []
    for kind, modules in (("stage", network.stages), ("head", network.heads)):
        for module in modules:
            module.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    speeds.time_table(network, images(network, 2), passes=4, warm_up=1)
    assert calls.count("head") == 5 * 3 and calls.count("stage") == 5 * len(network.stages)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_other_images_leave_in_the_same_shares_by_the_same_exits():
    entropy = np.random.default_rng(0).random((4, 200)).astype(np.float32)
    leaving = np.repeat([0, 2, 3], [50, 25, 25])
    found = speeds.imitated(entropy, (0.3, 0.2, 0.9), leaving)
    assert np.bincount(routing.decide(entropy, found)).tolist() == [100, 0, 50, 50]
    assert found[1] == -1  # open, so that its head is run, though nobody leaves
    assert speeds.imitated(entropy, (0.3, -INF, 0.9), leaving)[1] == -INF


# --- the notebook on cost and speed ----------------------------------------------------------------------------------


def step_rows(label, ratio, counted, passes):
    common = {"defence": label, "images": 32, "steps": 4, "device": "cpu", "threads": 1}
    return [common | {"metric": "step_seconds", "value": ratio / 10, "low": ratio / 11, "high": ratio / 9},
            common | {"metric": "step_ratio", "value": ratio, "low": 0.95 * ratio, "high": 1.05 * ratio},
            common | {"metric": "step_ratio_predicted", "value": counted}, common | {"metric": "step_passes",
                                                                                   "value": passes}]


def test_steps_are_told_beside_their_passes():
    methods = [step_rows(label, ratio, counted, 3 * counted) for label, ratio, counted in zip(
        engine_speed.DEFENCES, (1, 4, 5, 20), (1, 4.1, 8, 19), strict=True)]
    ways = [step_rows(label, ratio, 1, 60) for label, ratio in zip(
        engine_speed.WAYS, (1, 0.7, 0.97, 0.5, 1.4), strict=True)]
    found = {"methods": sum(methods, []), "ways": sum(ways, [])}
    table = engine_speed.step_table(found["methods"])
    assert table.loc["max-average", "times the first"] == "20.00 (19.00–21.00)"
    assert table.loc["standard", "ms per image and pass"] == "1.042"  # 100 ms / 3 passes / 32 images
    said = [line["verdict"] for line in engine_speed.verdicts(found)]
    assert said == ["held", "too small to tell", "held", "did not hold", "held", "did not hold", "held"]
    assert len(engine_speed.step_figure(found, "made").data) == 4


def test_exits_are_told_beside_the_plain_network():
    right = np.array([[True] * 4, [True, True, False, False]])
    took = [{"metric": "speed_up", "exit": "plain", "value": 1.25, "low": 1.0, "high": 2.0, "images": 96}]
    one = exit_speed.Routed(3, np.array([[0, 0, 1, 2]] * 2), right, ~right, 0.7, took)
    assert one.time() == pytest.approx((20, 0, 50)) and one.gain(False) == (100, 100, 100)
    assert one.gain(True)[0] == 50
    table = exit_speed.routed_table({("tuned by measured time", 32): one})
    assert table.loc[("batch 32", "tuned by measured time")].tolist() == [
        "50 25 25", "30.0", "+20.0 (+0.0 to +50.0)", "+100.0 (+100.0 to +100.0)",
        exit_speed.interval(*one.gain(True))]
    assert [line["verdict"] for line in exit_speed.verdicts({("tuned by measured time", 32): one})] == ["held"] * 3
    assert exit_speed.saved({("a", 1): one}) == {"a": {"MACs, batch 1": (pytest.approx(30), None, None),
                                                       "time, batch 1": pytest.approx((20, 0, 50))}}


def test_parts_are_rated_by_their_multiplications():
    atlas = made(["clean"], np.zeros((1, 3, 4)), np.zeros((1, 3, 4)), [0] * 4, {
        "trunk": [4_000_000, 10_000_000, 10_001_000], "cumulative": [6_000_000, 12_001_000, 12_003_000],
        "paper": [1, 2, 3]}, dataset="digits", data_variant="embedded")  # fmt: skip
    clocked = exit_speed.Clock(None, None, None, {1: ExitCosts(np.array([2.0, 3.0, 3.5]), np.array([1.0, 0.5, 0.1]))})
    table = exit_speed.stages(atlas, clocked)
    assert table["µs per M MAC, batch 1"].tolist() == ["500", "167", "–", "500", "–", "–"]
    assert exit_speed.stage_figure(atlas, clocked, "made").data[0].y.tolist() == pytest.approx([500, 1000 / 6])


def test_routed_inference_at_tuned_thresholds_leaves_where_the_record_says():
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    x = images(network, 60)
    with torch.no_grad():
        logits = network(x)
    entropy = exits.entropy(logits).numpy()
    right = (logits.argmax(-1) == logits[-1].argmax(-1)).numpy()  # "right" = as the last exit answers
    found = speeds.tuned(entropy[None], right[None], speeds.time_table(network, x[:20], passes=3))
    prediction, leaving = exits.route(network, x, OperatingPoint(thresholds=found))
    assert leaving.tolist() == routing.decide(entropy, found).tolist()
    assert torch.equal(prediction, logits[-1].argmax(-1))  # so nothing may be lost
