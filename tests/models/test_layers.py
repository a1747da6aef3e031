"""Conditioned layers against their formulas: noise, banks, modulation and widths."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import WorkbookError
from lib.models import zoo
from lib.models.conditioning import Conditions, take
from lib.models.layers import BatchNorm2d, Conv2d, Dropout, FiLM, Linear, Normalise, Weighted
from lib.operating_point import OperatingPoint
from tests.helpers.networks import images, small, source


def noisy_layer(kind=Conv2d, shape=(3, 8, 3), granularity="layer"):
    layer = kind(*shape, noisy=granularity)
    layer.initialise(source(1))
    return layer


def conditions(layer, seed=0, **values):
    return Conditions(generator=source(seed), noise_elements=layer.weight.numel(), **values)


# --- weight noise (FLOAT Eq. 4, PNI) ---

@pytest.mark.parametrize("granularity, entries", [("layer", 1), ("channel", 8), ("element", 8 * 3 * 9)])
def test_noise_formula(granularity, entries):
    layer = noisy_layer(granularity=granularity)
    with torch.no_grad():
        layer.alpha.uniform_(-0.5, 0.5, generator=source(2))
    assert layer.alpha.numel() == entries
    x, at = torch.rand(2, 3, 5, 5), conditions(layer, noise=0.7)
    eta = torch.randn(layer.weight.numel(), generator=source(0)).view_as(layer.weight) * layer.weight.std()
    expected = F.conv2d(x, layer.weight + 0.7 * layer.alpha * eta, layer.bias)
    torch.testing.assert_close(layer(x, at), expected)


def test_alpha_starts_at_a_quarter():
    fresh = zoo.build("resnet20", conditioning="float", width_multiplier=0.25)
    assert {m.alpha.item() for m in fresh.modules() if isinstance(m, Weighted)} == {0.25}


def test_gradients_of_weight_and_alpha():
    """dL/dtheta = g (identity: sigma and eta are detached) and dL/dalpha = s * sum(g * eta)."""
    layer = noisy_layer(kind=Linear, shape=(40, 30)).double()
    x, at = torch.rand(16, 40, dtype=torch.float64), conditions(layer, noise=0.6)
    eta = (at.eta(layer) * layer.weight.std()).detach()
    weight = (layer.weight + 0.6 * layer.alpha * eta).detach().requires_grad_()
    g, = torch.autograd.grad(F.linear(x, weight, layer.bias).square().sum(), weight)
    theta_grad, alpha_grad = torch.autograd.grad(layer(x, at).square().sum(), (layer.weight, layer.alpha))
    torch.testing.assert_close(theta_grad, g, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha_grad, 0.6 * (g * eta).sum(), rtol=1e-6, atol=1e-6)


def test_deviation_of_the_noise_over_a_million_entries():
    layer = noisy_layer(kind=Linear, shape=(1000, 1000))
    seen = layer(torch.eye(1000), conditions(layer, noise=0.5)) - layer(torch.eye(1000), Conditions())
    assert seen.std().item() == pytest.approx(0.5 * 0.25 * layer.weight.std().item(), rel=5e-3)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_8"])
def test_without_noise_it_is_the_network_without_the_machinery(name):
    network = small(name, conditioning="float")
    plain = zoo.build(**{**network.config, "conditioning": "dual_bn"}).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith("alpha")})
    generator = source()
    before = generator.get_state()
    x = images(network)
    logits = network(x, OperatingPoint(noise=0.0, batch_norm=0.0), generator)
    assert torch.equal(logits, plain(x)) and torch.equal(logits, network(x))
    assert torch.equal(generator.get_state(), before)
    logits.sum().backward()
    assert all(m.alpha.grad is None for m in network.modules() if isinstance(m, Weighted))


def test_one_scale_per_image_equals_one_call_per_image():
    network, scales = small("resnet20", conditioning="float"), torch.tensor([0.0, 0.3, 1.0, 0.3])
    x = images(network, 4)
    together = network(x, OperatingPoint(noise=scales, batch_norm=1.0, draw=7))[0]
    for i, scale in enumerate(scales.tolist()):
        alone = network(x[i:i + 1], OperatingPoint(noise=scale, batch_norm=1.0, draw=7))[0]
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-4, atol=1e-5)


def test_frozen_draws_repeat_and_fresh_ones_do_not():
    network = small("resnet20", conditioning="pni")
    x, generator = images(network), source()
    fresh = [network(x, generator=generator) for _ in range(2)]
    assert not torch.equal(*fresh)
    assert torch.equal(fresh[0], network(x, generator=source()))
    frozen = [network(x, OperatingPoint(draw=draw)) for draw in (3, 4, 3)]
    assert torch.equal(frozen[0], frozen[2]) and not torch.equal(frozen[0], frozen[1])


def test_a_frozen_draw_first_used_without_gradients_serves_with_them():
    network = small("resnet20", conditioning="float")
    x, point = images(network), OperatingPoint(noise=1.0, draw=12345)
    with torch.inference_mode():
        expected = network(x, point)
    logits = network(x, point)
    logits.sum().backward()
    assert torch.equal(logits, expected) and network.stages[0][0].alpha.grad is not None


def test_every_layer_has_its_own_draw():
    network = small("resnet20", conditioning="float")
    layers = [m for m in network.modules() if isinstance(m, Weighted)]
    at = network.conditions(OperatingPoint(noise=1.0, draw=0))
    drawn = torch.cat([at.eta(layer).flatten() for layer in layers])
    assert len(drawn) == network.noise_elements and len(drawn.unique()) > 0.999 * len(drawn)


def test_fresh_noise_and_dropout_ask_for_a_generator():
    network = small("resnet20", conditioning="pni")
    with pytest.raises(WorkbookError, match="generator"):
        network(images(network))
    cnn = small("smallcnn").train()
    with pytest.raises(WorkbookError, match="dropout"):
        cnn(images(cnn))
    assert torch.equal(cnn(images(cnn), generator=source()), cnn(images(cnn), generator=source()))


def test_dropout_keeps_the_mean_and_zeroes_its_share():
    x, layer = torch.ones(200, 500), Dropout(0.3)
    dropped = layer(x, Conditions(generator=source()))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert layer.eval()(x, Conditions()) is x


# --- batch norm banks ---

def two_banks():
    norm = BatchNorm2d(4, banks=2)
    for i, bank in enumerate(norm.norms):
        nn.init.uniform_(bank.weight, 0.5, 1.5, generator=source(i))
        nn.init.normal_(bank.running_mean, generator=source(i + 2))
    return norm.eval()


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_interpolated_outputs(mix):
    norm, x = two_banks(), torch.randn(3, 4, 5, 5, generator=source())
    clean, adversarial = (bank(x) for bank in norm.norms)
    torch.testing.assert_close(norm(x, Conditions(batch_norm=mix)), (1 - mix) * clean + mix * adversarial)


def test_a_bank_takes_what_is_meant_for_it_and_no_more():
    """Train mode: only the statistics of the bank that ran have moved."""
    norm, x = two_banks().train(), torch.randn(8, 4, 5, 5, generator=source())
    before = [{k: v.clone() for k, v in bank.state_dict().items()} for bank in norm.norms]
    norm(x, Conditions(batch_norm=1.0))
    assert all(torch.equal(v, before[0][k]) for k, v in norm.norms[0].state_dict().items())
    torch.testing.assert_close(norm.norms[1].running_mean, 0.9 * before[1]["running_mean"] + 0.1 * x.mean((0, 2, 3)))


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [1] * 6, [0] * 6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_image_through_its_own_bank(rows, layout):
    """Train mode, so that the groups' statistics count: as if each group had come alone."""
    x = torch.randn(6, 4, 5, 5, generator=source()).to(memory_format=layout)
    mixed, apart = two_banks().train(), two_banks().train()
    mask = torch.tensor(rows, dtype=torch.bool)
    y = mixed(x, Conditions(batch_norm=mask))
    for bank, group in ((0, ~mask), (1, mask)):
        if group.any():
            torch.testing.assert_close(y[group], apart(x[group], Conditions(batch_norm=float(bank))))
    for ours, theirs in zip(mixed.state_dict().values(), apart.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([4, 0, 2])])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_take_keeps_the_layout(rows, layout):
    x = torch.randn(5, 8, 4, 4).to(memory_format=layout)
    assert torch.equal(take(x, rows), x[rows])
    assert take(x, rows).is_contiguous(memory_format=layout)


# --- FiLM (OAT) ---

def test_film_formula_and_size():
    film = FiLM(16, 6)
    for layer in (film.first, film.second):
        layer.initialise(source(3))
    assert sum(p.numel() for p in film.parameters()) == 4 * 6**2 + 2 * 6 * (16 + 2)
    codes, index = torch.randn(3, 16, generator=source()), torch.tensor([2, 0, 0, 1])
    x = torch.randn(4, 6, 3, 3, generator=source(1))
    hidden = F.leaky_relu(F.linear(codes[index], film.first.weight, film.first.bias), 0.01)
    out = F.leaky_relu(F.linear(hidden, film.second.weight, film.second.bias), 0.01)
    expected = x * out[:, :6, None, None] + out[:, 6:, None, None]
    torch.testing.assert_close(film(x, Conditions(codes=codes, code_index=index)), expected)


@pytest.mark.parametrize("widths", [(1.0,), (1.0, 0.5)])
def test_film_started_at_the_identity(widths):
    """The narrowest width begins unmodulated; a wider one where no row of it shifts a narrower one."""
    network = small("resnet20", conditioning="oat", code_size=8, widths=widths, film_identity=True)
    at = Conditions(width=widths[-1], width_index=len(widths) - 1)
    for film in (m for m in network.modules() if isinstance(m, FiLM)):
        multiplier, shift = film.table(network.code_rows, at).chunk(2, dim=1)
        assert (multiplier - 1).abs().max() < 0.5 and shift.abs().max() < 0.5
        assert multiplier.std() > 0, "codes already differ a little"
    authors = small("resnet20", conditioning="oat", code_size=8, widths=widths)
    assert all(m.table(authors.code_rows, at).abs().max() < 0.7 for m in authors.modules() if isinstance(m, FiLM))


@pytest.mark.parametrize("name", ["resnet20", "wrn16_8"])
def test_one_code_per_image_equals_one_call_per_code(name):
    network = small(name, conditioning="oat", codes=(0.0, 0.2, 0.7, 1.0), code_size=8)
    x, codes = images(network), torch.tensor([0.7, 0.0, 1.0, 0.2, 0.0, 0.7])
    together = network(x, OperatingPoint(code=codes))[0]
    for i, code in enumerate(codes.tolist()):
        alone = network(x[i:i + 1], OperatingPoint(code=code))[0]
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-4, atol=1e-6)


# --- widths (slimmable) ---

def leading_slices(wide, narrow, index):
    """Fill a stand-alone narrow network with the leading slices of a wide one and that width's batch norms."""
    source_state = wide.state_dict()
    banks = 2 if wide.conditioning in ("float", "dual_bn", "oat") else 1
    for name, own in narrow.state_dict().items():
        if ".norms." in name:
            stem, _, tail = name.partition(".norms.")
            bank, _, leaf = tail.partition(".")
            own.copy_(source_state[f"{stem}.norms.{index * banks + int(bank)}.{leaf}"])
        else:
            own.copy_(source_state[name][tuple(slice(n) for n in own.shape)])


@pytest.mark.parametrize("name, conditioning, options", [
    ("resnet34", "float", {}), ("resnet38", "none", dict(exits="rdi")), ("resnet20", "dual_bn", {}),
    ("wrn40_2", "float", {}), ("mobilenet_v2", "none", dict(exits="rdi")), ("smallcnn", "none", dict(exits="rdi")),
])
def test_a_narrow_width_is_the_stand_alone_narrow_network(name, conditioning, options):
    wide = small(name, conditioning=conditioning, widths=(1.0, 0.5), **options)
    config = {**wide.config, "widths": [1.0], "width_multiplier": wide.config["width_multiplier"] / 2}
    narrow = zoo.build(**config).eval()
    leading_slices(wide, narrow, wide.widths.index(0.5))
    bank = dict(batch_norm=1.0) if conditioning != "none" else {}
    x = images(wide)
    torch.testing.assert_close(wide(x, OperatingPoint(width=0.5, **bank)), narrow(x, OperatingPoint(**bank)))


def test_noise_at_a_narrow_width_uses_the_deviation_of_the_slice():
    layer = noisy_layer(shape=(4, 8, 3))
    with torch.no_grad():
        layer.weight[4:] *= 100
    at = conditions(layer, noise=1.0, width=0.5, width_index=1)
    weight, eta, spread, _ = layer.parts(at)
    assert weight.shape == eta.shape == (4, 2, 3, 3)
    assert spread.item() == pytest.approx(0.25 * layer.weight[:4, :2].std().item())


def test_gradients_of_several_widths_add_up():
    network = small("resnet20", conditioning="dual_bn", widths=(1.0, 0.5))
    x, weight = images(network), network.stages[1][0].main[0].weight

    def loss(width):
        return network(x, OperatingPoint(width=width))[0].square().sum()

    alone = {width: torch.autograd.grad(loss(width), weight)[0] for width in (1.0, 0.5)}
    (loss(1.0) + loss(0.5)).backward()
    torch.testing.assert_close(weight.grad, alone[1.0] + alone[0.5])
    assert not alone[0.5][2:].any() and alone[0.5][:2].any()


def test_every_width_has_its_own_head_where_asked():
    network = small("resnet20", widths=(1.0, 0.5), width_heads=True)
    heads = network.heads[-1][-1].heads
    assert [h.weight.shape for h in heads] == [(10, 16), (10, 8)]
    x = images(network)
    narrow = network(x, OperatingPoint(width=0.5))
    with torch.no_grad():
        heads[0].weight.zero_()
    assert torch.equal(narrow, network(x, OperatingPoint(width=0.5)))
    torch.testing.assert_close(network(x)[0], heads[0].bias.expand(len(x), 10))


# --- the rest ---

def test_normalise_undoes_the_statistics_it_was_given():
    mean, deviation = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.1])
    x = torch.randn(2, 3, 4, 4)
    pixels = x * deviation[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(Normalise(mean, deviation)(pixels, Conditions()), x)
