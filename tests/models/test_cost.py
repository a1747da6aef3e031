"""Both cost columns against the published tables, the counts made by hand and a second counting by formula."""

import pytest
import torch
from torch import nn

from lib.models import zoo
from lib.models.cost import MEBI, cost, second_bank
from lib.models.layers import Conv2d, Linear
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source

MNIST = dict(input_shape=(1, 28, 28))
RDI = [  # paper convention, cumulative convolutions (both / 2^20), cumulative convolutions and linear layers (/ 10^6)
    ("smallcnn", dict(exits="rdi", **MNIST), (0.8185, 7.0060, 9.2560), (0.8185, 7.6388, 9.8888),
     (1.0154, 8.5291, 11.1352)),
    ("resnet38", dict(exits="rdi"), (16.7969, 30.2969, 36.5469, 50.0469, 61.4219, 74.9219, 79.4219),
     (16.7969, 37.6719, 51.2969, 65.9219, 78.4219, 91.9219, 96.4219),
     (17.6131, 39.5025, 53.7896, 69.1254, 82.2332, 96.3896, 101.1089)),
    ("mobilenet_v2", dict(exits="rdi"), (17.313, 44.094, 86.920), (17.313, 45.298, 88.124), None),
    ("mobilenet_v2", dict(exits="released"), (7.941, 22.906, 30.125, 36.547, 51.160, 67.906, 86.920), None, None),
]
CUT = {  # what the authors print: cut, not rounded, to two decimals
    ("smallcnn", "rdi"): (0.81, 7.00, 9.25),
    ("resnet38", "rdi"): (16.79, 30.29, 36.54, 50.04, 61.42, 74.92, 79.42),
}
GIGA = [
    ("resnet34", {}, 1.1594), ("resnet34", dict(classes=100), 1.1594),
    ("resnet34", dict(classes=200, input_shape=(3, 64, 64)), 4.6377),
    ("resnet34", dict(input_shape=(3, 96, 96)), 10.4346),
    ("resnet34", dict(width_multiplier=0.75), 0.6525), ("resnet34", dict(width_multiplier=0.5), 0.2903),
    ("resnet34", dict(width_multiplier=0.25), 0.0728),
    ("resnet34", dict(conditioning="oat", code_size=1), 1.1695), ("resnet34", dict(conditioning="oat"), 1.1714),
    ("wrn16_8", {}, 1.5481), ("wrn16_8", dict(input_shape=(3, 64, 64)), 6.193),
    ("wrn16_8", dict(input_shape=(3, 96, 96)), 13.933),
    ("wrn16_8", dict(conditioning="oat", code_size=1), 1.5526), ("wrn16_8", dict(conditioning="oat"), 1.5534),
    ("wrn40_2", {}, 0.3276), ("wrn40_2", dict(input_shape=(3, 64, 64)), 1.3104),
    ("wrn40_2", dict(input_shape=(3, 96, 96)), 2.9484),
    ("wrn40_2", dict(conditioning="oat", code_size=1, input_shape=(3, 96, 96)), 2.9494),
    ("wrn40_2", dict(conditioning="oat", input_shape=(3, 96, 96)), 2.9500), ("resnet20", {}, 0.04055),
]
PRUNED = [  # inner widths of the released code's pruned ResNet-38s and their published MFlops
    (((15, 16, 16, 13, 16, 14), (32, 32, 31, 31, 27, 25), (64, 63, 59, 34, 20, 51)), 69.227),
    (((15, 12, 13, 13, 15, 10), (32, 28, 27, 18, 13, 17), (62, 62, 42, 32, 25, 50)), 58.574),
    (((16, 15, 10, 10, 11, 9), (30, 25, 15, 10, 13, 12), (56, 53, 36, 33, 13, 51)), 50.383),
    (((13, 12, 12, 13, 10, 7), (32, 25, 21, 17, 12, 13), (61, 53, 31, 21, 18, 32)), 49.381),
    (((12, 13, 9, 7, 12, 6), (31, 23, 20, 12, 10, 7), (56, 43, 26, 10, 19, 29)), 42.543),
]


@pytest.mark.parametrize("name, options, paper, convolutions, everything", RDI)
def test_exit_costs(name, options, paper, convolutions, everything):
    counted = cost(zoo.build(name, **options))
    assert [e.paper_mflops for e in counted.exits] == pytest.approx(paper, abs=6e-4)
    assert [e.paper_macs / MEBI for e in counted.exits] == [e.paper_mflops for e in counted.exits]
    if convolutions:
        assert [e.cumulative_conv_macs / MEBI for e in counted.exits] == pytest.approx(convolutions, abs=6e-4)
    if everything:
        assert [e.cumulative_macs / 1e6 for e in counted.exits] == pytest.approx(everything, abs=6e-5)
    if cut := CUT.get((name, options["exits"])):
        assert tuple(int(100 * e.paper_mflops) / 100 for e in counted.exits) == cut
    assert counted.macs == counted.exits[-1].cumulative_macs


@pytest.mark.parametrize("name, options, printed", [("smallcnn", MNIST, 9.25), ("resnet38", {}, 79.42),
                                                    ("mobilenet_v2", {}, 86.91)])
def test_plain_networks_of_table_1(name, options, printed):
    assert int(100 * cost(zoo.build(name, **options)).exits[0].paper_mflops) / 100 == printed


def test_exact_counts():
    assert cost(zoo.build("resnet38")).macs == 83_280_512
    counted = cost(zoo.build("mobilenet_v2"))
    assert counted.exits[0].paper_macs == 91_142_144 and counted.macs == 91_142_144 + 12_800
    ours = cost(zoo.build("mobilenet_v2", exits="rdi"))
    assert ours.exits[0].paper_macs == 16_891_904 + 1_262_592 and ours.exits[1].paper_macs == 46_235_648


@pytest.mark.parametrize("name", ["resnet38", "mobilenet_v2"])
def test_cheap_heads_cost_less_than_two_percent(name):
    plain, cheap = cost(zoo.build(name)), cost(zoo.build(name, exits="cheap"))
    assert len(cheap.exits) == 7
    assert plain.macs < cheap.macs < 1.02 * plain.macs
    assert cheap.exits[-1].cumulative_conv_macs < 1.02 * plain.exits[0].paper_macs


def test_heads_of_our_mobilenet_cost_less_than_two_percent_those_released_do_not():
    plain = cost(zoo.build("mobilenet_v2")).macs
    assert cost(zoo.build("mobilenet_v2", exits="rdi")).macs < 1.02 * plain
    assert cost(zoo.build("mobilenet_v2", exits="released")).macs > 1.07 * plain


@pytest.mark.parametrize("name, options, giga", GIGA, ids=lambda v: str(v).replace(" ", ""))
def test_macs_of_the_float_networks(name, options, giga):
    assert cost(zoo.build(name, **options)).macs / 1e9 == pytest.approx(giga, abs=1e-4 if giga < 5 else 1e-3)


@pytest.mark.parametrize("inner, mflops", PRUNED)
def test_pruned_networks_of_figure_6(inner, mflops):
    network = zoo.build("resnet38", inner=inner)
    assert cost(network).exits[0].paper_mflops == pytest.approx(mflops, abs=6e-4)
    scaled = zoo.build("resnet38", inner=inner, channel_scales=True)
    assert cost(scaled).macs == cost(network).macs
    assert cost(scaled).parameters - cost(network).parameters == sum(map(sum, inner))


def by_formula(network, x, point=None):
    """(convolution, linear) MACs from the shapes that pass through: C_in/groups * C_out * k * k * H * W."""
    totals = {Conv2d: 0, Linear: 0}

    def convolution(layer, args, y):
        totals[Conv2d] += args[0].shape[1] // layer_groups(layer, args[0]) * layer.weight.shape[2] ** 2 * y[0].numel()

    def linear(layer, args, y):
        totals[Linear] += args[0].shape[1] * y[0].numel()

    def layer_groups(layer, x):
        return 1 if layer.groups == 1 else x.shape[1]

    hooks = [m.register_forward_hook(convolution if isinstance(m, Conv2d) else linear)
             for m in network.modules() if isinstance(m, (Conv2d, Linear))]
    with torch.no_grad():
        network(x, point, source())
    for hook in hooks:
        hook.remove()
    return totals[Conv2d], totals[Linear]


@pytest.mark.parametrize("name, options, point", [
    ("smallcnn", dict(exits="rdi"), {}), ("resnet38", dict(exits="rdi"), {}), ("resnet38", dict(exits="cheap"), {}),
    ("mobilenet_v2", dict(exits="released"), {}), ("resnet34", dict(conditioning="oat"), dict(code=0.7)),
    ("wrn16_8", dict(conditioning="float"), dict(noise=1.0)), ("resnet20", dict(widths=(1.0, 0.5)), dict(width=0.5)),
    ("mobilenet_v2", dict(widths=(1.0, 0.5)), dict(width=0.5)),
])
def test_counter_against_formulas(name, options, point):
    network = small(name, **options)
    point = OperatingPoint(**point)
    convolution, linear = by_formula(network, images(network, 1), point)
    counted = cost(network, point)
    assert counted.exits[-1].cumulative_conv_macs == convolution and counted.macs == convolution + linear


def test_disabled_exits_are_not_charged():
    network = zoo.build("resnet38", exits="rdi")
    everything, some = cost(network), cost(network, OperatingPoint(exits=(5,)))
    heads = 2 * 7_733_248 + 2 * 1_179_648
    assert everything.exits[-1].cumulative_conv_macs - some.exits[-1].cumulative_conv_macs == heads
    assert [e.paper_macs for e in some.exits] == [e.paper_macs for e in everything.exits]


def test_counting_leaves_the_network_as_it_was():
    network = small("wrn16_8").train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    cost(network)
    assert network.training and all(m.training for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules() if isinstance(m, nn.Module))


def test_wrn40_2_is_counted_as_in_the_literature():
    def millions(**options):
        network = zoo.build("wrn40_2", input_shape=(3, 96, 96), **options)
        counted = cost(network)
        return [round(n / 1e6, 3) for n in (counted.parameters, counted.parameters - second_bank(network))] + [
            round(counted.macs / 1e9, 3)]

    assert millions(conditioning="oat")[0] == 3.886 and millions(conditioning="oat", code_size=1)[:2] == [3.232, 3.227]
    assert millions()[:2] == [2.244, 2.244] and millions(conditioning="float")[1:] == [2.244, 2.948]
