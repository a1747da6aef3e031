"""The parameters cell: coerced where beyond doubt, refused elsewhere, before anything is computed."""

from pathlib import Path

import pytest

from lib import RUNS, WorkbookError
from lib.workbook import parameters


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("WORKBOOK_PRESET", "WORKBOOK_WEIGHTS", "WORKBOOK_ALLOW_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parameters, "pick_device", lambda: "cpu")


def cell(extra: str = "", injected: str = "") -> dict:
    """The globals of a notebook after its parameters cell and, with `injected`, papermill's cell behind it."""
    source = 'preset: str = "auto"\nweights: str = "auto"\nseed: int = 0\nrun_dir: str = ""\n' + extra
    namespace = {"In": ["", source]}
    exec(source, namespace)
    if injected:
        namespace["In"].append("# Parameters\n" + injected)
        exec(injected, namespace)
    return namespace


def test_a_reader_gets_the_laptop_size_with_shipped_weights():
    settings = parameters.resolve(cell(), "00_start_here")
    assert (settings.preset, settings.weights, settings.seed, settings.device) == ("laptop", "shipped", 0, "cpu")
    assert settings.run_dir == RUNS / "interactive" / "00_start_here"
    assert settings.networks == RUNS / "interactive" / "networks"


def test_auto_follows_the_environment_and_a_word_in_the_cell_beats_it(monkeypatch):
    monkeypatch.setenv("WORKBOOK_PRESET", "quick")
    monkeypatch.setenv("WORKBOOK_WEIGHTS", "train")
    assert parameters.resolve(cell(), "x").preset == "quick"
    assert parameters.resolve(cell(), "x").weights == "train"
    assert parameters.resolve(cell(injected='preset = "laptop"'), "x").preset == "laptop"


def test_open_values_are_filled_by_the_preset_and_given_ones_stay():
    namespace = cell('dataset: str = "auto"\nimages: int = 0\n')
    filled = parameters.resolve(namespace, "x", dataset=("digits", "mnist", "mnist"), images=(10, 20, 30))
    assert (filled.dataset, filled.images) == ("mnist", 20)
    given = parameters.resolve(namespace | {"images": 7, "preset": "quick"}, "x", dataset=("digits", "mnist", "mnist"),
                               images=(10, 20, 30))
    assert (given.dataset, given.images) == ("digits", 7)


def test_settings_say_in_one_line_what_runs():
    line = str(parameters.resolve(cell("images: int = 5\n", 'run_dir = "/elsewhere/a"'), "x"))
    assert line == "preset laptop · weights shipped · seed 0 · cpu · images 5 · /elsewhere/a"


@pytest.mark.parametrize("kind, given, meant", [
    (float, "1e-4", 1e-4), (float, "8/255", 8 / 255), (float, 3, 3.0), (int, "12", 12), (int, 4.0, 4), (str, "a", "a"),
    (bool, "false", False), (bool, "True", True), (list, "[1, 2]", [1, 2]), (list[float], [1, "2"], [1.0, 2.0]),
])
def test_a_value_that_is_beyond_doubt_is_coerced(kind, given, meant):
    value = parameters.coerce("x", given, kind)
    assert value == meant and type(value) is type(meant)


@pytest.mark.parametrize("kind, given", [
    (str, 7), (float, "fast"), (float, "1/0"), (float, True), (float, float("nan")), (float, "inf"), (int, 1.5),
    (int, True), (int, "1e3"), (bool, "no"), (bool, 1), (list, "1,2"), (list[int], [1, "b"]), (float, None), (int, [1]),
])
def test_a_doubtful_value_is_refused_by_name(kind, given):
    with pytest.raises(WorkbookError, match="parameter epsilon"):
        parameters.coerce("epsilon", given, kind)


def test_papermills_misspelt_name_is_refused():
    with pytest.raises(WorkbookError, match="has no parameter epsilom; it has .*epsilon"):
        parameters.resolve(cell("epsilon: float = 0.3\n", "epsilom = 0.1"), "11_x")


@pytest.mark.parametrize("injected, message", [
    ('preset = "large"', "preset 'large' is unknown"), ('weights = "mine"', "weights 'mine' is unknown"),
    ("seed = 'one'", "parameter seed"), ("run_dir = 3", "parameter run_dir")])
def test_common_parameters_are_checked(injected, message):
    with pytest.raises(WorkbookError, match=message):
        parameters.resolve(cell(injected=injected), "x")


def test_a_cell_without_the_common_names_is_refused():
    namespace = {}
    exec("seed: int = 0", namespace)
    with pytest.raises(WorkbookError, match="lacks preset, weights, run_dir"):
        parameters.resolve(namespace, "x")


def test_annotations_that_python_keeps_behind_a_function():
    assert parameters.annotations({"__annotate__": lambda form: {"seed": int}}) == {"seed": int}


def test_paper_size_is_refused_on_a_cpu_unless_it_is_insisted_on(monkeypatch):
    wanted = cell(injected='preset = "paper"\nweights = "train"')
    with pytest.raises(WorkbookError, match="needs a CUDA device"):
        parameters.resolve(wanted, "x")
    monkeypatch.setenv("WORKBOOK_ALLOW_CPU", "1")
    assert parameters.resolve(wanted, "x").preset == "paper"
    monkeypatch.delenv("WORKBOOK_ALLOW_CPU")
    monkeypatch.setattr(parameters, "pick_device", lambda: "cuda")
    assert parameters.resolve(wanted, "x").device == "cuda"


def test_a_run_folder_outside_the_repository_is_taken_as_it_is(tmp_path: Path):
    settings = parameters.resolve(cell(injected=f'run_dir = "{tmp_path}/a"'), "x")
    assert settings.run_dir == tmp_path / "a" and settings.networks == tmp_path / "networks"


def test_the_settings_name_no_number_of_images_that_a_shipped_record_does_not_have(tmp_path):
    told = dict(preset="laptop", weights="shipped", seed=0, run_dir=tmp_path, device="cpu", notebook="x", images=1000)
    assert "images" not in str(parameters.Settings(**told))
    assert "images 1000" in str(parameters.Settings(**told | {"weights": "train"}))
    assert "images 1000" in str(parameters.Settings(**told, named=frozenset({"images"})))
