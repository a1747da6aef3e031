"""Exits and thresholds from recorded entropies."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lib import WorkbookError
from lib.evaluation import routing
from lib.models import exits

examples = settings(max_examples=40, deadline=None)
FINITE = st.floats(0, 2.5, width=32)


def entropies(fewest=1):
    shapes = st.tuples(st.integers(fewest, 5), st.integers(1, 30))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=FINITE))


def thresholds_for(entropy, data):
    one = st.one_of(FINITE, st.sampled_from([-math.inf, math.inf]))
    return data.draw(st.lists(one, min_size=len(entropy) - 1, max_size=len(entropy) - 1))


def test_an_image_leaves_only_strictly_below_the_threshold():
    entropy = np.float32([[0.3, 0.5, 0.7, 0.7], [0.1, 0.1, 0.2, 0.1], [9, 9, 9, 9]])
    assert routing.decide(entropy, (0.5, 0.2)).tolist() == [0, 1, 2, 1]


def test_a_closed_exit_lets_nobody_leave_and_an_open_one_everybody():
    entropy = np.float32([[-1e-5, 0.5], [0.1, 0.9], [0, 0]])
    assert routing.decide(entropy, (-math.inf, -math.inf)).tolist() == [2, 2]
    assert routing.decide(entropy, (-math.inf, math.inf)).tolist() == [1, 1]
    assert routing.decide(entropy, (0, math.inf)).tolist() == [0, 1]  # a certain image's entropy is just below 0


def test_the_prediction_is_that_of_the_exit_taken():
    prediction = np.int16([[1, 2, 3], [4, 5, 6]])
    leaving = routing.decide(np.float32([[0, 1, 0], [1, 1, 1]]), (0.5,))
    chosen = routing.at_exit(prediction, leaving)
    assert leaving.tolist() == [0, 1, 0] and chosen.tolist() == [1, 5, 3]


def test_one_exit_needs_no_threshold():
    assert routing.decide(np.float32([[1, 2]]), ()).tolist() == [0, 0]


@examples
@given(entropies(), st.data())
def test_recorded_and_running_networks_decide_alike(entropy, data):
    thresholds = thresholds_for(entropy, data)
    theirs = exits.decide(torch.from_numpy(entropy), thresholds)
    assert routing.decide(entropy, thresholds).tolist() == theirs.tolist()


def test_a_threshold_is_compared_in_single_precision_like_the_network_does():
    entropy = np.float32([[0.1], [0.0]])  # the float32 nearest to 0.1 is above it
    for threshold in (0.1, float(np.float32(0.1)), 0.1 + 1e-12):
        theirs = exits.decide(torch.from_numpy(entropy), (threshold,))
        assert routing.decide(entropy, (threshold,)).tolist() == theirs.tolist() == [1]


@examples
@given(entropies(2), st.data())
def test_raising_a_threshold_never_delays_an_exit(entropy, data):
    thresholds = thresholds_for(entropy, data)
    k, by = data.draw(st.integers(0, len(thresholds) - 1)), data.draw(st.floats(0, 3))
    before = routing.decide(entropy, thresholds)
    thresholds[k] += by
    assert (routing.decide(entropy, thresholds) <= before).all()


@examples
@given(entropies(), st.data())
def test_views_are_routed_one_by_one(entropy, data):
    thresholds = thresholds_for(entropy, data)
    both = routing.decide(np.stack([entropy, entropy[:, ::-1]]), thresholds)
    alone = routing.decide(entropy, thresholds)
    assert both.tolist() == [alone.tolist(), alone[::-1].tolist()]


@pytest.mark.parametrize("thresholds", [(), (0.1,), (0.1, 0.2, 0.3)])
def test_a_wrong_number_of_thresholds_is_refused(thresholds):
    with pytest.raises(WorkbookError, match=f"{len(thresholds)} thresholds for 3 exits; give 2"):
        routing.decide(np.zeros((3, 4), np.float32), thresholds)


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(WorkbookError, match="closed exit has threshold -inf"):
        routing.decide(np.zeros((2, 4), np.float32), (math.nan,))


def by_hand(entropy):
    """The released recipe, image by image: sort who is left, take the entropy at rank N/(K+1), drop those before."""
    exits_, images = entropy.shape
    left, found = list(range(images)), []
    for k in range(exits_ - 1):
        left.sort(key=lambda i, k=k: entropy[k, i])
        found.append(entropy[k, left[images // exits_]])
        left = left[images // exits_:]
    return found


@examples
@given(st.integers(2, 7), st.integers(10, 60), st.integers(0, 1000))
def test_equal_shares_follow_the_released_recipe(exits_, images, seed):
    entropy = np.random.default_rng(seed).permuted(np.arange(exits_ * images) / 50).reshape(exits_, images)
    entropy = entropy.astype(np.float32)
    thresholds = routing.calibrate(entropy)
    assert np.float32(thresholds).tolist() == by_hand(entropy)
    counts = np.bincount(routing.decide(entropy, thresholds), minlength=exits_)
    assert (counts[:-1] == images // exits_).all()


def test_shares_can_be_chosen_and_a_share_of_nothing_closes_the_exit():
    entropy = np.random.default_rng(0).random((4, 200)).astype(np.float32)
    thresholds = routing.calibrate(entropy, [0.1, 0, 0.5])
    assert thresholds[1] == -math.inf
    assert np.bincount(routing.decide(entropy, thresholds)).tolist() == [20, 0, 100, 80]
    assert np.bincount(routing.decide(entropy, routing.calibrate(entropy, 0.25))).tolist() == [50, 50, 50, 50]
    assert routing.calibrate(entropy[:2], [1.0]) == (math.inf,)


def test_images_of_equal_entropy_leave_together():
    certain = np.float32([[0] * 60 + list(np.linspace(0.1, 1, 40)), np.linspace(0, 1, 100)])
    assert np.bincount(routing.decide(certain, routing.calibrate(certain, 0.5))).tolist() == [60, 40]
    assert np.bincount(routing.decide(certain, routing.calibrate(certain, 0.1)), minlength=2).tolist() == [0, 100]


@pytest.mark.parametrize("shares", [[0.5], [0.5, 0.6], [-0.1, 0.2], [0.2, math.nan]])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(WorkbookError, match="shares"):
        routing.calibrate(np.ones((3, 10), np.float32), shares)


def test_too_few_held_out_images_are_refused():
    with pytest.raises(WorkbookError, match="2 held-out images are too few to calibrate 3 exits"):
        routing.calibrate(np.ones((3, 2), np.float32))


def test_the_released_shifts_turn_the_raw_thresholds_into_the_published_ones():
    """Raw thresholds of the released weights and what the released code makes of them (measured once, fact sheet)."""
    raw = [0.475, 0.649, 0.674, 0.881, 1.136, 1.344]
    entropy = np.full((7, 70), 9, np.float32)
    for k, value in enumerate(raw):  # ten images may leave at each exit, the next one in line sits at the raw value
        entropy[k, 10 * k:10 * k + 10] = np.linspace(0, value - 0.01, 10)
        entropy[k, 10 * k + 10] = value
    assert np.allclose(routing.calibrate(entropy), raw)
    assert np.allclose(routing.released(entropy, "resnet38"), [0.325, 0.449, 0.424, 0.831, 1.086, 1.344])
    small = routing.calibrate(entropy[[0, 1, 6]])
    assert np.allclose(routing.released(entropy[[0, 1, 6]], "smallcnn"), [3 * small[0], 4 * small[1]])
    with pytest.raises(WorkbookError, match="not for resnet38 with 3"):
        routing.released(entropy[:3], "resnet38")


def test_cumulative_costs_leave_out_the_heads_of_closed_exits():
    costs = routing.ExitCosts(np.array([10, 20, 30]), np.array([3, 5, 0]))
    assert costs.cumulative((0.1, 0.2))[[0, 1, 2]].tolist() == [13, 28, 38]
    assert costs.cumulative((-math.inf, 0.2))[[1, 2]].tolist() == [25, 35]
    assert costs.cumulative((-math.inf, -math.inf))[2] == 30


def problem(images, exits_, seed):
    """Easy images are certain early; later exits are righter."""
    source = np.random.default_rng(seed)
    hard = source.normal(size=images)
    entropy = np.exp(hard - 0.5 * np.arange(exits_)[:, None] + 0.5 * source.normal(size=(exits_, images)))
    right = source.random((exits_, images)) < 1 / (1 + np.exp(1.3 * hard - 1 - 0.5 * np.arange(exits_)[:, None]))
    costs = routing.ExitCosts(np.linspace(1, 8, exits_) * 1e6, np.append(np.full(exits_ - 1, 3e5), 0))
    return entropy.astype(np.float32), right, costs


def outcome(thresholds, entropy, right, costs):
    leaving = routing.decide(entropy, thresholds)
    return routing.at_exit(right, leaving).mean(), costs.cumulative(thresholds)[leaving].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.2])
def test_a_budget_is_kept_and_spent_as_well_as_an_exhaustive_grid_would(seed, share):
    entropy, right, costs = problem(400, 3, seed)
    budget = share * costs.trunk[-1]
    accuracy, spent = outcome(routing.spend_at_most(budget, entropy, right, costs), entropy, right, costs)
    assert spent <= budget
    grid = [[-math.inf, *np.quantile(e, np.linspace(0, 1, 31)), math.inf] for e in entropy[:2]]
    rivals = [outcome(t, entropy, right, costs) for t in itertools.product(*grid)]
    assert accuracy >= max(a for a, cost in rivals if cost <= budget) - 0.005


@examples
@given(st.integers(2, 5), st.floats(0.2, 1.3), st.integers(0, 10_000))
def test_no_budget_is_ever_overspent(exits_, share, seed):
    entropy, right, costs = problem(60, exits_, seed)
    entropy = entropy.round(1)  # many ties
    budget = max(share * costs.trunk[-1], (costs.trunk + costs.heads).min())
    _, spent = outcome(routing.spend_at_most(budget, entropy, right, costs), entropy, right, costs)
    assert spent <= budget * (1 + 1e-9)


def test_a_budget_below_the_cheapest_exit_is_refused():
    entropy, right, costs = problem(60, 3, 0)
    with pytest.raises(WorkbookError, match="a budget of 1,000 MACs is below the cheapest exit's 1,300,000"):
        routing.spend_at_most(1000, entropy, right, costs)
