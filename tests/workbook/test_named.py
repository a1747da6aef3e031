"""Whoever names a file, a seed or a number of images gets it or a refusal, and a row says what was read."""

import dataclasses
import shutil

import pytest

import lib
from lib import WorkbookError, data
from lib.evaluation import rows
from lib.evaluation.record import Record
from lib.training import loop, recipes
from lib.workbook import released_record, session, subject
from lib.workbook.session import Session

CELL = 'preset: str = "laptop"\nweights: str = "shipped"\nseed: int = 0\nrun_dir: str = ""\n'
OWN = {"images": (int, 0, 500), "dataset": (str, "auto", "digits"), "defence": (str, "auto", "standard"),
       "restarts": (int, 0, 9), "seeds": (int, 0, 3), "thresholds": (str, "auto", "paper")}


@pytest.fixture
def asked(tmp_path):
    """The settings of a notebook in which these parameters were given a value."""
    def settings(**given):
        namespace = {"file": "", "In": []}
        exec(CELL + 'file: str = ""\n', namespace)
        for name, (kind, empty, _) in OWN.items():
            exec(f"{name}: {kind.__name__} = {empty!r}", namespace)
        namespace |= {"run_dir": str(tmp_path / "run" / "x"), **given}
        return session.open(namespace, "x", **{name: (value,) * 3 for name, (_, _, value) in OWN.items()})

    return settings


def test_settings_remember_what_was_named(asked):
    assert asked().named == frozenset() and asked().images == 500
    assert asked(images=7, file="x").named == {"images", "file"}


@pytest.mark.parametrize("name, value", [("images", -5), ("seed", -1), ("seeds", "-2")])
def test_numbers_below_zero_are_refused(asked, name, value):
    with pytest.raises(WorkbookError, match=f"{name} is -"):
        asked(**{name: value})


def smallcnn(wb):
    return wb.load("rdi_smallcnn", "max_average", "digits")


def test_shipped_records_give_the_images_named_and_no_others(asked):
    trained = smallcnn(asked())
    whole, five = asked().record(trained), asked(images=5).record(trained)
    assert len(whole.labels) == 500 and len(five.labels) == 5 and five.meta["images"] == [0, 5]
    assert (five.prediction == whole.prediction[:, :, :5]).all()
    member = asked(images=6).record(asked().load("resnet20", "float", "digits"))
    assert member.right.shape[2] == len(member.labels) == 6
    with pytest.raises(WorkbookError, match="more than the 500 test images"):
        asked(images=1000).record(trained)


def test_a_record_without_its_weights_is_read_and_cannot_be_attacked(asked, tmp_path, monkeypatch):
    before = asked().readings({"ours": smallcnn(asked())})["ours"]
    monkeypatch.setattr(lib, "CHECKPOINTS", tmp_path)
    wb = asked()
    trained = wb.load_all({"ours": ("rdi_smallcnn", "max_average")})
    assert trained["ours"].weights == "record" and trained["ours"].digest == before.trained.digest
    assert all(tensor.is_meta for tensor in trained["ours"].network.parameters())
    reading = wb.readings(trained)["ours"]
    assert reading.measured("union") == before.measured("union")
    assert reading.cost("trunk") == before.cost("trunk")
    assert session.subjects({"ours": reading}).popitem()[1].network is None  # nothing to attack it with
    with pytest.raises(WorkbookError, match="its weights did not"):
        asked(images=400).readings(trained, forms=("clean",))


def test_a_training_of_a_page_s_own_is_read_where_it_came_along(asked, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipes.find("resnet20-digits-float-laptop"), name="resnet20-digits-float-laptop-mine",
                                 learning_rate=0.01)
    shutil.copy(lib.CHECKPOINTS / "resnet20-digits-float-laptop.safetensors", tmp_path / f"{recipe.name}.safetensors")
    monkeypatch.setattr(lib, "CHECKPOINTS", tmp_path)
    assert asked().train(recipe).weights == "shipped" and asked().shipped("resnet20", "float-laptop-mine")
    monkeypatch.setattr(loop, "load_or_fit", lambda *args, **told: pytest.fail("it was trained"))
    for other in (asked(weights="train"), asked()):
        with pytest.raises(pytest.fail.Exception, match="trained"):
            other.train(dataclasses.replace(recipe, name=recipe.name + "2" * (other.weights == "shipped")))


def test_a_record_kept_in_a_run_is_taken_for_its_own_thresholds_alone(asked):
    wb = asked(images=2)
    for gates in ((0.5, 0.5), (0.5, 0.6)):
        found = wb.record(smallcnn(wb), forms=("gate_aware",), thresholds=gates)
        assert found.views[0].thresholds_used == gates


def test_another_seed_is_attacked_anew_and_the_rows_say_what_was_read(asked, monkeypatch):
    wb = asked(seed=7, images=3)
    trained = smallcnn(wb)
    dataset = data.load("digits", shape=(1, 28, 28))
    dataset = dataclasses.replace(dataset, threat={**dataset.threat, "steps": 1})
    monkeypatch.setattr(Session, "data", lambda *asked: dataset)
    found = wb.readings({"max_average": trained})
    table = rows.read(wb.write(found))
    assert set(table.images) == {3} and set(table.weights) == {"shipped"}
    assert set(table.seed.dropna()) == {7} and set(table.checkpoint) == {trained.digest}

    def refuse(*asked):
        raise WorkbookError("is not here")

    monkeypatch.setattr(Session, "data", refuse)
    with pytest.raises(WorkbookError, match="images and seed 7: is not here"):
        wb.record(trained)


def test_a_named_file_is_attacked_or_refused(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "at_hand", lambda name: None)
    with pytest.raises(WorkbookError, match="mine.pth.tar is neither a file nor below"):
        released_record.load_or_attack(asked(file="mine.pth.tar"))
    (tmp_path / "mine.pth.tar").write_bytes(b"x")
    with pytest.raises(WorkbookError, match="needs the CIFAR-10 test images"):
        released_record.load_or_attack(asked(file=str(tmp_path / "mine.pth.tar"), weights="train"))


def test_the_shipped_record_of_the_released_weights_says_that_it_is_one(asked, monkeypatch):
    monkeypatch.setattr(subject, "at_hand", lambda name: None)
    found = released_record.load_or_attack(asked(weights="train"))  # nothing was named, nothing is at hand: it is read
    assert found.reading.trained.weights == "shipped" and found.reading.record.images == 1017
    found = released_record.load_or_attack(asked(images=100, restarts=2))
    assert found.reading.record.images == len(found.restarts.labels) == 100 and len(found.restarts.views) == 2
    for wrong in (dict(images=5000), dict(seed=7), dict(restarts=99)):
        with pytest.raises(WorkbookError, match="shipped record|were recorded"):
            released_record.load_or_attack(asked(**wrong))


def test_trainings_are_those_named_of_which_every_file_came(asked, tmp_path):
    for name in ("a0", "b0", "a1", "b1", "a2", "b2", "a3"):
        (tmp_path / name).touch()

    def files(seed):
        return [tmp_path / f"a{seed}", tmp_path / f"b{seed}"]

    assert asked().trainings(files) == [0, 1, 2]
    assert asked(seed=1).trainings(files) == [1, 2]
    assert asked(seeds=2).trainings(files) == [0, 1]
    for wrong in (dict(seed=7), dict(seeds=5)):
        with pytest.raises(WorkbookError, match="not enough came"):
            asked(**wrong).trainings(files)


def test_a_dataset_that_was_named_is_shown_or_refused(asked):
    families = {"digits": ("rdi_smallcnn", "max_average", "digits"), "elsewhere": ("rdi_smallcnn", "main", "stl10")}
    assert list(asked().load_all(families)) == ["digits"]
    assert list(asked(dataset="digits").load_all(families)) == ["digits"]
    with pytest.raises(WorkbookError, match="no network of stl10 came with the repository"):
        asked(dataset="stl10").load_all(families)


def test_what_was_shipped_is_of_one_seed():
    for path in lib.ATLASES.glob("*.safetensors"):
        assert Record.load(path).meta["seed"] == 0
