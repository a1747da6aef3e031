"""Digits, splits and augmentation, and the real files where they are on disk."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import WorkbookError, data, randomness
from lib.data import readers
from lib.data.splits import Split, hold_out, stratified
from tests.helpers.data_files import pixels, sentence

# ---------------------------------------------------------------- digits


def test_digits_are_split_once_and_for_all():
    before = torch.get_rng_state()
    digits, again = data.load("digits"), data.load("digits")
    assert torch.equal(before, torch.get_rng_state())
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [1097, 200, 500]
    assert digits.shape == (1, 28, 28) and digits.variant == "embedded" and len(digits.classes) == 10
    for split, twin in ((digits.train, again.train), (digits.validation, again.validation), (digits.test, again.test)):
        assert torch.equal(split.images, twin.images) and torch.equal(split.labels, twin.labels)
        share = split.labels.bincount(minlength=10) / len(split)
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert (share - 0.1).abs().max() < 0.015
    whole = [split.images.flatten(1) for split in (digits.train, digits.validation, digits.test)]
    assert len(torch.cat(whole).unique(dim=0)) == len(data.readers.digits((1, 28, 28)).train) + 500  # nothing twice


def test_digits_are_scikit_learns_pixels_scaled_up_bilinearly():
    from sklearn.datasets import load_digits

    grey = load_digits().images
    test = data.load("digits", shape=(3, 32, 32)).test
    is_test = np.zeros(len(grey), bool)
    is_test[stratified(torch.from_numpy(load_digits().target), 500).numpy()] = True
    small = np.round(grey[is_test] * 255 / 16)
    at = (np.arange(32) + 0.5) / 4 - 0.5  # centres of the 32 pixels in units of the 8; np.interp holds the border
    rows = np.apply_along_axis(lambda line: np.interp(at, np.arange(8), line), 1, small)
    truth = np.apply_along_axis(lambda line: np.interp(at, np.arange(8), line), 2, rows)
    assert np.abs(test.images.numpy() - truth[:, None]).max() <= 0.501
    assert torch.equal(test.images[:, 0], test.images[:, 2])


@pytest.mark.parametrize("shape", [(2, 28, 28), (1, 4, 28), (28, 28), (1, 28, 28, 1)])
def test_digits_refuse_a_shape_that_is_none(shape):
    with pytest.raises(WorkbookError) as error:
        data.load("digits", shape=shape)
    assert readers.shape_text(shape) in sentence(error)


# ---------------------------------------------------------------- Split, hold_out


def test_a_split_gives_parts_of_itself_and_exact_floats():
    split = Split(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 4), torch.arange(64))
    part = split[torch.tensor([3, 1])]
    assert len(part) == 2 and part.labels.tolist() == [3, 1] and part.images[0, 0, 0].tolist() == [12, 13, 14, 15]
    assert len(split[5]) == 1 and split[5].images.shape == (1, 1, 1, 4)
    assert split[10:20].labels.tolist() == list(range(10, 20))
    images, labels = split.floats()
    assert images.dtype == torch.float32 and torch.equal(labels, split.labels)
    assert images.flatten().tolist() == [np.float32(value) / np.float32(255) for value in range(256)]
    assert torch.equal(split.floats(slice(4, 6))[0], images[4:6])
    assert split.images.max() == 255  # floats() made a copy


def some_split(labels):
    count = len(labels)
    return Split(torch.arange(count).view(-1, 1, 1, 1), torch.tensor(labels))


def test_the_last_images_are_held_out_where_classes_are_mixed():
    training, validation = hold_out(some_split([i % 10 for i in range(50_000)]), None, 10)
    assert validation.images.flatten().tolist() == list(range(45_000, 50_000))
    assert training.images.flatten().tolist() == list(range(45_000))
    assert len(hold_out(some_split([i % 10 for i in range(17_435)]), None, 10)[1]) == 1_743


def test_a_share_of_every_class_is_held_out_where_the_order_is_by_class():
    labels = sorted([*range(5)] * 40)
    _, validation = hold_out(some_split(labels), None, 5)
    assert validation.labels.bincount().tolist() == [4] * 5


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
@settings(max_examples=60, deadline=None)
def test_held_out_images_are_a_partition_and_a_fair_share(labels, draw):
    count = draw.draw(st.integers(0, len(labels) - 1))
    training, validation = hold_out(some_split(labels), count, 5)
    ours = torch.cat([training.images, validation.images]).flatten().tolist()
    assert sorted(ours) == list(range(len(labels))) and len(validation) == count
    chosen = stratified(torch.tensor(labels), count)
    share = torch.tensor(labels)[chosen].bincount(minlength=5) - torch.tensor(labels).bincount(minlength=5) * (
        count / len(labels))
    assert len(chosen.unique()) == count and share.abs().max() < 1


def test_validation_can_be_chosen_but_not_all_of_training():
    assert len(data.load("digits", validation=0).train) == 1297
    with pytest.raises(WorkbookError, match="0 to 1,296"):
        data.load("digits", validation=1297)


# ---------------------------------------------------------------- augmentation


@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(5, 9), st.integers(5, 9),
       st.sampled_from(["crop4_flip", "crop8_flip"]), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_augmented_image_is_a_window_of_the_padded_one(count, channels, height, width, how, seed):
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8,
                           generator=randomness.generator(seed, "pixels"))
    out = data.augment(images, randomness.generator(seed), how)
    assert out.dtype == torch.float32 and out.shape == images.shape
    border = {"crop4_flip": 4, "crop8_flip": 8}[how]
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (border, border), (border, border)])
    for image, frame in zip((out * 255).round().byte().numpy(), padded, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(frame, (height, width), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
        assert any((windows == candidate).all((2, 3, 4)).any() for candidate in (image, image[..., ::-1]))


def test_without_augmentation_pixels_are_divided_by_255_and_nothing_else():
    images = torch.from_numpy(pixels(4, 3, 8, 8))
    out = data.augment(images, randomness.generator(0), "none")
    assert torch.equal(out, images.float() / 255)


def test_the_crop_in_the_middle_is_bit_equal():
    images = torch.from_numpy(pixels(1, 3, 12, 12))
    generator = randomness.generator(0)
    outs = [data.augment(images, generator, "crop4_flip") for _ in range(700)]
    assert any(torch.equal(out, images.float() / 255) for out in outs)
    assert any(torch.equal(out, images.flip(3).float() / 255) for out in outs)


def test_offsets_and_flips_are_uniform_and_drawn_per_image():
    marked = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8)
    marked[:, 0, 4, 4] = 255  # a dot in the middle tells the shift; a dimmer one on its right tells the flip
    marked[:, 0, 4, 5] = 100
    out = data.augment(marked, randomness.generator(3), "crop4_flip").mul(255).round()[:, 0]
    bright = (out == 255).flatten(1)
    assert bright.sum(1).eq(1).all()
    rows, columns = bright.int().argmax(1) // 9, bright.int().argmax(1) % 9
    for drawn in (rows, columns):
        assert (drawn.bincount(minlength=9) / 20_000 - 1 / 9).abs().max() < 0.012
    inner = (columns > 0) & (columns < 8)
    index = torch.arange(20_000)[inner]
    flipped = out[index, rows[inner], columns[inner] - 1] == 100
    assert abs(flipped.float().mean() - 0.5) < 0.02
    assert (flipped | (out[index, rows[inner], columns[inner] + 1] == 100)).all()


def test_augmentation_draws_from_its_generator_alone():
    images, before = torch.from_numpy(pixels(8, 3, 16, 16)), torch.get_rng_state()
    first, second = (data.augment(images, randomness.generator(7, "a"), "crop4_flip") for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, data.augment(images, randomness.generator(8, "a"), "crop4_flip"))


@pytest.mark.parametrize("how", ["none", "crop4_flip"])
def test_colour_batches_are_channels_last(how):
    out = data.augment(torch.from_numpy(pixels(4, 3, 16, 16)), randomness.generator(0), how)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(WorkbookError) as error:
        data.augment(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), randomness.generator(0), "cutout")
    assert "crop4_flip" in sentence(error)


# ---------------------------------------------------------------- the real files


def needs(name):
    return pytest.mark.skipif(name not in data.available(), reason=f"{name} is not on disk (data/README.md says how)")


@needs("mnist")
def test_real_mnist_has_the_published_test_images():
    mnist = data.load("mnist", download=False)
    assert mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    total = len(mnist.train) + len(mnist.validation)
    assert mnist.variant == ("official" if total == 60_000 else f"first {total:,} training images")
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@needs("fashion_mnist")
def test_real_fashion_mnist():
    fashion = data.load("fashion_mnist", download=False)
    assert fashion.variant == "official" and fashion.test.labels.bincount().tolist() == [1_000] * 10
    assert fashion.classes[fashion.test.labels[0]] == "Ankle boot"


@needs("cifar10_png")
def test_real_cifar10_pixels_in_the_official_order():
    cifar = data.load("cifar10_png")
    assert cifar.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    digest = hashlib.md5(cifar.test.images[:500].numpy().tobytes()).hexdigest()
    assert digest == "29419f77ea2081b8873b81a5ef3fe3b1"  # uint8, NCHW, of the official test images
