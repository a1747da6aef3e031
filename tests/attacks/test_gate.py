"""One gate at every entrance: what is no batch in [0, 1] for this network is refused in words, wherever it is given."""

import numpy as np
import pytest
import torch
from torch import nn

from lib import WorkbookError, data
from lib.attacks import autoattack, forms, strong
from lib.attacks.audit import audit
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import latency, points
from lib.evaluation.recording import record
from lib.models import exits, zoo
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from tests.helpers.linear_oracle import linear_network, random_batch
from tests.helpers.networks import images, small, source

torch.set_num_threads(1)
THREAT = Threat(0.1, 0.05, 2)
CLEAN = points.clean([OperatingPoint()])
ANYWHERE = OperatingPoint(thresholds=(0.5, 0.5))


@pytest.fixture(scope="module")
def network():
    network = small("smallcnn", exits="rdi")
    nn.init.normal_(network.heads[-1][-1].weight, std=0.3, generator=source())  # it starts at zero
    return network


ENTRANCES = {
    "craft": lambda n, x, y: forms.craft("main", n, x, y, THREAT, generator=source()),
    "suite": lambda n, x, y: forms.suite(n, x, y, THREAT, ["main", "average"], seed=0),
    "autoattack": lambda n, x, y: autoattack.run(n, x, y, 0.1, attacks=("apgd-ce",), iterations=2),
    "route": lambda n, x, y: exits.route(n, x, ANYWHERE),
    "audit": lambda n, x, y: audit(n, x, y),
    "strong suite": lambda n, x, y: next(strong.attacked(n, x, y, THREAT)),
}
SPOILED = {
    "DataParallel": lambda n, x, y: (nn.DataParallel(n), x, y),
    "numpy": lambda n, x, y: (n, x.numpy(), y.numpy()),
    "bytes": lambda n, x, y: (n, x.mul(255).byte(), y),
    "float64": lambda n, x, y: (n, x.double(), y),
    "half": lambda n, x, y: (n, x.half(), y),
    "0 ... 255": lambda n, x, y: (n, x * 255, y),
    "normalised": lambda n, x, y: (n, (x - 0.5) / 0.5, y),
    "nan": lambda n, x, y: (n, x * torch.nan, y),
    "another size": lambda n, x, y: (n, x[..., :24], y),
    "another colour": lambda n, x, y: (n, x.repeat(1, 3, 1, 1), y),
    "one image": lambda n, x, y: (n, x[0], y[0]),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("spoil", SPOILED)
def test_every_entrance_refuses_what_does_not_fit(entrance, spoil, network):
    x, y = images(network, 4), torch.arange(4)
    ENTRANCES[entrance](network, x, y)
    with pytest.raises(WorkbookError) as caught:
        ENTRANCES[entrance](*SPOILED[spoil](network, x, y))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entrance", ["craft", "suite", "autoattack"])
@pytest.mark.parametrize("spoil", [lambda y: y.float(), lambda y: y[:2], lambda y: y + 8, lambda y: y - 1,
                                   lambda y: y.numpy(), lambda y: y.tolist()])
def test_every_attack_refuses_labels_that_do_not_fit(entrance, spoil, network):
    with pytest.raises(WorkbookError, match="labels"):
        ENTRANCES[entrance](network, images(network, 4), spoil(torch.arange(4)))


@pytest.mark.parametrize("entrance", ["craft", "suite", "autoattack"])
def test_attacks_inside_inference_mode_are_the_same(entrance, network):
    x, y = images(network, 4), torch.arange(4)
    outside = ENTRANCES[entrance](network, x, y)
    with torch.inference_mode():
        inside = ENTRANCES[entrance](network, x + 0, y + 0)
        made = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.1).eval()
    first = {"craft": lambda a: a, "suite": lambda a: a["average"], "autoattack": lambda a: a.adversarial}[entrance]
    assert torch.equal(first(inside), first(outside)) and not first(inside).equal(x)
    ENTRANCES[entrance](made, x, y)


@pytest.mark.parametrize("epsilon", [8, -1, float("nan"), "0.1"])
def test_autoattack_refuses_the_budgets_that_a_threat_refuses(epsilon, network):
    with pytest.raises(WorkbookError, match="is outside"):
        autoattack.run(network, images(network, 2), torch.arange(2), epsilon)


@pytest.mark.parametrize("classes, version, works", [(2, "standard", ("apgd-ce", "fab-t", "square")),
                                                     (3, "standard", ("apgd-ce",)), (2, "rand", ("apgd-ce",))])
def test_autoattack_with_few_classes(classes, version, works):
    network, (x, y) = linear_network(torch.randn(1, classes, 4, generator=source())), random_batch(4, classes=classes)
    with pytest.raises(WorkbookError, match=f"the network has {classes} classes"):
        autoattack.run(network, x, y, 0.1, version=version, iterations=2, queries=2)
    autoattack.run(network, x, y, 0.1, version=version, attacks=works, iterations=2, queries=2)


@pytest.mark.parametrize("size", [-1, 0, 2.5])
def test_batches_of_no_size(size, network):
    split = Split(images(network, 4).mul(255).byte(), torch.arange(4))
    for go in (lambda: record(network, split, CLEAN, batch_size=size),
               lambda: latency.measure(network, images(network, 4), (0.5, 0.5), batch_sizes=[size]),
               lambda: latency.side_by_side({"one": (network, None)}, images(network, 4), batch_sizes=[size]),
               lambda: autoattack.run(network, images(network, 4), torch.arange(4), 0.1, batch_size=size)):
        with pytest.raises(WorkbookError, match="whole number of at least 1"):
            go()


def test_recordings_refuse_what_is_no_split_and_networks_that_are_broken(network):
    split = Split(images(network, 4).mul(255).byte(), torch.arange(4))
    broken = small("smallcnn", exits="rdi")
    with torch.no_grad():
        broken.heads[-1][-1].bias[3] = torch.nan
    for case in ((nn.DataParallel(network), split), (network, images(network, 4)), (broken, split),
                 (network, Split(split.images, split.labels + 7))):
        with pytest.raises(WorkbookError):
            record(*case, CLEAN)


def test_every_network_refuses_bytes_scaled_as_floats(network):
    x = images(network, 2)
    for spoiled in (x * 255, x.mul(255).byte(), x.double(), x.numpy()):
        for net in (network, AttackView(network)):
            with pytest.raises(WorkbookError, match="images|image values"):
                net(spoiled)
    assert network.double()(x.double()).dtype == torch.float64
    network.float()


@pytest.mark.parametrize("pixels, labels", [
    (torch.rand(3, 1, 8, 8), torch.arange(3)), (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.arange(3)),
    (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(2)), (torch.zeros(3, 1, 8, 8).byte(), torch.rand(3))])
def test_a_split_holds_bytes_and_whole_labels(pixels, labels):
    with pytest.raises(WorkbookError, match="\\(N, C, H, W\\)|whole pixels"):
        Split(pixels, labels)


def test_a_number_of_images_below_zero_is_not_all_but_so_many():
    test = data.load("digits").test
    for part in (slice(-5), slice(-5, None), slice(0, -3)):
        with pytest.raises(WorkbookError, match="do not exist"):
            test[part]
    assert len(test[np.arange(3)]) == len(test[:3]) == 3


def test_more_draws_than_a_byte_counts():
    noisy = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    split = Split(images(noisy, 2).mul(255).byte(), torch.zeros(2, dtype=torch.int64))
    found = record(noisy, split, points.clean([OperatingPoint(noise=0.0), OperatingPoint(noise=0.1)]), draws=300)
    assert found.views[1].draws == 300
    frozen = [noisy(split.floats()[0], OperatingPoint(noise=0.1, draw=d))[-1].argmax(-1) == 0 for d in range(300)]
    assert found.right[1, 0].tolist() == torch.stack(frozen).sum(0).tolist()
    with pytest.raises(WorkbookError, match="draws 0"):
        record(noisy, split, points.clean([OperatingPoint(noise=0.1)]), draws=0)


def test_kept_parts_of_other_weights_images_or_settings_are_refused(tmp_path):
    network, other = small("resnet20", input_shape=(3, 8, 8)), small("resnet20", input_shape=(3, 8, 8), seed=1)
    split = Split(images(network, 8).mul(255).byte(), torch.arange(8))
    another = Split(split.images.flip(0), split.labels)
    told = dict(views=CLEAN, folder=tmp_path, batch_size=4)
    for _ in range(2):
        record(network, split, **told)
    for wrong in (dict(network=other), dict(images=another), dict(seed=1)):
        with pytest.raises(WorkbookError, match="another recording"):
            record(**{"network": network, "images": split} | told | wrong)
    assert record(network, split, **told | {"batch_size": 3}).images == 8  # parts are named by their ends
