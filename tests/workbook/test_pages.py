"""What pages on networks with exits compute in their cells, on shipped records and on records made by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest

import lib
from lib import WorkbookError, checkpoints
from lib.attacks.forms import paper_forms
from lib.evaluation.reading import Reading, Trainings
from lib.evaluation.record import Record
from lib.evaluation.routing import ExitCosts
from lib.models import zoo
from lib.operating_point import OperatingPoint
from lib.training import loop
from lib.training.recipes import RDI
from lib.workbook import runs, style, tables
from lib.workbook.once_for_all import Trained
from tests.helpers import notebook_cells as pages
from tests.helpers.made_record import made
from tests.helpers.networks import small


@pytest.fixture
def page(tmp_path, monkeypatch):
    """run(stem, until, **parameters): shipped, at laptop size, into a scratch folder."""
    monkeypatch.setenv("WORKBOOK_PRESET", "laptop")
    return lambda stem, until=None, **given: pages.run(stem, until, run_dir=str(tmp_path / "run" / "x"), **given)


def trainings(*worst: int) -> Trainings:
    """A training per number: so many of 100 images are right under its worst form, all clean ones are."""
    readings = []
    for right in worst:
        prediction = np.zeros((5, 2, 100), int)
        prediction[1:, :, right:] = 1
        record = made(("clean", "single1", "main", "average", "max_average"), prediction,
                      np.full(prediction.shape, 0.1), [0] * 100)
        readings.append(Reading(record, OperatingPoint(), (0.5,), "paper", trained=Trained("made", None, "")))
    return Trainings(tuple(readings))


def test_19_judges_the_ordering_over_trainings():
    runs = {"standard": trainings(0, 2, 1), "main": trainings(20, 25, 22), "average": trainings(50, 20, 35),
            "max_average": trainings(60, 63, 61)}
    lines = pages.value("19", "def right(", dict(runs=runs, tables=tables, style=style, itertools=itertools, RDI=RDI))
    assert lines.loc["main branch withstands more than standard (paper's worst case)", "verdict"] == "held"
    unsure = lines.loc["average withstands more than main branch (paper's worst case)"]
    assert unsure["verdict"] == "too small to tell" and unsure["difference"] == "+12.7 points"
    assert lines.loc["robustness costs clean accuracy (standard above max-average)", "difference"] == "+0.0 points"


def test_19_reads_the_trainings_that_are_named_and_trains_what_was_shipped(page):
    found = page("19", "shown = (", seeds=2, images=20)
    runs = found["runs"].values()
    assert {len(run.each) for run in runs} == {2}
    assert all(len(r.record.labels) == 20 and r.trained.weights == "shipped" for run in runs for r in run.each)
    for defence, seed in itertools.product(RDI, (0, 1, 2)):
        shipped = Record.load(found["place"](defence, seed))
        assert found["recipe"](defence, seed).digest() == shipped.meta["recipe_digest"]
        assert {v.threat.steps for v in shipped.views if v.threat} == {20} and shipped.meta["batch_size"] == 125
    with pytest.raises(WorkbookError, match="not enough came"):
        page("19", "shown = (", seed=7)


@pytest.mark.parametrize("stem, table", [("11", 2), ("12", 3), ("14", None)])
def test_a_page_of_shipped_records_opens_no_dataset(page, stem, table, monkeypatch):
    def refuse(*asked, **how):
        raise AssertionError("a dataset was opened")

    monkeypatch.setattr("lib.data.load", refuse)
    found = page(stem, "explorer = ")
    assert found["readings"]["max_average"].record.images >= 250
    assert found["caption"].startswith(f"{found['readings']['max_average'].record.images:,} test images of ")


def ship(name: str, network, folder) -> None:
    """A network and its record of eight lossless images, as they come along."""
    path, forms = folder / "checkpoints" / f"{name}.safetensors", paper_forms(network.num_exits)
    checkpoints.save(path, network)
    digest = checkpoints.load(path).digest
    source = np.random.default_rng(0)
    shape = (1 + len(forms), network.num_exits, 8)
    held_out = source.random(shape[1:]) * 2, source.random(shape[1:]) < 0.5
    made(("clean", *forms), source.integers(0, 2, shape), source.random(shape) * 2, [0, 1] * 4,
         validation=held_out if network.num_exits > 1 else None, model=network.config, checkpoint=digest,
         dataset="cifar10_png", data_variant="lossless, first 8").save(folder / "atlases" / f"{name}.safetensors")


@pytest.mark.parametrize("stem, network, changed", [
    ("10", "resnet38", {}), ("12", "resnet38", {}), ("13", "mobilenet_v2", {}),
    ("14", "resnet38", {"network": "rdi_resnet38"})])
def test_a_page_opens_on_natural_images_as_soon_as_their_networks_come_along(page, stem, network, changed, tmp_path,
                                                                             monkeypatch):
    """With two of the four defences, judged on lossless images; nothing is trained and no dataset opened."""
    monkeypatch.setattr(lib, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(lib, "ATLASES", tmp_path / "atlases")
    for name in ("checkpoints", "atlases"):
        (tmp_path / name).mkdir()
    for name in {network, "mobilenet_v2"} if stem == "10" else {network}:
        ship(f"{name}-cifar10_jpeg-main-laptop", small(name), tmp_path)
    for defence in ("main", "max_average") if stem != "10" else ():
        ship(f"rdi_{network}-cifar10_jpeg-{defence}-laptop", small(network, exits="rdi"), tmp_path)
    found = page(stem, **changed)
    caption = found.get("caption") or found["captions"]["resnet38"]
    assert caption.startswith("8 test images of CIFAR-10, lossless, first 8")
    labels = {"10": {"resnet38", "mobilenet_v2"}, "14": {"main", "max_average"}}
    assert set(found["readings"]) == labels.get(stem, {"main", "max_average", "plain"})
    assert not (tmp_path / "run" / "networks").exists()


def test_31_reads_the_released_record_only_where_nothing_else_is_named(page, monkeypatch):
    """Whatever is timed before and behind."""
    monkeypatch.setattr("lib.training.timing.side_by_side", lambda *asked, **how: [{"device": "cpu", "threads": 1}])
    monkeypatch.setattr("lib.workbook.tables.pivot", lambda *asked: None)
    monkeypatch.setattr("lib.workbook.figures.steps", lambda *asked: None)
    monkeypatch.setattr("lib.workbook.live.show", lambda figure: None)
    monkeypatch.setattr("lib.evaluation.rows.append", lambda *asked: None)
    monkeypatch.setattr("lib.evaluation.latency.time_table", lambda *asked, **how: ExitCosts(np.arange(7), np.ones(7)))
    assert page("31", "stretches = ", images=100)["record"].images == 100
    with pytest.raises(WorkbookError, match="of seed 0, not 7"):
        page("31", "stretches = ", seed=7)
    found = page("31", "stretches = ", defence="max_average", images=50)
    assert found["network"] == "rdi_resnet38-digits-max_average-laptop" and found["record"].images == 50


def test_16_counts_the_published_shapes_and_says_which_did_not_run(page):
    found = page("16", "base, plain")
    assert found["counted"]["whole"].parameters == 564_122
    assert found["counted"]["r007"].exits[0].paper_mflops == pytest.approx(49.381, abs=1e-3)


def test_18_composes_a_training_for_each_convention(page):
    found = page("18", "trained = ")
    exec(next(cell for cell in pages.code("18") if "asked = " in cell).partition("if wb")[0], found)
    assert {recipe.attack_mode for recipe in found["asked"].values()} == {"eval", "authors"}


def test_18_counts_what_heads_add(page):
    lines = page("18", "trained = ")["lines"]
    added = {key: float(line["heads add"].removesuffix(" %")) for key, line in lines.items()}
    assert added["ResNet-38", "rdi, 6 early"] == 21.4  # 101,108,928 of 83,280,512
    assert added["ResNet-38", "cheap, 6 early"] < 2 and added["MobileNetV2", "rdi, 2 early"] < 2
    assert added["MobileNetV2", "released, 6 early"] > 2


def untrained(recipe, folder, **options):
    """In place of a training: its network as it begins."""
    checkpoints.save(folder / "last.safetensors", options.get("start") or zoo.build(**recipe.network))


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["13", "15", "16", "18", "31"])
def test_a_page_runs_at_quick_size_to_its_last_claim(stem, tmp_path, monkeypatch):
    """Without the trainings, which other tests run; no number of such networks stands beside the paper's."""
    monkeypatch.setattr(loop, "load_or_fit", untrained)
    monkeypatch.setenv("WORKBOOK_PRESET", "quick")
    monkeypatch.setenv("WORKBOOK_WEIGHTS", "train")
    as_at_full_size = {"defence": "max_average"} if stem == "31" else {}  # it trains a cheaper one otherwise
    found = pages.run(stem, run_dir=str(tmp_path / "run" / "x"), images=16, **as_at_full_size)
    shown = pages.value(stem, "tables.claims(", found)
    assert len(shown) >= 4 and set(shown["verdict"]) <= {
        "held", "held here", "did not hold", "did not hold here", "too small to tell"}
    assert (found["wb"].run_dir / "metrics.csv").is_file()
    made = {tuple(path.name.split("-")[0:3:2]) for path in found["wb"].networks.iterdir() if path.is_dir()}
    needs = pd.read_csv(runs.NEEDS).query(f"notebook.str.startswith('{stem}')")
    assert made == {(line.network, method) for line in needs.itertuples() for method in line.methods.split()}
