"""Files of networks and states: what goes in comes out, and nothing unsound comes out at all."""

import errno
import hashlib
import json
import os
import pickle
import random
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_parameter_registration_hook

import lib
from lib import WorkbookError, checkpoints
from lib.models import zoo


@pytest.fixture
def network():
    return zoo.build("resnet20", exits="none", width_multiplier=0.25, seed=3)


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.save(path, network, recipe={"name": "none"}, metrics={"clean_accuracy": 0.5})
    return path


def resaved(path, change):
    """The file at `path` with its description changed and sealed again, as another version would have written it."""
    tensors, data = load_file(path), path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    values = json.loads(header["__metadata__"]["workbook"])
    change(values, tensors)
    values["sha256"] = checkpoints.digest(tensors)
    text = json.dumps(values)
    save_file(tensors, path, {"workbook": text, "seal": hashlib.sha256(text.encode()).hexdigest()})
    return path


def test_network_comes_back_bit_for_bit_in_eval_mode_with_its_description(network, saved):
    loaded = checkpoints.load(saved)
    for (name, a), b in zip(network.state_dict().items(), loaded.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not loaded.network.training
    assert loaded.network.config == network.config
    assert loaded.metadata["recipe"] == {"name": "none"} and loaded.metadata["metrics"] == {"clean_accuracy": 0.5}
    assert loaded.metadata["version"] == lib.__version__
    assert loaded.digest == checkpoints.digest(network.state_dict())
    assert load_file(saved).keys() == network.state_dict().keys(), "plain safetensors readers understand the file"


def test_half_precision_halves_the_file_and_loads_as_float32(network, saved, tmp_path):
    half = tmp_path / "half.safetensors"
    checkpoints.save(half, network, dtype=torch.float16)
    loaded = checkpoints.load(half).network
    for (name, p), q in zip(network.named_parameters(), loaded.parameters(), strict=True):
        assert q.dtype == torch.float32 and torch.equal(q, p.to(torch.float16).float()), name
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), loaded.buffers(), strict=True))
    parameters = sum(p.numel() for p in network.parameters())
    assert saved.stat().st_size - half.stat().st_size > 1.9 * parameters


def test_weight_that_half_precision_cannot_hold_is_refused(network, tmp_path):
    with torch.no_grad():
        next(network.parameters()).fill_(1e6)
    with pytest.raises(WorkbookError, match="too large"):
        checkpoints.save(tmp_path / "n.safetensors", network, dtype=torch.float16)


def test_state_round_trip_with_all_shapes_types_and_layouts(tmp_path):
    tensors = {"scalar": torch.tensor(0.1), "empty": torch.empty(0, 3), "whole": torch.arange(5),
               "truth": torch.tensor([True]), "double": torch.rand(2, dtype=torch.float64), "view": torch.rand(4, 4).T,
               "nhwc": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
               "nan": torch.tensor([float("nan"), 1.0])}
    values = {"step": 7, "text": "ε ≤ 8/255", "deep": {"list": [1, 2.5, None]}}
    checkpoints.save_state(tmp_path / "state", tensors, values)
    back, told = checkpoints.load_state(tmp_path / "state")
    for name, t in tensors.items():
        assert back[name].dtype == t.dtype
        torch.testing.assert_close(back[name], t, rtol=0, atol=0, equal_nan=True)
    assert values.items() <= told.items()


@pytest.mark.parametrize("size", [int.from_bytes(b"PK", "little"), int.from_bytes(b"\x80\x02", "little")])
def test_a_header_whose_size_looks_like_a_pickle_is_read(size, tmp_path):
    path, tensors = tmp_path / "state", {"x": torch.ones(2)}
    checkpoints.save_state(path, tensors, {"note": ""})
    missing = size - int.from_bytes(path.read_bytes()[:8], "little")
    checkpoints.save_state(path, tensors, {"note": "n" * missing})
    assert int.from_bytes(path.read_bytes()[:8], "little") == size
    assert torch.equal(checkpoints.load_state(path)[0]["x"], tensors["x"])


def test_any_flipped_bit_is_found_or_harmless(saved):
    """Flips everywhere in the header and at 300 places of the tensors; only the header's blank padding is harmless."""
    good, draw = saved.read_bytes(), random.Random(0)
    truth = checkpoints.load(saved)
    header = 8 + int.from_bytes(good[:8], "little")
    places = {8, header - 1, header, len(good) - 1}
    places |= set(draw.sample(range(header), 200)) | set(draw.sample(range(header, len(good)), 300))
    found = 0
    for place in sorted(places):
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(bad)
        try:
            again = checkpoints.load(saved)
        except WorkbookError as error:
            found += 1
            assert str(saved) in str(error) and "\n" not in str(error)
        else:
            assert again.digest == truth.digest and again.metadata == truth.metadata
    assert found >= len(places) - 8


def test_a_cut_file_is_found_at_any_length(saved):
    good = saved.read_bytes()
    for length in (0, 3, 7, 8, 9, 100, len(good) // 2, len(good) - 1):
        saved.write_bytes(good[:length])
        with pytest.raises(WorkbookError, match=str(saved)):
            checkpoints.load(saved)
    saved.write_bytes(good + b"\0")
    with pytest.raises(WorkbookError, match="cut short or damaged"):
        checkpoints.load(saved)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("how", ["torch", "torch_old", "pickle"])
def test_pickles_are_refused_unopened(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if how == "pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    else:
        torch.save({"w": Bomb()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(WorkbookError, match=r"evil\.pth"):
        checkpoints.load(tmp_path / "evil.pth")
    assert not (tmp_path / "exploded").exists()


def test_foreign_safetensors_and_text_files_are_refused(tmp_path):
    save_file({"w": torch.rand(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WorkbookError, match="another program"):
        checkpoints.load(tmp_path / "foreign.safetensors")
    save_file({"w": torch.rand(2)}, tmp_path / "foreign2.safetensors", {"format": "pt"})
    with pytest.raises(WorkbookError, match="another program"):
        checkpoints.load(tmp_path / "foreign2.safetensors")
    (tmp_path / "text").write_text("hello, this is not a network")
    with pytest.raises(WorkbookError, match="not a safetensors file"):
        checkpoints.load(tmp_path / "text")
    with pytest.raises(WorkbookError, match="does not exist"):
        checkpoints.load(tmp_path / "missing.safetensors")
    with pytest.raises(WorkbookError, match="cannot be read"):
        checkpoints.load(tmp_path)


def test_network_that_does_not_fit_its_description_is_refused(saved):
    good = saved.read_bytes()

    def lose_a_tensor(values, tensors):
        del tensors[next(n for n in tensors if n.endswith("num_batches_tracked"))]

    for change in (lambda v, t: v["config"].update(width_multiplier=1.0), lambda v, t: v["config"].update(name="vgg"),
                   lambda v, t: v["config"].update(unheard_of=1), lambda v, t: v.pop("config"),
                   lambda v, t: v["config"].update(exits="rdi", name="resnet38"), lose_a_tensor):
        saved.write_bytes(good)
        resaved(saved, change)
        with pytest.raises(WorkbookError, match="does not hold the network that it describes") as caught:
            checkpoints.load(saved)
        assert "\n" not in str(caught.value)


def test_newer_format_and_other_kinds_are_named(saved, tmp_path):
    with pytest.raises(WorkbookError, match="holds a network, not a state"):
        checkpoints.load_state(saved)
    with pytest.raises(WorkbookError, match="newer than this version reads"):
        checkpoints.load(resaved(saved, lambda v, t: v.update(format=99)))
    checkpoints.save_state(tmp_path / "state", {"a": torch.ones(1)}, {})
    with pytest.raises(WorkbookError, match="holds a state, not a network"):
        checkpoints.load(tmp_path / "state")


@pytest.mark.parametrize("code, words", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may not be written"),
                                         (errno.EIO, "could not be written")])
def test_failed_write_leaves_the_old_file_and_says_why(code, words, network, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WorkbookError, match=words) as caught:
        checkpoints.save(saved, network)
    assert str(saved) in str(caught.value)
    monkeypatch.undo()
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_leftovers_of_killed_writers_are_cleared(network, saved):
    old, fresh = (saved.with_name(f".{saved.name}.{pid}.partial") for pid in (1, 2))
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    checkpoints.save(saved, network)
    assert not old.exists() and fresh.exists()


# ---------------------------------------------------------------- what the file says is held against what it holds

@pytest.mark.parametrize("change", [dict(depth_multiplier=1e7), dict(width_multiplier=1e6), dict(classes=10**9),
                                    dict(input_shape=[10**9, 32, 32]), dict(widths=[1.0] * 5000),
                                    dict(depth_multiplier=float("inf"))])
def test_nothing_larger_than_the_file_is_built(change, saved):
    """Measured by the parameters that are made before the refusal, and by the memory that Python and torch take."""
    resaved(saved, lambda v, t: v["config"].update(change))
    made, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hook = register_module_parameter_registration_hook(lambda module, name, p: made.append(p))
    try:
        with pytest.raises(WorkbookError, match="does not hold the network that it describes"):
            checkpoints.load(saved)
    finally:
        hook.remove()
    assert len(made) < 3 * len(load_file(saved)) and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2e5


def test_factors_are_no_larger_than_their_file(tmp_path):
    factorised = zoo.build("resnet20", width_multiplier=0.25, factorised=True).eval()
    checkpoints.save(tmp_path / "x", factorised)
    loaded, x = checkpoints.load(tmp_path / "x").network, torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), factorised(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, network, tmp_path):
    for tensor in (network.heads[0][1].weight, network.stages[0][1].norms[0].running_mean):
        good = tensor.detach().clone()
        tensor.data.view(-1)[3] = value
        checkpoints.save(tmp_path / "x", network)
        with pytest.raises(WorkbookError, match="not finite"):
            checkpoints.load(tmp_path / "x")
        tensor.data.copy_(good)
