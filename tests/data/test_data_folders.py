"""Images in folders: any image folder, and Tiny-ImageNet's own layout."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import lib
from lib import WorkbookError, data
from lib.data import folders
from lib.data.folders import natural
from tests.helpers.data_files import NUMPY, pixels, sentence

# ---------------------------------------------------------------- image folders


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def numbered_folder(folder, train=30, test=6, size=(8, 8), channels=3):
    """Images named by their index, classes in turn; pixel (0, 0) carries the index."""
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            image = pixels(*size, channels) if channels == 3 else pixels(*size)
            image[0, 0] = number
            save(folder / part / "abc"[number % 3] / f"{number}.png", image)
    return folder


def test_numbered_files_come_in_the_order_of_their_numbers_across_classes(tmp_path):
    folder = numbered_folder(tmp_path / "mine")
    mine = data.load(folder)
    assert mine.test.images[:, 0, 0, 0].tolist() == list(range(6)) and mine.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert mine.validation.images[:, 0, 0, 0].tolist() == [27, 28, 29]  # the last tenth, as in the official sets
    assert mine.classes == ("a", "b", "c") and mine.name == "mine" and mine.variant == "image folder mine"
    assert mine.shape == (3, 8, 8) and mine.augmentation == "crop4_flip" and mine.threat["epsilon"] == 8 / 255


def test_pixels_of_png_files_are_exact(tmp_path):
    folder = numbered_folder(tmp_path / "mine", 6, 6)
    image = data.load(tmp_path / "mine").test.images[5]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(folder / "test" / "c" / "5.png")))


def test_natural_order():
    names = ["10.png", "9.png", "img12.png", "img3.png", "3.png", "00004.png"]
    assert sorted(names, key=natural) == ["3.png", "00004.png", "9.png", "10.png", "img3.png", "img12.png"]


def test_grey_images_stay_grey_unless_another_is_in_colour(tmp_path):
    folder = numbered_folder(tmp_path / "grey", channels=1)
    grey = data.load(tmp_path / "grey")
    assert grey.shape == (1, 8, 8) and grey.augmentation == "none"
    save(folder / "test" / "a" / "6.png", pixels(8, 8, 3))
    mixed = data.load(tmp_path / "grey")
    assert mixed.shape == (3, 8, 8) and torch.equal(mixed.train.images[:, :1], grey.train.images)
    assert torch.equal(mixed.train.images[:, 0], mixed.train.images[:, 2])


def test_one_colour_image_anywhere_makes_all_colour(tmp_path, monkeypatch):
    folder = numbered_folder(tmp_path / "mine", channels=1)
    save(folder / "train" / "a" / "0.png", pixels(8, 8, 3))
    monkeypatch.setattr(folders, "CHUNK", 4)  # so that most tasks of the pool see grey images only
    assert data.load(folder).shape == (3, 8, 8)


def test_transparent_and_palette_images_count_as_colour(tmp_path):
    folder = numbered_folder(tmp_path / "mine", channels=1)
    solid = np.dstack([pixels(8, 8, 3), np.full((8, 8), 255, np.uint8)])
    save(folder / "test" / "a" / "6.png", solid)
    few = Image.fromarray(pixels(8, 8, 3)).quantize(16)
    few.save(folder / "test" / "a" / "7.png")
    test = data.load(tmp_path / "mine").test
    assert torch.equal(test.images[6], torch.tensor(solid[..., :3]).permute(2, 0, 1))
    assert np.array_equal(test.images[7].permute(1, 2, 0).numpy(), np.asarray(few.convert("RGB")))


def test_other_files_and_hidden_ones_are_passed_over(tmp_path):
    folder = numbered_folder(tmp_path / "mine")
    (folder / "train" / "a" / "notes.txt").write_text("not an image")
    (folder / "train" / ".cache").mkdir()
    (folder / "test" / "a" / ".5.png.swp").write_bytes(b"")
    (folder / "train" / "readme.md").write_text("hello")
    assert data.load(tmp_path / "mine").classes == ("a", "b", "c")


def test_the_first_image_of_another_size_is_named(tmp_path):
    folder = numbered_folder(tmp_path / "mine")
    save(folder / "train" / "b" / "13.png", pixels(9, 8, 3))
    save(folder / "test" / "b" / "4.png", pixels(7, 7, 3))
    with pytest.raises(WorkbookError) as error:
        data.load(tmp_path / "mine")
    assert str(folder / "train" / "b" / "13.png") in sentence(error) and "8x9" in str(error.value)


def test_images_that_cannot_be_read_are_named(tmp_path):
    folder = numbered_folder(tmp_path / "mine")
    path = folder / "train" / "b" / "13.png"
    whole = path.read_bytes()
    for content in (b"nothing like an image", whole[:60], b""):
        path.write_bytes(content)
        with pytest.raises(WorkbookError) as error:
            data.load(tmp_path / "mine")
        assert sentence(error).count(str(path)) == 1 and "cannot be read" in str(error.value)
    path.unlink()
    Image.fromarray(NUMPY.integers(0, 60_000, (8, 8)).astype(np.uint16)).save(path)
    with pytest.raises(WorkbookError, match="8 bits per channel"):
        data.load(tmp_path / "mine")


def test_folders_that_are_laid_out_otherwise(tmp_path):
    folder = numbered_folder(tmp_path / "mine")
    save(folder / "test" / "d" / "1.png", pixels(8, 8, 3))
    with pytest.raises(WorkbookError, match="class 'd'"):
        data.load(tmp_path / "mine")
    shutil.rmtree(folder / "test" / "d")
    shutil.rmtree(folder / "test")
    with pytest.raises(WorkbookError) as error:
        data.load(tmp_path / "mine")
    assert str(folder / "test") in sentence(error)
    (folder / "test" / "a").mkdir(parents=True)
    with pytest.raises(WorkbookError, match="no images"):
        data.load(tmp_path / "mine")


# ---------------------------------------------------------------- Tiny-ImageNet


def write_tiny_imagenet(folder):
    """Three classes of four training and two validation images, in the layout of the official zip."""
    for wnid, value in (("n03", 30), ("n01", 10), ("n02", 20)):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(4):
            Image.new("RGB", (64, 64), (value, number, 0)).save(images / f"{wnid}_{number}.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    wnids = ["n02", "n01", "n03", "n03", "n02", "n01"]
    for number in range(len(wnids)):
        Image.new("L", (64, 64), 40 * number).save(folder / "val" / "images" / f"val_{number}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n" for number, wnid in enumerate(wnids)))
    (folder / "test" / "images").mkdir(parents=True)  # unlabelled in the official set
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn09\tsomething else\n")


def test_tiny_imagenet_tests_on_the_official_validation_images(tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    tiny = data.load("tiny_imagenet", download=False, validation=3)
    assert tiny.classes == ("goldfish", "bullfrog", "n03") and tiny.shape == (3, 64, 64)
    assert tiny.test.labels.tolist() == [1, 0, 2, 2, 1, 0]
    assert [round(image.float().mean().item(), -1) for image in tiny.test.images] == [0, 40, 80, 120, 160, 200]
    assert tiny.validation.labels.tolist() == [0, 1, 2] and len(tiny.train) == 9  # stratified: the order is by class
    assert tiny.variant == "12 training and 6 validation images" and tiny.augmentation == "crop8_flip"
    found = data.available()
    assert found["tiny_imagenet"] == tmp_path / "tiny-imagenet-200" and "tiny-imagenet-200" not in found


def test_tiny_imagenet_from_the_zip_placed_by_hand(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    elsewhere = tmp_path_factory.mktemp("zip")
    write_tiny_imagenet(elsewhere / "tiny-imagenet-200")
    shutil.make_archive(str(tmp_path / "tiny-imagenet-200"), "zip", elsewhere, "tiny-imagenet-200")
    assert len(data.load("tiny_imagenet", download=False).test) == 6


@pytest.mark.parametrize("line", ["val_0.JPEG\tn77\t0\t0\t1\t1\n", "val_0.JPEG\n", ""])
def test_tiny_imagenet_annotations_that_do_not_fit(tmp_path, monkeypatch, line):
    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(WorkbookError) as error:
        data.load("tiny_imagenet")
    assert "unpack the zip again" in sentence(error)


# ---------------------------------------------------------------- what is not read is counted


def test_images_deeper_below_their_class_and_of_every_usual_kind_are_read(tmp_path):
    folder = numbered_folder(tmp_path / "mine", 6, 6)
    for number, suffix in enumerate(("tif", "TIFF", "gif", "JPG", "jp2", "avif", "pbm")):
        save(folder / "train" / "b" / "more" / "still" / f"{90 + number}.{suffix}", pixels(8, 8, 3))
    mine = data.load(folder, validation=0)
    assert len(mine.train) == 13 and mine.train.labels[6:].tolist() == [1] * 7
    exact = np.asarray(Image.open(folder / "train" / "b" / "more" / "still" / "90.tif"))
    assert np.array_equal(mine.train.images[6].permute(1, 2, 0).numpy(), exact)
    (folder / "train" / "a" / "7.dcm").write_bytes(b"of a kind that nobody reads here")
    (folder / "test" / "c" / "deep").mkdir()
    (folder / "test" / "c" / "deep" / "notes.txt").write_text("hello")
    assert data.load(folder).variant == "image folder mine, 2 other files passed over"


def test_an_image_of_several_is_not_read_as_its_first(tmp_path):
    folder = numbered_folder(tmp_path / "mine", 6, 6)
    pages = [Image.fromarray(pixels(8, 8, 3)) for _ in range(3)]
    pages[0].save(folder / "train" / "a" / "9.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(WorkbookError, match="it holds 3 images"):
        data.load(folder)


def test_images_stand_upright_as_their_exif_says(tmp_path):
    upright = Image.fromarray(np.repeat(np.arange(0, 240, 30, dtype=np.uint8)[:, None], 8, 1))  # dark on top
    folder = numbered_folder(tmp_path / "mine", 6, 6)
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
                              (8, Image.Transpose.ROTATE_270), (2, Image.Transpose.FLIP_LEFT_RIGHT)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(turn).save(folder / "test" / "a" / f"{90 + orientation}.png", exif=exif)
    test = data.load(folder).test
    assert all(torch.equal(image[0], torch.from_numpy(np.array(upright))) for image in test.images[6:])


@pytest.mark.parametrize("spoil, said", [
    (lambda folder: save(folder / "train" / "9.png", pixels(8, 8, 3)), "lies in no class folder"),
    (lambda folder: (folder / "train" / "empty").mkdir(), "holds no image"),
    (lambda folder: shutil.move(shutil.move(folder / "train", folder / "x"), folder / "train" / "images"),
     "one level deeper"),
    (lambda folder: shutil.rmtree(folder / "train") or (folder / "train").mkdir(), "no class folders"),
])
def test_folders_that_would_be_read_in_part_are_refused(spoil, said, tmp_path):
    folder = numbered_folder(tmp_path / "mine", 6, 6)
    spoil(folder)
    with pytest.raises(WorkbookError, match=said) as error:
        data.load(folder)
    sentence(error)


@pytest.mark.parametrize("inner", ["images", ""])
@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet_with_its_validation_images_sorted_into_classes(inner, annotated, tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    val, before = tmp_path / "tiny-imagenet-200" / "val", data.load("tiny_imagenet", validation=3)
    for line in (val / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (val / wnid / inner).mkdir(parents=True, exist_ok=True)
        (val / "images" / name).rename(val / wnid / inner / name)
    if not annotated:
        (val / "images").rmdir()
        (val / "val_annotations.txt").unlink()
    after = data.load("tiny_imagenet", download=False, validation=3)
    assert torch.equal(after.test.images, before.test.images) and torch.equal(after.test.labels, before.test.labels)
    assert after.classes == before.classes and after.variant == before.variant


def test_an_empty_split_is_no_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(lib, "DATASETS", tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    shutil.rmtree(tmp_path / "tiny-imagenet-200" / "val" / "images")
    with pytest.raises(WorkbookError, match="no test images"):
        data.load("tiny_imagenet", download=False)
