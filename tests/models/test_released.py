"""Import of the authors' released weights: a made-up file always, the real one where it is."""

import argparse
import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib import DATASETS, WorkbookError, checkpoints, data
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.models import exits, zoo
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from tests.helpers.networks import source
from tests.helpers.plain_networks import RDIResNet38

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "rdi_released_check.json").read_text())
REAL = DATASETS / "rdi_resnet38_released.pth.tar"
LOSSLESS = DATASETS / "cifar10_png"


@pytest.fixture(scope="module")
def plain():
    """The same network written a second time, with random weights and statistics."""
    network, generator = RDIResNet38().eval(), source(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.08, generator=generator)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.6, 1.2, generator=generator)
                norm.running_mean.normal_(0, 0.2, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.num_batches_tracked.fill_(7)
    return network


def legacy(path, state, **changes):
    """Written as the authors' old PyTorch did: a data-parallel wrapper's names in a pickle from before zip files."""
    content = {"arch": "cifar10_resnet_38", "state_dict": {f"module.{k}": v for k, v in state.items()}, "iter": 60000,
               "best_prec1": 0, **changes}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_a_made_up_file_gives_the_network_it_was_made_from(plain, tmp_path):
    path = legacy(tmp_path / "made_up.pth.tar", plain.state_dict())
    loaded = checkpoints.load(path)
    assert len(plain.state_dict()) == 296 == len(loaded.network.state_dict())
    assert not loaded.network.training and loaded.metadata["iterations"] == 60000
    assert loaded.metadata["config"] == loaded.network.config
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.rand(3, 3, 32, 32, generator=source())
    torch.testing.assert_close(loaded.network(x), torch.stack(plain(x)), rtol=1e-4, atol=1e-4)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize("change", [
    lambda s: without(s, "fc.bias"), lambda s: {**s, "extra.weight": torch.zeros(1)},
    lambda s: {**s, "fc.weight": torch.zeros(100, 64)}, lambda s: {**s, "fc.bias": torch.full((10,), torch.nan)},
    lambda s: {**s, "fc.bias": torch.zeros(10, dtype=torch.float64)}, lambda s: {**s, "fc.bias": "ten"}, lambda s: {},
])
def test_anything_but_this_one_network_is_refused(plain, tmp_path, change):
    path = legacy(tmp_path / "other.pth.tar", change(plain.state_dict()))
    with pytest.raises(WorkbookError, match="released RDI-ResNet38"):
        checkpoints.load(path)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("touched_by_a_pickle"),)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda p: p.write_bytes(pickle.dumps(Harmful())), lambda p: torch.save(Harmful(), p),
                  lambda p: torch.save(Harmful(), p, _use_new_zipfile_serialization=False)):
        write(tmp_path / "bad.pth.tar")
        with pytest.raises(WorkbookError, match="cannot be opened"):
            checkpoints.load(tmp_path / "bad.pth.tar")
    assert not (tmp_path / "touched_by_a_pickle").exists()


def test_a_compressed_file_that_would_grow_is_not_opened(tmp_path, monkeypatch):
    torch.save({"net": {"fc.weight": torch.zeros(10**6)}}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "x.pth", "w", 8) as small:
        for part in whole.namelist():
            small.writestr(part, whole.read(part))
    assert (tmp_path / "x.pth").stat().st_size < 10**5
    monkeypatch.setattr(torch, "load", lambda *opened, **how: pytest.fail("it was opened"))
    with pytest.raises(WorkbookError, match="cannot be opened as tensors alone"):
        checkpoints.load(tmp_path / "x.pth")


def test_damaged_foreign_and_missing_files(plain, tmp_path):
    path = legacy(tmp_path / "cut.pth.tar", plain.state_dict())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"hello", b"PK\x03\x04 no zip"):
        path.write_bytes(content)
        with pytest.raises(WorkbookError, match="cannot be opened"):
            checkpoints.load(path)
    torch.save([1, 2], path)
    with pytest.raises(WorkbookError, match="state_dict"):
        checkpoints.load(path)
    for nowhere, said in ((tmp_path / "nowhere.pth.tar", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(WorkbookError, match=said):
            checkpoints.load(nowhere)


# --- what people hold: the same network in other wrappings ---

def wrapped(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


WRAPPINGS = {
    "raw": lambda s: s, "net": lambda s: {"net": s, "acc": 91.2, "epoch": 3}, "model": lambda s: {"model": s},
    "deep": lambda s: {"epoch": 1, "checkpoint": {"state_dict": s}}, "compiled": wrapped("_orig_mod."),
    "parallel": wrapped("module."), "compiled and parallel": wrapped("_orig_mod.module."),
    "lightning": lambda s: {"state_dict": wrapped("model.")(s), "global_step": 9},
    "half": lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
    "without counters": without_counters, "with a note": lambda s: {**s, "epoch": 7},
    "numpy scalars": lambda s: {"net": s, "acc": np.float64(91.2), "epoch": np.int64(3), "best": np.bool_(True)},
    "flags": lambda s: {"net": s, "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("how", WRAPPINGS)
@pytest.mark.parametrize("name", ["mine.ckpt", "mine.safetensors"])
def test_the_content_decides_and_wrappings_do_not_matter(how, name, plain, tmp_path):
    torch.save(WRAPPINGS[how](plain.state_dict()), tmp_path / name)
    loaded, x = checkpoints.load(tmp_path / name), torch.rand(3, 3, 32, 32, generator=source())
    near = dict(rtol=2e-2, atol=2e-2) if how == "half" else dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.network(x), torch.stack(plain(x)), **near)
    assert all(t.dtype in (torch.float32, torch.int64) for t in loaded.network.state_dict().values())
    assert loaded.metadata["source"].startswith("imported from") and loaded.metadata["dataset"] is None
    assert loaded.network.class_names is None, "nobody says what it was trained on"


def test_numpy_scalars_as_older_numpy_pickled_them(plain, tmp_path, monkeypatch):
    path = tmp_path / "old.pth"
    torch.save({"net": plain.state_dict(), "acc": np.float64(91.2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    checkpoints.load(path)


def test_two_networks_in_one_file_are_not_guessed_between(plain, tmp_path):
    torch.save({"net": plain.state_dict(), "ema": plain.state_dict()}, tmp_path / "two.pth")
    with pytest.raises(WorkbookError, match="holds 2 state_dicts"):
        checkpoints.load(tmp_path / "two.pth")


def test_a_safetensors_file_named_otherwise_is_read(tmp_path):
    checkpoints.save(tmp_path / "ours.pth.tar", zoo.build("resnet20", width_multiplier=0.25))
    assert checkpoints.load(tmp_path / "ours.pth.tar").metadata["kind"] == "network"


# --- the real file ---

@pytest.fixture(scope="module")
def real():
    if not REAL.is_file():
        pytest.skip(f"the authors' weights are not here: put their rdi_resnet38_released.pth.tar at {REAL}")
    return checkpoints.load(REAL)


@pytest.fixture(scope="module")
def lossless(real):
    """The first 500 test images and labels, and the network's logits on them."""
    if not (LOSSLESS / "test").is_dir():
        pytest.skip(f"the lossless CIFAR-10 test images are not here: unpack cifar10_png at {LOSSLESS}")
    split = data.load(str(LOSSLESS)).test[slice(500)]
    if hashlib.md5(split.images.numpy().tobytes()).hexdigest() != ORACLE["data"]["md5_of_uint8_nchw_bytes_500"]:
        pytest.skip(f"the images at {LOSSLESS} are not the lossless ones in the official order")
    images, labels = split.floats()
    with torch.no_grad():
        return images, labels, torch.cat([real.network(chunk) for chunk in images.split(100)], dim=1)


def synthetic(name):
    grid = torch.arange(3072).reshape(1, 3, 32, 32)
    return {"zeros": torch.zeros(1, 3, 32, 32), "half": torch.full((1, 3, 32, 32), 0.5),
            "ramp_mod256_over_255": (grid % 256) / 255, "checker": ((grid // 32 + grid) % 2).float()}[name]


def test_the_real_file(real):
    state = real.network.state_dict()
    assert hashlib.md5(REAL.read_bytes()).hexdigest() == ORACLE["checkpoint"]["md5"]
    assert sum(p.numel() for p in real.network.parameters()) == ORACLE["checkpoint"]["params"]
    assert real.metadata["iterations"] == ORACLE["checkpoint"]["iter"]
    counters = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert counters == {ORACLE["checkpoint"]["bn_num_batches_tracked"]}
    assert real.network.paper_thresholds == tuple(ORACLE["exit_rule"]["thresholds"])
    assert real.metadata["source"].startswith("released by the authors") and real.metadata["dataset"] == "cifar10"
    assert real.network.class_names[:3] == ("airplane", "automobile", "bird")


def test_a_changed_copy_of_the_real_file_is_not_called_the_authors(real, tmp_path):
    content = torch.load(REAL, map_location="cpu", weights_only=True)
    content["state_dict"]["module.fc.bias"] += 1
    torch.save(content, tmp_path / REAL.name)
    loaded = checkpoints.load(tmp_path / REAL.name)
    assert loaded.metadata["source"].startswith("imported") and loaded.metadata["recipe"] == {"name": "imported"}


@pytest.mark.parametrize("name, expected", ORACLE["synthetic_inputs"]["logits_exit_class"].items())
@torch.no_grad()
def test_logits_on_synthetic_inputs(real, name, expected):
    torch.testing.assert_close(real.network(synthetic(name))[:, 0], torch.tensor(expected), rtol=0, atol=1e-4)


def test_logits_and_entropies_on_real_images(lossless):
    _, labels, logits = lossless
    told = ORACLE["clean_first4"]
    assert labels[:10].tolist() == ORACLE["data"]["first10_labels"]
    expected = torch.tensor(told["logits_image_exit_class"]).transpose(0, 1)
    torch.testing.assert_close(logits[:, :4], expected, rtol=0, atol=1e-4)
    measured = exits.entropy(logits[:, :4]).T
    torch.testing.assert_close(measured, torch.tensor(told["entropy_exit_image"]), rtol=0, atol=1e-4)


def test_clean_counts_of_500_images(real, lossless):
    _, labels, logits = lossless
    told = ORACLE["clean_first_500"]
    assert (logits.argmax(-1) == labels).sum(1).tolist() == told["per_exit_correct"]
    chosen = exits.decide(exits.entropy(logits), real.network.paper_thresholds)
    moved = (chosen.bincount(minlength=7) - torch.tensor(told["exit_counts"])).abs().sum()
    assert moved <= 2  # one image may change its exit
    right = (logits.argmax(-1)[chosen, torch.arange(500)] == labels).sum()
    assert abs(int(right) - told["adaptive_correct"]) <= 1


@torch.no_grad()
def test_routing_the_real_network(real, lossless):
    images, _, logits = lossless
    thresholds = real.network.paper_thresholds
    margin = (exits.entropy(logits[:-1, :200]) - torch.tensor(thresholds)[:, None]).abs().min(0).values
    sure = margin > 1e-5
    chosen = exits.decide(exits.entropy(logits[:, :200]), thresholds)
    for network in (real.network, AttackView(real.network)):
        prediction, exit = exits.route(network, images[:200], OperatingPoint(thresholds=thresholds))
        assert torch.equal(exit[sure], chosen[sure]) and sure.sum() > 195
        assert torch.equal(prediction[sure], logits.argmax(-1)[chosen, torch.arange(200)][sure])


def test_first_step_gradient_of_the_view(real, lossless):
    images, labels, _ = lossless

    def gradient(network):
        x = images[:50].clone().requires_grad_()
        loss = F.cross_entropy(network(x).flatten(0, 1), labels[:50].repeat(7), reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    ours, folded = gradient(real.network), gradient(AttackView(real.network))
    assert (ours - folded).norm() < 1e-3 * ours.norm()
    assert (ours.sign() == folded.sign()).float().mean() > 0.999


@pytest.mark.parametrize("attack, expected", ORACLE["pgd_without_random_start_first_50"].items())
def test_pgd_without_random_start_gives_the_counts_of_the_authors_code(real, lossless, attack, expected):
    images, labels = (part[:expected["n"]] for part in lossless[:2])
    form, steps = attack.split("_steps")
    threat = Threat(8 / 255, 2 / 255, int(steps), random_start=False)
    made = forms.craft(form.replace("branch", "single"), real.network, images, labels, threat, generator=source())
    with torch.no_grad():
        logits = real.network(made)
    chosen = exits.decide(exits.entropy(logits), real.network.paper_thresholds)
    answers = logits.argmax(-1) == labels
    for ours, theirs in ((answers.sum(1), expected["per_exit_correct"]),
                         (chosen.bincount(minlength=7), expected["exit_counts"]),
                         (answers[chosen, torch.arange(len(labels))].sum(), expected["adaptive_correct"])):
        assert (ours - torch.tensor(theirs)).abs().max() <= 1
    assert (made - images).abs().mean().item() == pytest.approx(expected["mean_abs_delta"], rel=1e-3)
