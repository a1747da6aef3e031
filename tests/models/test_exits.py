"""Early exits: entropy, the rule, the prefix, and routing that really drops what has left."""

import math

import pytest
import torch

from lib import WorkbookError
from lib.models import exits
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source

NETWORKS = [
    ("smallcnn", dict(exits="rdi")), ("resnet38", dict(exits="rdi")), ("resnet38", dict(exits="cheap")),
    ("mobilenet_v2", dict(exits="rdi")), ("mobilenet_v2", dict(exits="released")),
    ("resnet38", dict(exits="rdi", conditioning="float")), ("resnet38", dict(exits="cheap", conditioning="oat")),
]


def test_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]))
    half, third = 0.5 * math.log(0.50001) + 0.5 * math.log(0.25001), math.log(1 / 3 + 1e-5)
    torch.testing.assert_close(exits.entropy(logits), torch.tensor([-half, -third]))
    sure = exits.entropy(torch.tensor([200.0, 0.0, 0.0]))
    assert sure.item() == pytest.approx(-math.log(1 + 1e-5), abs=1e-6)  # the formula may fall just below zero


def test_first_exit_strictly_below_its_threshold():
    entropies = torch.tensor([[0.30, 0.29, 0.9, 0.9, 0.1], [0.5, 0.1, 0.4, 0.7, 0.1], [0.0, 0.0, 0.0, 2.0, 2.0]])
    assert exits.decide(entropies, (0.30, 0.5)).tolist() == [2, 0, 1, 2, 0]
    assert exits.decide(entropies, (-math.inf, 0.5)).tolist() == [2, 1, 1, 2, 1]
    assert exits.decide(entropies[:1], ()).tolist() == [0] * 5


def test_zero_does_not_close_an_exit_but_minus_infinity_does():
    entropies = torch.tensor([[-1e-6], [1.0]])
    assert exits.decide(entropies, (0.0,)).item() == 0 and exits.decide(entropies, (-math.inf,)).item() == 1


def test_wrong_number_of_thresholds():
    with pytest.raises(WorkbookError, match="thresholds"):
        exits.decide(torch.rand(3, 4), (0.1,))
    network = small("resnet38", exits="rdi")
    for point in (OperatingPoint(), OperatingPoint(thresholds=(0.1,))):
        with pytest.raises(WorkbookError, match="thresholds"):
            exits.route(network, images(network), point)


def test_closed_exits():
    point = OperatingPoint(exits=(2,), thresholds=(0.1, 0.2, 0.3))
    assert exits.effective_thresholds(point, 4) == (-math.inf, 0.2, -math.inf)
    assert exits.effective_thresholds(OperatingPoint(), 1) == ()


@pytest.mark.parametrize("name, options", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_the_prefix_is_the_forward_pass_bit_for_bit(name, options, training):
    network = small(name, **options).train(training)
    x = images(network)
    point = OperatingPoint(noise=0.5, batch_norm=1.0) if "float" in options.values() else None
    state = {k: v.clone() for k, v in network.state_dict().items()}
    logits = network(x, point, source())
    for k in range(network.num_exits):
        network.load_state_dict(state)
        alone = exits.prefix(network, x, k, point, source())
        if name == "smallcnn" and training and k:  # other dropout masks: the heads before it drew from the stream
            continue
        assert torch.equal(alone, logits[k])


def test_a_prefix_runs_nothing_else():
    network = small("resnet38", exits="rdi")
    ran = []
    for kind in ("stages", "heads"):
        for index, module in enumerate(getattr(network, kind)):
            module.register_forward_hook(lambda *_, call=(kind, index): ran.append(call))
    exits.prefix(network, images(network), 1)
    last = network.taps[1]
    assert ran == [("stages", i) for i in range(last + 1)] + [("heads", 1)]


def lively(network, x, point=None):
    """The network in float64 with heads scaled so that logits differ by about 1 between images, and those logits."""
    network, x = network.double(), x.double()
    for head, logits in zip(network.heads, network(x, point, source()), strict=True):
        with torch.no_grad():
            head[-1].bias.copy_(-logits.mean(0) / logits.std(0).mean() + head[-1].bias / logits.std(0).mean())
            head[-1].weight.div_(logits.std(0).mean())
    return network, x, network(x, point, source())


def spread_thresholds(logits):
    """Thresholds at which some images leave at every exit."""
    return tuple(exits.entropy(logits[k]).quantile(0.35).item() for k in range(len(logits) - 1))


@pytest.mark.parametrize("name, options", NETWORKS)
@torch.no_grad()
def test_routing_equals_computing_everything_and_choosing(name, options):
    knobs = dict(noise=0.5, batch_norm=1.0) if "float" in options.values() else {}
    network = small(name, **options)
    network, x, logits = lively(network, images(network, 40), OperatingPoint(**knobs))
    thresholds = spread_thresholds(logits)
    chosen = exits.decide(exits.entropy(logits), thresholds)
    prediction, exit = exits.route(network, x, OperatingPoint(thresholds=thresholds, **knobs), source())
    assert torch.equal(exit, chosen) and len(chosen.unique()) == network.num_exits
    assert torch.equal(prediction, logits.argmax(-1)[chosen, torch.arange(40)])


@torch.no_grad()
def test_routing_one_image_is_the_same():
    network = small("resnet38", exits="cheap")
    network, x, logits = lively(network, images(network, 24))
    thresholds = (-math.inf, *spread_thresholds(logits)[1:])
    seen = set()
    for one in x.split(1):
        whole = network(one)
        prediction, exit = exits.route(network, one, OperatingPoint(thresholds=thresholds))
        assert torch.equal(exit, exits.decide(exits.entropy(whole), thresholds))
        assert torch.equal(prediction, whole[exit[0]].argmax(-1)) and prediction.shape == exit.shape == (1,)
        seen.add(int(exit))
    assert len(seen) > 3 and 0 not in seen


@torch.no_grad()
def test_routing_drops_what_has_left_and_skips_closed_heads():
    network = small("resnet38", exits="rdi")
    network, x, logits = lively(network, images(network, 24))
    thresholds = spread_thresholds(logits)
    point = OperatingPoint(exits=(2, 4), thresholds=thresholds)
    sizes = {}
    for index, head in enumerate(network.heads):
        head.register_forward_hook(lambda _, args, __, index=index: sizes.__setitem__(index, len(args[0])))
    prediction, exit = exits.route(network, x, point)
    effective = exits.effective_thresholds(point, 7)
    assert torch.equal(exit, exits.decide(exits.entropy(logits), effective))
    left = [int((exit == k).sum()) for k in range(7)]
    assert sizes == {1: 24, 3: 24 - left[1], 6: 24 - left[1] - left[3]} and left[1] and left[3]


@torch.no_grad()
def test_routing_stops_when_everything_has_left():
    network = small("resnet38", exits="rdi")
    x, ran = images(network), []
    for index, stage in enumerate(network.stages):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))
    _, exit = exits.route(network, x, OperatingPoint(thresholds=(math.inf,) * 6))
    assert not exit.any() and max(ran) == network.taps[0]


@torch.no_grad()
@pytest.mark.parametrize("knob, values", [("noise", [0.0, 1.0, 0.5, 0.2]), ("code", [0.0, 1.0, 0.2, 0.7])])
def test_routing_with_one_value_per_image(knob, values):
    conditioning = "float" if knob == "noise" else "oat"
    network = small("resnet38", exits="cheap", conditioning=conditioning)
    point = OperatingPoint(**{knob: torch.tensor(values)}, **({"draw": 1} if knob == "noise" else {}))
    network, x, logits = lively(network, images(network, 4), point)
    thresholds = spread_thresholds(logits)
    _, exit = exits.route(network, x, point.replace(thresholds=thresholds))
    assert torch.equal(exit, exits.decide(exits.entropy(logits), thresholds)) and len(exit.unique()) > 1
