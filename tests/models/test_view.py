"""The attack view against the network it follows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import WorkbookError
from lib.attacks.decision import attack_mode
from lib.models import exits
from lib.models.layers import Conv2d
from lib.models.view import Affine, AttackView, Folded
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source

CASES = [
    ("smallcnn", dict(exits="rdi"), [{}]),
    ("resnet38", dict(exits="rdi"), [{}]),
    ("resnet38", dict(exits="cheap", widths=(1.0, 0.5), width_heads=True), [{}, dict(width=0.5)]),
    ("resnet38", dict(channel_scales=True), [{}]),
    ("resnet38", dict(factorised=True), [{}]),
    ("mobilenet_v2", dict(exits="released"), [{}]),
    ("resnet20", dict(conditioning="pni", normalise="cifar10"), [{}, dict(noise=0.5, draw=1), dict(noise=0.0)]),
    ("resnet20", dict(conditioning="pni", noise_granularity="channel"), [{}]),
    ("resnet20", dict(conditioning="float", widths=(1.0, 0.5)),
     [{}, dict(noise=1.0, batch_norm=1.0), dict(noise=0.3, batch_norm=0.4, width=0.5),
      dict(noise=torch.tensor([0.0, 0.5, 1.0, 0.2]), batch_norm=1.0)]),
    ("wrn16_8", dict(conditioning="dual_bn", widths=(1.0, 0.5)), [{}, dict(batch_norm=1.0, width=0.5)]),
    ("wrn16_8", dict(conditioning="oat"), [{}, dict(code=0.7), dict(code=torch.tensor([0.0, 0.2, 0.7, 1.0]))]),
    ("resnet20", dict(conditioning="oat", widths=(1.0, 0.5)),
     [dict(code=0.2, width=0.5), dict(code=torch.tensor([0.2, 0.0, 0.7, 0.0]), width=0.5)]),
]


def gradient(network, x, point):
    x = x.clone().requires_grad_()
    logits = network(x, point, source())
    labels = torch.arange(len(x)).repeat(len(logits))
    return torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum"), x)[0]


@pytest.mark.parametrize("name, options, points", CASES)
def test_same_logits_and_gradients_at_every_point(name, options, points):
    network = small(name, **options)
    view, x = AttackView(network), images(network, 4)
    for point in (OperatingPoint(**p) for p in points):
        expected, seen = network(x, point, source()), view(x, point, source())
        assert (seen - expected).abs().max() <= 1e-4 * expected.abs().max()
        g = gradient(network.double(), x.double(), point)  # in float64, where no ReLU sits on the fence
        exact = AttackView(network, torch.float64)
        assert g.norm() > 0 and (gradient(exact, x.double(), point) - g).norm() <= 1e-3 * g.norm()
        network.float()


@pytest.mark.parametrize("name, options, points", CASES)
def test_refresh_follows_the_network_in_place(name, options, points):
    network = small(name, **options)
    view, x, point = AttackView(network), images(network, 4), OperatingPoint(**points[-1])
    addresses = {k: v.data_ptr() for k, v in view.state_dict().items()}
    before = view(x, point, source())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.add_(0.1)
                norm.running_var.mul_(1.2)
    assert torch.equal(view(x, point, source()), before)  # frozen until it is refreshed
    expected = network(x, point, source())
    seen = view.refresh()(x, point, source())
    assert (seen - expected).abs().max() <= 1e-4 * expected.abs().max() and not torch.allclose(seen, before)
    assert {k: v.data_ptr() for k, v in view.state_dict().items()} == addresses


def test_what_is_folded():
    network = small("resnet38", exits="rdi", depth_multiplier=1.0)
    view = AttackView(network)
    assert sum(isinstance(m, Folded) for m in view.modules()) == 54  # 47 convolutions and 7 linear layers
    assert not any(isinstance(m, nn.BatchNorm2d) for m in view.modules())
    wide = list(AttackView(small("wrn16_8", depth_multiplier=1.0)).modules())
    folded = sum(isinstance(m, Folded) and m.affine is not None for m in wide)
    assert (folded, sum(isinstance(m, Affine) for m in wide) - folded) == (6, 7)  # norms behind an addition stay
    assert not any(p.requires_grad for p in view.parameters())


def test_prefix_and_route_take_a_view():
    network = small("resnet38", exits="rdi")
    view, x = AttackView(network), images(network, 16)
    logits = view(x)
    for k in range(view.num_exits):
        torch.testing.assert_close(exits.prefix(view, x, k), logits[k])
    thresholds = tuple(exits.entropy(logits[k]).quantile(0.4).item() + 1e-4 for k in range(6))
    prediction, exit = exits.route(view, x, OperatingPoint(thresholds=thresholds))
    chosen = exits.decide(exits.entropy(logits), thresholds)
    assert torch.equal(exit, chosen) and torch.equal(prediction, logits.argmax(-1)[chosen, torch.arange(16)])


def test_features_stay_channels_last():
    network = small("resnet38", exits="rdi")
    view, layouts = AttackView(network), []
    for module in view.modules():
        if isinstance(module, Folded) and isinstance(module.layer, Conv2d):
            module.register_forward_hook(lambda _, args, y: layouts.extend(
                t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], y)))
    with torch.no_grad():
        logits = view(images(network, 12))
        thresholds = tuple(exits.entropy(logits[k]).quantile(0.4).item() for k in range(6))
        exits.route(view, images(network, 12), OperatingPoint(thresholds=thresholds))
    assert len(layouts) > 40 and all(layouts)


def test_bfloat16_keeps_images_and_logits_in_float32():
    network = small("resnet38", exits="rdi")
    view, x = AttackView(network, torch.bfloat16), images(network, 4)
    assert {p.dtype for p in view.parameters() if p.dim() == 4} == {torch.bfloat16}
    expected, seen = network(x), view(x)
    assert seen.dtype == torch.float32 and gradient(view, x, None).dtype == torch.float32
    assert (seen - expected).abs().max() <= 0.05 * expected.abs().max()


def test_a_view_cannot_be_trained():
    network = small("resnet38", exits="rdi").train()
    view = AttackView(network)
    assert network.training and not any(m.training for m in view.modules())
    for mode in ("batch", "authors"):
        with pytest.raises(WorkbookError, match="eval"), attack_mode(view, mode):
            pass
    with attack_mode(view, "eval"):
        assert not view.training


def test_the_view_draws_the_same_noise_and_refuses_the_same_knobs():
    network = small("resnet20", conditioning="float")
    view, x = AttackView(network), images(network)
    with pytest.raises(WorkbookError, match="generator"):
        view(x, OperatingPoint(noise=1.0))
    with pytest.raises(WorkbookError, match="width"):
        view(x, OperatingPoint(width=0.5))
    ours, theirs = source(5), source(5)
    network(x, OperatingPoint(noise=1.0), ours)
    view(x, OperatingPoint(noise=1.0), theirs)
    assert torch.equal(ours.get_state(), theirs.get_state())
