"""Building by name: configurations that rebuild, knobs that are there, and one clear sentence for everything else."""

import json
import math

import pytest
import torch

from lib import WorkbookError
from lib.models import zoo
from lib.models.layers import Chain
from lib.models.parts import Backbone, Tap
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source

MNIST = dict(input_shape=(1, 28, 28))


@pytest.mark.parametrize("name, options", [
    ("resnet38", dict(exits="cheap", widths=(0.5, 1.0), width_heads=True)), ("smallcnn", dict(exits="rdi")),
    ("resnet20", dict(conditioning="pni", noise_granularity="channel", normalise="cifar10")),
    ("wrn16_8", dict(conditioning="oat", codes=(0.0, 1.0), code_size=4)),
])
def test_the_configuration_rebuilds_the_network(name, options):
    network = small(name, **options)
    again = zoo.build(**json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    assert again.config == json.loads(json.dumps(network.config)) and again.knobs == network.knobs
    x = images(network)
    assert torch.equal(again(x, generator=source()), network(x, generator=source()))


KNOBS = [
    ("resnet20", {}, set()),
    ("resnet20", dict(conditioning="dual_bn"), {"batch_norm"}),
    ("resnet20", dict(conditioning="float"), {"noise", "draw", "batch_norm"}),
    ("resnet20", dict(conditioning="pni"), {"noise", "draw"}),
    ("resnet20", dict(conditioning="oat"), {"code"}),
    ("resnet20", dict(conditioning="float", widths=(1.0, 0.5)), {"noise", "draw", "batch_norm", "width"}),
    ("resnet38", dict(exits="rdi"), {"exits", "thresholds"}),
]
VALUES = dict(noise=0.5, batch_norm=1.0, draw=1, code=0.2, width=1.0, exits=(1,), thresholds=(0.5,) * 6)


@pytest.mark.parametrize("name, options, knobs", KNOBS)
def test_a_knob_that_is_not_there_is_an_error(name, options, knobs):
    network = small(name, **options)
    assert network.knobs == knobs
    for knob, value in VALUES.items():
        point = OperatingPoint(**{knob: value})
        if knob in knobs:
            network(images(network, 2), point, source())
        else:
            with pytest.raises(WorkbookError, match=knob):
                network(images(network, 2), point, source())


@pytest.mark.parametrize("options, point", [
    (dict(conditioning="oat"), dict(code=0.5)), (dict(conditioning="oat"), dict(code=torch.tensor([0.0, 0.3]))),
    (dict(conditioning="oat"), dict(code=math.nan)), (dict(widths=(1.0, 0.5)), dict(width=0.75)),
])
def test_values_that_were_not_trained(options, point):
    network = small("resnet20", **options)
    with pytest.raises(WorkbookError, match="trained"):
        network(images(network, 2), OperatingPoint(**point))


@pytest.mark.parametrize("point", [dict(exits=(0,)), dict(exits=(8,)), dict(thresholds=(0.5,) * 7)])
def test_exits_that_are_not_there(point):
    network = small("resnet38", exits="rdi")
    with pytest.raises(WorkbookError, match="exits"):
        network.check_point(OperatingPoint(**point))


@pytest.mark.parametrize("name, options, word", [
    ("resnet83", {}, "resnet38"), ("resnet20", dict(exits="rdi"), "exits"), ("wrn16_8", dict(exits="rdi"), "exits"),
    ("resnet38", dict(exits="released"), "cheap"), ("mobilenet_v2", dict(exits="all"), "released"),
    ("smallcnn", dict(exits="cheap"), "rdi"), ("resnet38", dict(inner_widths=1), "inner_widths"),
    ("resnet20", dict(conditioning="flote"), "float"), ("resnet20", dict(noise_granularity="row"), "channel"),
    ("resnet20", dict(widths=(0.5,)), "1.0"), ("resnet20", dict(widths=(1.0, 0.3)), "width"),
    ("resnet20", dict(conditioning="oat", codes=(0.2, 1.0)), "lambda 0"),
    ("resnet20", dict(conditioning="oat", code_size=3), "code_size"),
    ("resnet20", dict(normalise="imagenet"), "cifar10"), ("smallcnn", dict(conditioning="float", **MNIST), "none"),
    ("smallcnn", dict(input_shape=(1, 16, 16)), "20x20"), ("resnet38", dict(input_shape=(3, 4, 4)), "8x8"),
    *(("resnet20", {f"{of}_multiplier": by}, "multipliers") for of in ("width", "depth") for by in (0, -1, math.nan)),
    ("resnet20", dict(input_shape=(3, 32)), "no shape"), ("resnet20", dict(classes=2.5), "whole number"),
])
def test_what_cannot_be_built(name, options, word):
    with pytest.raises(WorkbookError, match=word):
        zoo.build(name, **options)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 3 * 32 * 32)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(WorkbookError, match="shape"):
        small("resnet20")(torch.rand(shape))


def test_a_network_of_your_own():
    """A registered backbone gets noise, banks, widths and exits without knowing of them."""

    def mine(parts, *, exits, classes, input_shape, depth):
        stage = Chain(*parts.conv_norm(input_shape[0], 8, 3, slim_in=False))
        return Backbone([stage], [Tap(0, parts.classifier(8, classes))])

    zoo.register("mine", mine)
    try:
        network = zoo.build("mine", conditioning="float", widths=(1.0, 0.5)).eval()
        point = OperatingPoint(noise=1.0, batch_norm=1.0, width=0.5, draw=0)
        assert network(torch.rand(2, 3, 32, 32), point).shape == (1, 2, 10)
    finally:
        del zoo.BACKBONES[f"{__name__}:mine"]


def test_pni_normalises_inside_and_always_runs_noisy():
    network = small("resnet20", conditioning="pni", normalise="cifar10")
    plain = zoo.build(**{**network.config, "normalise": None}).eval()
    plain.load_state_dict({k.replace("stages.0.1", "stages.0.0").replace("stages.0.2", "stages.0.1"): v
                           for k, v in network.state_dict().items() if not k.startswith("stages.0.0.")})
    x, mean, deviation = images(network), torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])
    outside = (255 * x - mean[:, None, None]) / deviation[:, None, None]
    point = OperatingPoint(draw=1)
    torch.testing.assert_close(network(x, point), plain(outside, point), rtol=1e-4, atol=1e-4)
    assert torch.equal(network(x, point), network(x, OperatingPoint(noise=1.0, draw=1)))
