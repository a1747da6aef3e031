"""Studies: what a reading says, and when a number may stand beside the paper's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib import WorkbookError, checkpoints
from lib.attacks.steps import Threat
from lib.evaluation.reading import Reading
from lib.models import zoo
from lib.operating_point import OperatingPoint
from lib.training import loop, recipes
from lib.workbook import figures, tables
from lib.workbook.once_for_all import Trained
from lib.workbook.published import TABLES
from lib.workbook.session import Session
from tests.helpers.made_record import THREAT, made, view

VIEWS = ("clean", "single1", "main", "average", "max_average")


def reading(name="rdi_smallcnn-mnist-main-paper", views=VIEWS, **meta) -> Reading:
    """Two exits, four images of class 0; at threshold 0.5 the first two leave at exit 1. Wrong: see `prediction`."""
    prediction = np.zeros((len(views), 2, 4), int)
    prediction[1, 0, 0] = 1  # single1 breaks image 0 at the exit it leaves by
    prediction[2, 1, 3] = 1  # main breaks image 3, and
    prediction[2, 1, 2] = 1  # image 2
    prediction[3, 1, 0] = 1  # average changes image 0 at the exit it does not reach: no harm
    entropy = np.full(prediction.shape, 0.9)
    entropy[:, 0, :2] = 0.1
    record = made(views, prediction, entropy, [0] * 4, **{"dataset": "mnist"} | meta)
    return Reading(record, OperatingPoint(), (0.5,), "paper", trained=Trained(name, None, "0" * 64))


def test_a_reading_says_which_images_are_right():
    found = reading()
    assert found.right("clean").tolist() == [True] * 4
    assert found.right("average").tolist() == [True] * 4
    assert found.right("paper_worst").tolist() == [True, True, False, False]  # main, the worst of the forms
    assert found.right("paper_union").tolist() == [False, True, False, False]
    assert found.measured("paper_worst").value == 0.5


def test_the_caption_of_every_figure_says_whose_attacks_are_doubted():
    wb = Session(preset="laptop")
    sound, doubtful = reading(), reading(audit={"{}": {"flags": ["zero gradients", "weak"]}})
    told = wb.caption({"main": sound, "max_average": doubtful})
    assert told.endswith(" · do not trust attacked numbers of max-average (weak, zero gradients)")
    assert "trust" not in wb.caption({"main": sound})


def test_a_reading_under_one_of_several_attackers_is_called_and_compared_by_that_one():
    usual, other = Threat(0.3, 0.01, 40), Threat(0.2, 0.05, 7)
    views = ["clean", *(view("main", threat=threat) for threat in (usual, other)), view("average", threat=usual)]
    found = reading("rdi_smallcnn-mnist-main-paper", views[:2] + views[3:] + views[2:3] + ["random"])
    of_usual, of_other = (replace(found, threat=threat) for threat in (usual, other))
    wb = Session(preset="paper")
    assert "PGD-40" in wb.caption({"main": of_usual}) and "PGD-7" in wb.caption({"main": of_other})
    assert tables.comparable(of_usual) and not tables.comparable(of_other)


def test_the_papers_union_leaves_other_attacks_out():
    found = reading(views=(*VIEWS, "random"))
    found.record.right[5] = 0
    assert found.right("paper_union").tolist() == [False, True, False, False]
    assert not found.right("union").any()


def test_what_an_image_costs_is_a_share_of_the_plain_network():
    found = reading()  # trunk 100 and 200, heads 10 and 0: exit 1 costs 110, the last 210; plain 200
    assert found.spent().tolist() == [0.55, 0.55, 1.05, 1.05]


@pytest.mark.parametrize("name, dataset, steps, fair", [
    ("rdi_smallcnn-mnist-main-paper", "mnist", 40, True),
    ("rdi_smallcnn-mnist-main-laptop", "mnist", 40, False),  # another schedule
    ("rdi_smallcnn-mnist-main-paper", "mnist", 20, False),  # a weaker attack
    ("rdi_resnet38-cifar10_jpeg-main-paper", "cifar10_jpeg", 20, False),  # a copy with losses
    ("rdi_resnet38_released", "cifar10", 20, True)])
def test_only_like_is_set_against_the_paper(name, dataset, steps, fair):
    views = [view(form, **({} if form == "clean" else {"threat": Threat(0.3, 0.01, steps)})) for form in VIEWS]
    assert tables.comparable(reading(name, views, dataset=dataset)) is fair


def test_a_table_of_the_paper_stands_beside_with_dashes_for_what_nobody_states():
    views = [view(form, **({} if form == "clean" else {"threat": Threat(8 / 255, 2 / 255, 20)})) for form in VIEWS]
    found = {"max_average": reading("rdi_resnet38_released", views, dataset="cifar10")}
    table = tables.beside((TABLES[3], TABLES[6]), found, ("clean", "random", "attacked_mflops", "union"))
    lines = table.droplevel("network")
    assert lines.loc["TA"].tolist() == ["83.79", "100.00", "51.0 to 100.0", "+16.2"]
    assert lines.loc["random"].tolist() == ["44.86", "–", "–", "–"]  # not recorded here
    assert lines.loc["per-image worst case", "published"] == "–"
    assert lines.loc["MFlops as the paper counts, worst form", "published"] == "57.81"
    assert tables.beside(TABLES[6], found, ("random",)).iloc[0]["published"] == "44.86"


def test_a_table_stands_there_as_the_paper_prints_it_whole():
    table = tables.printed(TABLES[9], {"here": {"main": reading(dataset="cifar10")}})
    assert table.columns.get_level_values(0).unique().tolist() == [
        "standard", "main branch", "average", "max-average", "plain"]
    assert table["standard"].loc["on exit 3"].tolist() == ["8.13", "–"]  # not trained here
    assert table["plain"].loc["ATA, paper's worst case"].tolist() == ["51.11", "–"]
    said = {name: row.tolist() for name, row in table["main branch"].iterrows()}
    assert said["TA"] == ["83.74", "100.0 (51.0–100.0)"] and said["on exit 2"] == ["53.87", "–"]  # has two exits
    assert said["MFlops as the paper counts"] == ["55.27", "1.5"]  # half of the images leave at 1, half at 2
    assert said["saving as the paper counts, %"] == ["30.40", "25.0"]


def test_a_number_of_another_size_has_no_difference():
    table = tables.beside(TABLES[3], {"max_average": reading("x-laptop", dataset="digits")}, ("clean",))
    assert table.iloc[0].tolist() == ["83.79", "100.00", "51.0 to 100.0", "–"]


@pytest.mark.parametrize("name", ["rdi_resnet38-digits-main-quick", "resnet38-digits-main-glance-pruned_0.11"])
def test_no_number_of_a_network_trained_for_seconds_stands_beside_the_papers(name, capsys):
    ways = {"one": reading(name, dataset="digits"), "two": reading()}
    shown = tables.beside(TABLES[3], {"max_average": ways["one"]}, ("clean",))
    assert shown.iloc[0].tolist() == ["83.79", "–", "–", "–"]
    assert "hardly learned" in capsys.readouterr().out
    table = tables.printed(TABLES[3], {name: {"max_average": found} for name, found in ways.items()})
    assert table["max-average"].loc["TA"].tolist() == ["83.79", "–", "100.0 (51.0–100.0)"]
    assert "hardly learned" in capsys.readouterr().out
    tables.beside(TABLES[3], {"max_average": ways["two"]}, ("clean",))
    assert not capsys.readouterr().out


def test_a_published_number_holds_when_it_lies_in_our_interval():
    found = reading("rdi_resnet38_released", dataset="cifar10")
    assert tables.agrees("clean", 83.79, found, "clean")["verdict"] == "held"  # 51 to 100
    found.record.right[0] = 0
    assert tables.agrees("clean", 83.79, replace(found), "clean")["verdict"] == "did not hold"


def opened(**own) -> Session:
    return Session(**dict(preset="quick", weights="train", seed=0, run_dir=Path("x"), device="cpu", notebook="16_x",
                          dataset="digits") | own)


def test_a_number_that_is_no_difference_of_images_is_judged_by_its_interval():
    """Strictly above, at least, at most, between: held, not held, or too small to tell."""
    def answer(found, **bounds):
        return tables.within("x", found, "% of the time", 10, **bounds)["verdict"]

    assert [answer((1, low, 3), above=0) for low in (0.1, 0.0)] == ["held", "too small to tell"]
    assert [answer((-1, -3, high), least=-0.5) for high in (-0.6, -0.4)] == ["did not hold", "too small to tell"]
    assert answer({"value": 1.0, "low": 0.9, "high": 1.1}, least=0.9, most=1.1) == "held"
    assert answer((1, 1.2, 1.3), most=1.1) == "did not hold" and answer((1, 0.5, 1.3), most=1.1) == "too small to tell"
    line = tables.within("x", (5, -1.25, 7), "times", 10, above=0, form=".2f", column="interval")
    assert (line["difference"], line["interval"], line["images"]) == ("5.00 times", "-1.25 to 7.00", 10)


def test_tidy_rows_become_a_table():
    rows = [{"defence": d, "metric": m, "exit": e, "value": v, **span} for d, m, e, v, span in (
        ("a", "ms", "all", 1.0, {"low": 0.5, "high": 2.0}), ("a", "ms", "plain", 3.0, {}),
        ("b", "ratio", "all", 4.0, {}))]
    table = tables.pivot(rows, {"us": ("ms", 0, 1e3, {"exit": "all"}), "plain": ("ms", 1, 1, {"exit": "plain"}),
                                "times": ("ratio", 2, 1)})
    assert table.loc["a"].tolist() == ["1000 (500–2000)", "3.0", "–"] and table.loc["b"].tolist() == ["–", "–", "4.00"]
    assert tables.pivot(rows, {"x": ("ratio", 0, 1)}, ("defence", "exit")).loc[("b", "all"), "x"] == "4"
    assert tables.ranged((5, None, None)) == "+5.0" and tables.ranged((5, -1, 7), ".1f") == "5.0 (-1.0 to 7.0)"


def test_figures_show_what_the_readings_hold():
    found = {"max_average": reading()}
    exits = figures.exits(found, "caption")
    assert [trace.y.tolist() for trace in exits.data] == [[50, 50], [50, 50]]
    dots = figures.forms(found, "caption").data[0]
    assert dots.x[-1] == "per image" and dots.y[-1] == 25 and THREAT.steps == 5
    steps = [{"defence": "x, y", "metric": m, "value": 2.0, **span} for m, span in (
        ("step_ratio", {"low": 1.0, "high": 5.0}), ("step_ratio_predicted", {}))]
    measured, counted = figures.steps(steps, "t", "c").data
    assert list(measured.x) == ["x,<br>y"] and measured.error_y.array[0] == 3 and np.isnan(counted.error_y.array[0])
    bars = figures.bars({"a": {"x": (1.0, None, None), "y": (2.0, 1.5, 4.0)}}, "t", "c", "axis").data[0]
    assert bars.error_y.array[1] == 2 and bars.error_y.arrayminus[1] == 0.5


@pytest.mark.parametrize("network, method", [("rdi_smallcnn", "main"), ("rdi_resnet38", "max_average"),
                                             ("resnet20", "float_slim")])
def test_a_recipes_name_and_seed_mean_one_training_everywhere(network, method, monkeypatch, tmp_path):
    trained = []

    def remember(recipe, folder, **options):
        trained.append(recipe)
        checkpoints.save(Path(folder) / "last.safetensors", zoo.build(**recipe.network))

    monkeypatch.setattr(loop, "load_or_fit", remember)
    here = opened(seed=3, run_dir=tmp_path / "x")
    names = {here.load(network, method, "digits").name, here.load(network, method).name}
    assert names == {f"{network}-digits-{method}-glance"}
    listed = replace(recipes.find(f"{network}-digits-{method}-glance"), seed=3)
    assert trained == [listed, listed]
    changed = replace(listed, learning_rate=0.3)
    with pytest.raises(WorkbookError, match="the name of another training .learning_rate 0"):
        here.train(changed)
    here.train(replace(changed, name="mine"))
    assert trained[-1].name == "mine"
