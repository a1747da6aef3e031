"""Exits and thresholds tuned against costs: what must not be lost, by hand, by brute force and on other images."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lib
from lib.evaluation import latency, routing, tuning
from lib.evaluation.record import Record, Validation
from lib.evaluation.routing import ExitCosts
from lib.models import exits
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small

INF = math.inf

# Eight clean images, three exits. Exit 1 is right and certain on the first four, exit 2 on six, the last one on all.
ENTROPY = np.float32([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.6, 0.7], [0] * 8])
CORRECT = np.array([[1] * 4 + [0] * 4, [1] * 6 + [0] * 2, [1] * 8], bool)


def costs(*heads):
    return ExitCosts(np.array([1.0, 2.0, 3.0]), np.array([*heads, 0.0]))


def of(entropy, correct):
    """The same images as clean ones and as attacked ones, in a single view."""
    return Validation(entropy, correct), Validation(entropy[None], correct[None])


@pytest.mark.parametrize("heads, expected", [
    ((0.1, 0.1), (np.float32(0.5), np.float32(0.5))),  # four leave at exit 1, two more at exit 2
    ((0.1, 2.0), (np.float32(0.5), -INF)),  # the second head costs more than it saves
    ((2.0, 0.1), (-INF, np.float32(0.4))),  # 0.5 and 0.6 would cut in the same place
    ((5.0, 5.0), (-INF, -INF)),  # leaving early never pays: every exit is closed
])
def test_the_known_optimum_is_found(heads, expected):
    assert tuning.tuned(*of(ENTROPY, CORRECT), costs(*heads)) == expected


def test_few_may_be_lost_even_where_others_make_up_for_it():
    """Of ten images the third is lost by leaving early and three later ones, wrong at the last exit, are won."""
    entropy = np.float32([np.arange(1, 11) / 10, np.zeros(10)])
    correct = np.array([[1, 1, 0, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]], bool)
    cheap = ExitCosts(np.array([1.0, 9.0]), np.array([0.1, 0.0]))
    assert tuning.tuned(*of(entropy, correct), cheap) == (np.float32(0.3),)
    assert tuning.tuned(*of(entropy, correct), cheap, slack=0.1) == (np.float32(0.8),)  # one of ten, and three won
    assert tuning.tuned(*of(entropy, correct), cheap, slack=0.2) == (np.float32(0.9),)


def test_attacked_views_are_judged_together_and_may_lose_the_slack():
    """Leaving early costs nothing on clean images, but one of five is then wrong under attack."""
    clean = Validation(np.float32([[0.1, 0.2, 0.3, 0.4, 0.5], [0] * 5]), np.ones((2, 5), bool))
    attacked = Validation(np.stack([clean.entropy] * 2), np.ones((2, 2, 5), bool))
    attacked.correct[1, 0, 3] = False
    table = ExitCosts(np.array([1.0, 9.0]), np.array([0.1, 0.0]))
    assert tuning.tuned(clean, attacked, table) == (np.float32(0.4),)
    assert tuning.tuned(clean, attacked, table, slack=0.2) == (INF,)
    attacked.correct[0, 1, 3] = False  # what the last exit has wrong in another view cannot be lost
    assert tuning.tuned(clean, attacked, table) == (INF,)


def recorded(seed, num_exits, count, views):
    """Random entropies and answers; what is uncertain is more often wrong."""
    source = np.random.default_rng(seed)

    def some(*shape):
        entropy = source.random((*shape, num_exits, count)).round(2).astype(np.float32)
        return Validation(entropy, source.random(entropy.shape) > entropy * source.random())

    return some(), some(views), ExitCosts(np.cumsum(source.random(num_exits) + 0.1), source.random(num_exits) * 0.3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(5, 40), st.integers(1, 4), st.sampled_from([0, 0.1]))
def test_nothing_is_lost_where_it_was_chosen(seed, num_exits, count, views, slack):
    clean, attacked, table = recorded(seed, num_exits, count, views)
    found = tuning.tuned(clean, attacked, table, slack)
    leaving = routing.decide(clean.entropy, found)
    right, last = routing.at_exit(clean.correct, leaving), clean.correct[-1]
    assert right.sum() >= last.sum() and (last & ~right).sum() <= slack * count
    worst = routing.at_exit(attacked.correct, routing.decide(attacked.entropy, found)).all(0)
    assert worst.sum() >= attacked.correct[:, -1].all(0).sum() - slack * count
    closed = table.cumulative([-INF] * (num_exits - 1))[-1]
    assert table.cumulative(found)[leaving].mean() <= closed + 1e-12
    assert len({threshold for threshold in found if threshold > -INF}) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(5, 30))
def test_no_rival_set_with_one_threshold_is_quicker(seed, num_exits, count):
    """All sets and all cuts, by brute force, of those that lose no image at all."""
    clean, attacked, table = recorded(seed, num_exits, count, 2)
    found = tuning.tuned(clean, attacked, table, slack=0, ranks=1000)

    def spent(thresholds):
        return table.cumulative(thresholds)[routing.decide(clean.entropy, thresholds)].mean()

    for opened in itertools.product((-INF, 1), repeat=num_exits - 1):
        for cut in [*np.unique(clean.entropy[:-1]), INF]:
            rival = [cut if one == 1 else -INF for one in opened]
            right = routing.at_exit(clean.correct, routing.decide(clean.entropy, rival))
            if (clean.correct[-1] & ~right).any():
                break  # a greater threshold is not tried either
            worst = routing.at_exit(attacked.correct, routing.decide(attacked.entropy, rival)).all(0)
            if worst.sum() >= attacked.correct[:, -1].all(0).sum():
                assert spent(found) <= spent(rival) + 1e-12


def test_choosing_and_judging_images_are_apart():
    """Whatever the judges answer, the choice stays; whatever the choosers answer, the judgement does."""
    record = Record.load(lib.ATLASES / "rdi_resnet38_released.safetensors")
    chosen = tuning.tuned_on(record, record.exit_costs())
    leaving, clean, worst = tuning.judged(record, chosen)
    record.right[:, :, 1::2] = 0
    record.right[0] = 0  # the clean view
    assert tuning.tuned_on(record, record.exit_costs()) == chosen
    again = Record.load(lib.ATLASES / "rdi_resnet38_released.safetensors")
    again.right[1:, :, ::2] = 0
    assert np.array_equal(tuning.judged(again, chosen)[2], worst) and worst.shape == (2, 508)
    assert clean.shape == (2, 1017) and leaving.shape == (1017,)


def test_the_released_network_loses_nothing_by_leaving_when_told_by_multiplications():
    """On images that did not choose: as many clean ones right, more under all attacks, a fifth of the MACs saved."""
    record = Record.load(lib.ATLASES / "rdi_resnet38_released.safetensors")
    chosen = tuning.tuned_on(record, record.exit_costs())
    leaving, clean, worst = tuning.judged(record, chosen)
    assert clean[0].sum() >= clean[1].sum() and worst[0].sum() >= worst[1].sum()
    assert record.exit_costs().cumulative(chosen)[leaving].mean() < 0.8 * record.costs()["trunk"][-1]


def test_routed_inference_at_tuned_thresholds_leaves_where_the_record_says():
    network = small("resnet38", exits="rdi", input_shape=(3, 16, 16))
    x = images(network, 60)
    with torch.no_grad():
        logits = network(x)
    entropy = exits.entropy(logits).numpy()
    right = (logits.argmax(-1) == logits[-1].argmax(-1)).numpy()  # "right" = as the last exit answers
    found = tuning.tuned(*of(entropy, right), latency.time_table(network, x[:20], passes=3))
    prediction, leaving = exits.route(network, x, OperatingPoint(thresholds=found))
    assert leaving.tolist() == routing.decide(entropy, found).tolist()
    assert torch.equal(prediction, logits[-1].argmax(-1))  # so nothing may be lost


def test_other_images_leave_in_the_same_shares_by_the_same_exits():
    entropy = np.random.default_rng(0).random((4, 200)).astype(np.float32)
    leaving = np.repeat([0, 2, 3], [50, 25, 25])
    found = tuning.imitated(entropy, (0.3, 0.2, 0.9), leaving)
    assert np.bincount(routing.decide(entropy, found)).tolist() == [100, 0, 50, 50]
    assert found[1] == -1  # open, so that its head is run, though nobody leaves
    assert tuning.imitated(entropy, (0.3, -INF, 0.9), leaving)[1] == -INF


def test_what_more_speed_costs_on_images_that_did_not_choose():
    """The record with many clean images: nothing is lost where nothing may be, and each speed-up has its price."""
    close = Record.load(lib.ATLASES / "repeats" / "cheap_resnet38-cifar10_jpeg-dual_bn_slim-laptop-close.safetensors")
    macs, (entropy, correct) = close.exit_costs(), close.held()
    tried = [tuning.tuned_on(close, macs), *(routing.spend_at_most(macs.trunk[-1] / x, entropy, correct, macs)
                                             for x in (1.5, 2.0))]
    kept = [routing.at_exit(correct, routing.decide(entropy, one)).mean() for one in tried]
    judged = [ours.mean() - last.mean() for _, (ours, last), _ in (tuning.judged(close, one) for one in tried)]
    assert kept[0] >= correct[-1].mean() and judged[0] > -0.005
    assert kept[1] > kept[2] and judged[0] > judged[1] > judged[2]
