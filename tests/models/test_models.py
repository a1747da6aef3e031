"""Every network: its published size, its start and its structure against a plain second writing."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import randomness
from lib.models import zoo
from lib.models.layers import FiLM, Weighted
from lib.models.mobilenet_v2 import InvertedResidual
from lib.models.network import Network
from lib.models.parts import Parts
from lib.models.resnet import WideBlock
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source
from tests.helpers.plain_networks import PlainSmallCNN

MNIST = dict(input_shape=(1, 28, 28))
LARGE = dict(input_shape=(3, 96, 96))
PARAMETERS = [  # counted independently of this code
    ("smallcnn", MNIST, 312_202),
    ("smallcnn", dict(exits="rdi", **MNIST), 836_846),
    ("resnet38", {}, 564_122),
    ("resnet38", dict(exits="rdi"), 692_310),
    ("mobilenet_v2", {}, 2_706_522 - 409_600),  # the released count holds a convolution that is never used
    ("mobilenet_v2", dict(exits="released"), 2_753_398 - 409_600),
    ("resnet34", {}, 21_282_122),
    ("resnet34", dict(conditioning="dual_bn"), 21_299_146),
    ("resnet34", dict(conditioning="float"), 21_299_183),
    ("resnet34", dict(classes=100), 21_328_292),
    ("resnet34", dict(classes=100, conditioning="dual_bn"), 21_345_316),
    ("resnet34", dict(classes=200, input_shape=(3, 64, 64)), 21_379_592),
    ("resnet34", dict(classes=200, input_shape=(3, 64, 64), conditioning="dual_bn"), 21_396_616),
    ("resnet34", dict(width_multiplier=0.75), 11_975_674),
    ("resnet34", dict(width_multiplier=0.5), 5_326_506),
    ("resnet34", dict(width_multiplier=0.25), 1_334_618),
    ("resnet34", dict(conditioning="oat", code_size=1), 31_421_002),
    ("resnet34", dict(conditioning="oat"), 33_355_466),
    ("resnet34", dict(conditioning="oat", widths=(0.5, 1.0)), 33_372_490),
    ("resnet34", dict(conditioning="oat", widths=(0.5, 1.0), code_size=1), 31_438_026),
    ("resnet34", dict(conditioning="oat", widths=(0.5, 0.75, 1.0)), 33_398_026),
    ("resnet34", dict(conditioning="oat", widths=(0.5, 0.75, 1.0), code_size=1), 31_463_562),
    ("wrn16_8", {}, 10_961_370),
    ("wrn16_8", dict(conditioning="dual_bn"), 10_968_570),
    ("wrn16_8", dict(conditioning="oat", code_size=1), 15_444_570),
    ("wrn16_8", dict(conditioning="oat"), 16_228_922),
    ("wrn40_2", LARGE, 2_243_546),
    ("wrn40_2", dict(conditioning="dual_bn", **LARGE), 2_248_954),
    ("wrn40_2", dict(conditioning="oat", code_size=1, **LARGE), 3_232_090),
    ("wrn40_2", dict(conditioning="oat", **LARGE), 3_886_394),
    ("resnet20", {}, 269_722),
    ("resnet20", dict(conditioning="dual_bn"), 271_098),
]


@pytest.mark.parametrize("name, options, expected", PARAMETERS, ids=lambda v: str(v).replace(" ", ""))
def test_parameters(name, options, expected):
    assert sum(p.numel() for p in zoo.build(name, **options).parameters()) == expected


@pytest.mark.parametrize("name, options, noisy, modulated", [
    ("resnet34", {}, 37, 33), ("wrn16_8", {}, 17, 12), ("wrn40_2", LARGE, 41, 36), ("resnet20", {}, 20, 19),
])
def test_noise_and_modulation_sites(name, options, noisy, modulated):
    floating = zoo.build(name, conditioning="float", width_multiplier=0.125, **options)
    assert sum(isinstance(m, Weighted) and m.alpha is not None for m in floating.modules()) == noisy
    oat = zoo.build(name, conditioning="oat", width_multiplier=0.125, code_size=1, **options)
    assert sum(isinstance(m, FiLM) for m in oat.modules()) == modulated
    norms = [m for m in oat.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * {"resnet34": 36, "wrn16_8": 13, "wrn40_2": 37, "resnet20": 19}[name]


# --- structure ---

def test_smallcnn_is_the_plain_network():
    ours, plain = zoo.build("smallcnn", exits="rdi", **MNIST).eval(), PlainSmallCNN().eval()
    places = {"convs": [ours.stages[0][0], ours.stages[1][0], ours.stages[1][3], ours.stages[2][0]]}
    for name, head in zip(("branch1", "branch2", "main"), ours.heads, strict=True):
        places[name] = [layer for layer in head if isinstance(layer, Weighted)]
    for name, layers in places.items():
        for own, other in zip(layers, getattr(plain, name), strict=True):
            nn.init.normal_(other.weight, std=0.05)
            own.load_state_dict(other.state_dict())
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(ours(x), torch.stack(plain(x)))


def batch_norm(x, norm):
    bank = norm.norms[0]
    return F.batch_norm(x, bank.running_mean, bank.running_var, bank.weight, bank.bias)


def test_inverted_residual_formula():
    for cin, cout, stride in ((4, 6, 1), (4, 4, 1), (4, 4, 2)):
        block = InvertedResidual(Parts(), cin, cout, 6, stride).eval()
        for module in block.modules():
            if isinstance(module, Weighted):
                module.initialise(source(stride))
        expand, norm1, _, depthwise, norm2, _, project, norm3 = block.main
        x = torch.randn(2, cin, 8, 8)
        y = F.relu(batch_norm(F.conv2d(x, expand.weight), norm1))
        y = F.relu(batch_norm(F.conv2d(y, depthwise.weight, None, stride, 1, groups=6 * cin), norm2))
        y = batch_norm(F.conv2d(y, project.weight), norm3)
        if stride == 1:
            y = y + (x if cin == cout else batch_norm(F.conv2d(x, block.shortcut[0].weight), block.shortcut[1]))
        torch.testing.assert_close(block(x, Network.conditions(small("resnet20"), None)), y)


def test_wide_block_formula():
    """The 1x1 shortcut takes the activated input, the identity the raw one; dropout sleeps in eval mode."""
    for cin, cout, stride in ((4, 8, 2), (4, 8, 1), (8, 8, 1)):
        block = WideBlock(Parts(), cin, cout, stride).eval()
        for module in block.modules():
            if isinstance(module, Weighted):
                module.initialise(source(stride))
        first, norm, _, _, second = block.main
        x = torch.randn(2, cin, 8, 8)
        a = F.relu(batch_norm(x, block.activate[0]))
        y = F.conv2d(a, first.weight, None, stride, 1)
        y = F.conv2d(F.relu(batch_norm(y, norm)), second.weight, None, 1, 1)
        y = y + (x if cin == cout else F.conv2d(a, block.shortcut.weight, None, stride))
        torch.testing.assert_close(block(x, Network.conditions(small("resnet20"), None)), y)


def test_wide_resnets_drop_in_train_mode():
    network = small("wrn16_8").train()
    x = images(network)
    assert not torch.equal(network(x, generator=source(1)), network(x, generator=source(2)))


def test_type_a_shortcut_pads_with_zero_channels():
    block = small("resnet20", depth_multiplier=1.0).stages[4][0]
    assert block.shortcut is None
    with torch.no_grad():
        block.main[4].norms[0].weight.zero_()
        block.main[4].norms[0].bias.zero_()
    x = torch.rand(2, 4, 8, 8)
    y = block(x, Network.conditions(small("resnet20"), None))
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2]) and not y[:, 4:].any()


TAPS = {  # stage 0 is the stem, stage i block i
    ("smallcnn", "rdi"): (0, 1, 2),
    ("resnet38", "rdi"): (2, 5, 8, 11, 14, 17, 18),
    ("resnet38", "cheap"): (2, 5, 8, 11, 14, 17, 18),
    ("mobilenet_v2", "rdi"): (3, 11, 18),
    ("mobilenet_v2", "released"): (1, 4, 7, 9, 12, 15, 18),
    ("mobilenet_v2", "cheap"): (1, 4, 7, 9, 12, 15, 18),
}
THRESHOLDS = {
    ("smallcnn", "rdi"): (0.023, 0.014),
    ("resnet38", "rdi"): (0.32, 0.36, 0.39, 0.83, 1.12, 1.35),
    ("mobilenet_v2", "rdi"): (0.267, 0.765),
}


@pytest.mark.parametrize("name, exits", TAPS)
def test_taps_and_published_thresholds(name, exits):
    network = zoo.build(name, exits=exits, width_multiplier=0.25, **(MNIST if name == "smallcnn" else {}))
    assert network.taps == TAPS[name, exits] and network.num_exits == len(network.taps)
    assert network.paper_thresholds == THRESHOLDS.get((name, exits))


@pytest.mark.parametrize("name", sorted(zoo.BACKBONES))
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 64)])
def test_shapes(name, shape):
    network = small(name, input_shape=shape, classes=7)
    assert network(images(network, 2)).shape == (1, 2, 7)


@pytest.mark.parametrize("name, exits", TAPS)
def test_small_networks_keep_their_exits(name, exits):
    network = small(name, exits=exits)
    logits = network(images(network, 2))
    assert logits.shape == (len(TAPS[name, exits]), 2, 10) and logits.isfinite().all()
    assert list(network.taps) == sorted(network.taps)


# --- start ---

def spread(weight, expected):
    return weight.std().item() == pytest.approx(expected, rel=6 / math.sqrt(weight.numel()))


def test_smallcnn_start():
    network = zoo.build("smallcnn", exits="rdi", **MNIST)
    for conv in (network.stages[1][3], network.stages[2][0], network.heads[0][0]):
        assert spread(conv.weight, math.sqrt(2 / conv.weight[0].numel())) and not conv.bias.any()
    first, last = network.heads[2][1], network.heads[2][-1]
    bound = 1 / math.sqrt(1024)
    assert first.weight.abs().max() <= bound and spread(first.weight, bound / math.sqrt(3))
    assert not last.weight.any() and not last.bias.any()
    assert network.heads[0][-1].weight.all() and network.heads[1][-1].weight.all()
    logits = network(torch.rand(3, 1, 28, 28), generator=source())
    assert not logits[2].any() and logits[:2].any()


def test_resnet38_start_is_fan_out():
    network = zoo.build("resnet38", exits="rdi")
    convs = [m for m in network.modules() if isinstance(m, Weighted) and m.weight.dim() == 4]
    assert len(convs) == 39 + 4 + 4
    for conv in convs:
        out, _, height, width = conv.weight.shape
        assert spread(conv.weight, math.sqrt(2 / (height * width * out)))
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all() and not norm.bias.any() and (norm.eps, norm.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet34", "wrn40_2"])
def test_others_start_as_torch_does(name):
    network = zoo.build(name, width_multiplier=0.5)
    layer = max((m for m in network.modules() if isinstance(m, Weighted)), key=lambda m: m.weight.numel())
    bound = 1 / math.sqrt(layer.weight[0].numel())
    assert layer.weight.abs().max() <= bound and spread(layer.weight, bound / math.sqrt(3))


def test_resnet20_head_start():
    head = zoo.build("resnet20").heads[0][-1]
    assert spread(head.weight, math.sqrt(2 / 64)) and not head.bias.any()


def test_seeds():
    weights = [zoo.build("resnet20", width_multiplier=0.25, seed=s).state_dict() for s in (0, 0, 1)]
    same = [all(torch.equal(a, b) for a, b in zip(weights[0].values(), w.values(), strict=True)) for w in weights[1:]]
    assert same == [True, False]


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    small("wrn16_8", conditioning="oat")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_oat_codes_are_orthonormal_rows_kept_with_the_weights():
    network = small("resnet20", conditioning="oat", codes=(0.0, 0.3, 1.0), code_size=16)
    torch.testing.assert_close(network.code_rows @ network.code_rows.T, torch.eye(3), atol=1e-5, rtol=0)
    assert "code_rows" in network.state_dict()
    for index, value in enumerate((0.0, 0.3, 1.0)):
        at = network.conditions(OperatingPoint(code=value))
        assert at.code_index.tolist() == [index] and at.batch_norm == (value > 0)
    scalar = small("resnet20", conditioning="oat", codes=(0.0, 0.3, 1.0), code_size=1)
    assert scalar.code_rows.flatten().tolist() == pytest.approx([0.0, 0.3, 1.0])


def test_streams_are_named_not_counted():
    draws = [torch.rand(4, generator=randomness.generator(*key)) for key in
             ((0, "a"), (0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", "1"))]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.tolist()) for d in draws}) == 5
