"""Named datasets: small files in the official on-disk formats, on a machine without network."""

import gzip
import hashlib
import pickle
import tarfile
import threading
import urllib.request
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import lib
from lib import WorkbookError, data
from lib.data import official
from tests.helpers.data_files import pixels, sentence


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder of datasets on a machine without network."""

    def no_network(*_, **__):
        raise URLError("no network here")

    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    without = {name: replace(source, elsewhere=None) for name, source in official.SOURCES.items()}
    monkeypatch.setattr(official, "SOURCES", without)
    monkeypatch.setattr(data, "SOURCES", without)
    return tmp_path


# ---------------------------------------------------------------- the MNIST family


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(folder, train, test, suffix=""):
    folder.mkdir(parents=True)
    arrays = {}
    for name, count in (("train", train), ("t10k", test)):
        arrays[name] = pixels(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[name], strict=True):
            content = idx_bytes(array)
            path = folder / f"{name}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_with_fewer_images_load_and_say_so(place, suffix):
    arrays = write_idx(place / "MNIST" / "raw", 1_200, 20, suffix)
    mnist = data.load("mnist", download=False, shape=(1, 28, 28))
    assert mnist.variant == "first 1,200 training and 20 test images"
    assert len(mnist.validation) == 120 and len(mnist.train) == 1_080
    assert np.array_equal(mnist.test.images[:, 0].numpy(), arrays["t10k"][0])
    assert np.array_equal(mnist.validation.images[:, 0].numpy(), arrays["train"][0][1_080:])
    assert np.array_equal(mnist.train.labels.numpy(), arrays["train"][1][:1_080])
    assert mnist.threat == dict(epsilon=0.3, step_size=0.01, train_steps=40, steps=40) and mnist.augmentation == "none"


def test_torchvision_reads_the_same_idx_files(place):
    write_idx(place / "MNIST" / "raw", 30, 10)
    theirs, ours = torchvision.datasets.MNIST(place, train=False), data.load("mnist").test
    assert torch.equal(theirs.data, ours.images[:, 0]) and torch.equal(theirs.targets, ours.labels)


def test_fashion_mnist_is_also_found_in_the_system_folder(place, tmp_path_factory, monkeypatch):
    system = tmp_path_factory.mktemp("usr") / "fashion-mnist"
    write_idx(system, 30, 10, ".gz")
    monkeypatch.setitem(official.SOURCES, "fashion_mnist", replace(official.SOURCES["fashion_mnist"], elsewhere=system))
    fashion = data.load("fashion_mnist", download=False)
    assert fashion.classes[9] == "Ankle boot" and fashion.variant == "first 30 training and 10 test images"
    assert data.available() == {"fashion_mnist": system}


@pytest.mark.parametrize("damage", [
    lambda content: content[:5000], lambda content: b"\x1f\x8b" + content, lambda content: content + b"more",
    lambda content: content[:2], lambda content: b""])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_idx_file_is_named(place, damage, name):
    write_idx(place / "MNIST" / "raw", 6_000, 6_000)
    path = place / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WorkbookError) as error:
        data.load("mnist")
    assert str(path) in sentence(error) and "get it again" in str(error.value)


def test_a_cut_gz_file_is_named(place):
    write_idx(place / "MNIST" / "raw", 30, 10, ".gz")
    path = place / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WorkbookError) as error:
        data.load("mnist")
    assert str(path) in sentence(error)


@pytest.mark.parametrize("labels", [np.zeros(9, np.uint8), np.full(10, 11, np.uint8), pixels(10, 28)])
def test_labels_that_do_not_fit_the_images_are_refused(place, labels):
    write_idx(place / "MNIST" / "raw", 30, 10)
    (place / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(WorkbookError, match="do not fit together"):
        data.load("mnist")


# ---------------------------------------------------------------- official colour sets, as torchvision checks them


def listed(folder, names):
    """torchvision's list of (file, checksum) for the small files, so that its own check stays in force."""
    return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]


def write_cifar10(folder, monkeypatch):
    folder.mkdir(parents=True)
    batches = {name: (pixels(20, 3072), [i % 10 for i in range(20)]) for name in official.SOURCES["cifar10"].files[:-1]}
    for name, (rows, labels) in batches.items():
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar, files = torchvision.datasets.CIFAR10, listed(folder, official.SOURCES["cifar10"].files)
    monkeypatch.setattr(cifar, "train_list", files[:5])
    monkeypatch.setattr(cifar, "test_list", files[5:6])
    monkeypatch.setattr(cifar, "meta", {"filename": "batches.meta", "key": "label_names", "md5": files[6][1]})
    return batches


def test_cifar10_batches(place, monkeypatch):
    batches = write_cifar10(place / "cifar-10-batches-py", monkeypatch)
    cifar = data.load("cifar10", download=False)
    rows = np.concatenate([batches[f"data_batch_{number}"][0] for number in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(cifar.train.images.numpy(), rows[:90])
    assert np.array_equal(cifar.validation.images.numpy(), rows[90:])  # the last tenth
    assert np.array_equal(cifar.test.images.numpy().reshape(20, -1), batches["test_batch"][0])
    assert cifar.classes[3] == "cat" and cifar.test.labels[:4].tolist() == [0, 1, 2, 3] and cifar.shape == (3, 32, 32)
    assert cifar.threat == dict(epsilon=8 / 255, step_size=2 / 255, train_steps=10, steps=20)
    assert cifar.augmentation == "crop4_flip" and cifar.variant == "official"


def test_a_cifar10_batch_with_another_checksum_is_never_unpickled(place, monkeypatch):
    write_cifar10(place / "cifar-10-batches-py", monkeypatch)
    path, loaded = place / "cifar-10-batches-py" / "data_batch_3", []
    path.write_bytes(path.read_bytes()[:-7])
    monkeypatch.setattr(pickle, "load", lambda *a, **k: loaded.append(a))
    with pytest.raises(WorkbookError) as error:
        data.load("cifar10")
    assert "damaged" in sentence(error) and not loaded


def test_an_archive_placed_by_hand_is_unpacked_without_a_download(place, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("archive")
    batches = write_cifar10(elsewhere / "cifar-10-batches-py", monkeypatch)
    with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(elsewhere / "cifar-10-batches-py", "cifar-10-batches-py")
    cifar = data.load("cifar10", download=False)
    assert np.array_equal(cifar.test.images.numpy().reshape(20, -1), batches["test_batch"][0])
    assert (place / "cifar-10-python.tar.gz").is_file() and not list(place.glob(".*.part"))


def test_a_half_downloaded_archive_leaves_nothing_behind(place):
    (place / "cifar-10-python.tar.gz").write_bytes(gzip.compress(pixels(40_000).tobytes())[:9_000])
    with pytest.raises(WorkbookError) as error:
        data.load("cifar10")
    assert "cifar-10-python.tar.gz" in sentence(error) and not (place / "cifar-10-batches-py").exists()


def test_cifar100(place, monkeypatch):
    folder = place / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 300), ("test", 100)):
        content = {"data": pixels(count, 3072), "fine_labels": [i % 100 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    cifar, files = torchvision.datasets.CIFAR100, listed(folder, ["train", "test", "meta"])
    monkeypatch.setattr(cifar, "train_list", files[:1])
    monkeypatch.setattr(cifar, "test_list", files[1:2])
    monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "fine_label_names", "md5": files[2][1]})
    loaded = data.load("cifar100", download=False)
    assert loaded.classes[42] == "class 42" and len(loaded.validation) == 30
    assert loaded.test.labels.tolist() == list(range(100))


def test_svhn_gives_the_digit_zero_class_zero(place, monkeypatch):
    from scipy.io import savemat

    (place / "SVHN").mkdir()
    shown, parts = {}, {}
    for part, count in (("train", 40), ("test", 12)):
        name, shown[part] = f"{part}_32x32.mat", pixels(32, 32, 3, count)
        savemat(place / "SVHN" / name, {"X": shown[part], "y": np.arange(count)[:, None].astype(np.uint8) % 10 + 1})
        parts[part] = ["https://nowhere.invalid/" + name, *listed(place / "SVHN", [name])[0]]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", parts)
    svhn = data.load("svhn", download=False)
    assert svhn.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2] and svhn.augmentation == "none"
    assert svhn.test.images[3, 2, 5, 7] == shown["test"][5, 7, 2, 3]
    assert len(svhn.train) == 36 and svhn.shape == (3, 32, 32)


def test_stl10_needs_no_unlabelled_images(place, monkeypatch):
    folder = place / "stl10_binary"
    folder.mkdir()
    stored = {}
    for part, count in (("train", 20), ("test", 10)):
        stored[part] = pixels(count, 3, 96, 96)  # as stored: channel, column, row
        stored[part].tofile(folder / f"{part}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", listed(folder, ["train_X.bin", "train_y.bin"]))
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", listed(folder, ["test_X.bin", "test_y.bin"]))
    stl = data.load("stl10", download=False, shape=(3, 96, 96))
    assert stl.classes == tuple("abcdefghij") and stl.test.labels.tolist() == list(range(10))
    assert stl.test.images[4, 1, 10, 20] == stored["test"][4, 1, 20, 10] and len(stl.validation) == 2


# ---------------------------------------------------------------- missing, downloaded, unknown


@pytest.mark.parametrize("name", data.NAMES[1:])
@pytest.mark.parametrize("download", [True, False])
def test_missing_files_without_network_are_one_sentence(place, name, download):
    with pytest.raises(WorkbookError) as error:
        data.load(name, download=download)
    text = sentence(error)
    assert str(place) in text and "http" in text and "data/README.md" in text
    assert ("no network here" in text) == download
    assert not [path for path in place.iterdir() if not path.name.endswith(".lock")] and data.available() == {}


def test_a_missing_set_points_at_image_folders_on_disk(place):
    for part in ("train", "test"):
        (place / "cifar10_copy" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "cifar10_copy" / part / "cat" / "1.png")
    with pytest.raises(WorkbookError, match="image folder instead .cifar10_copy."):
        data.load("cifar10", download=False)
    assert data.available() == {"cifar10_copy": place / "cifar10_copy"} and len(data.load("cifar10_copy").test) == 1


def fetching(monkeypatch, fetch):
    monkeypatch.setitem(official.SOURCES, "mnist", replace(official.SOURCES["mnist"], fetch=fetch))


def test_a_download_cut_short_is_not_taken_for_the_files(place, monkeypatch):
    def half(scratch):
        write_idx(scratch / "MNIST" / "raw", 30, 10)
        raise ConnectionResetError("connection reset by peer")

    fetching(monkeypatch, half)
    with pytest.raises(WorkbookError, match="connection reset by peer"):
        data.load("mnist")
    assert not (place / "MNIST").exists() and not list(place.glob(".*.part"))
    (place / ".mnist.part" / "MNIST").mkdir(parents=True)  # what a killed process leaves
    fetching(monkeypatch, lambda scratch: write_idx(scratch / "MNIST" / "raw", 30, 10))
    assert len(data.load("mnist").test) == 10 and not list(place.glob(".*.part"))


def test_a_download_keeps_the_files_that_are_there(place, monkeypatch):
    mine = write_idx(place / "MNIST" / "raw", 30, 10)
    for kind in ("images-idx3", "labels-idx1"):
        (place / "MNIST" / "raw" / f"t10k-{kind}-ubyte").unlink()
    fetching(monkeypatch, lambda scratch: write_idx(scratch / "MNIST" / "raw", 40, 12))
    mnist = data.load("mnist", validation=0)
    assert np.array_equal(mnist.train.images[:, 0].numpy(), mine["train"][0]) and len(mnist.test) == 12


def test_two_processes_that_want_the_same_set_download_it_once(place, monkeypatch):
    calls, results = [], []

    def slow(scratch):
        calls.append(scratch)
        threading.Event().wait(0.3)
        write_idx(scratch / "MNIST" / "raw", 30, 10)

    fetching(monkeypatch, slow)
    threads = [threading.Thread(target=lambda: results.append(len(data.load("mnist").test))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(calls) == 1 and results == [10, 10, 10]


def test_an_unknown_name_lists_the_known_ones(place):
    with pytest.raises(WorkbookError) as error:
        data.load("imagenet21k")
    assert all(name in sentence(error) for name in data.NAMES)


def test_only_digits_change_shape(place):
    write_idx(place / "MNIST" / "raw", 30, 10)
    with pytest.raises(WorkbookError) as error:
        data.load("mnist", shape=(3, 32, 32))
    assert "1x28x28, not 3x32x32" in sentence(error)
