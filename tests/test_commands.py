"""The core verbs end to end, on a tiny network: what they print, what they write, what they refuse."""

import json

import numpy as np
import pytest
import torch

from lib import WorkbookError, __main__, checkpoints, commands, data, evaluating, randomness
from lib.evaluation import reading, routing
from lib.evaluation.record import Record
from lib.models import cost, exits, zoo
from lib.operating_point import OperatingPoint
from lib.training import recipes

BUDGET = "--epsilon 0.2 --step-size 0.1 --steps 2"
DIGITS = "--dataset digits --device cpu"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    network = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25, seed=1)
    with torch.no_grad():
        network.heads[-1][-1].weight.normal_(0, 0.3, generator=randomness.generator(0, "test"))
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    checkpoints.save(path, network, recipe={"defence": "average"})
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "plain.safetensors"
    checkpoints.save(path, zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25))
    return path


def run(text, *more):
    """One command line, as the front door parses it."""
    args = __main__.parse([*text.split(), *map(str, more)])
    return __main__.start(args)


def written(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_evaluate_writes_exactly_the_promised_keys(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "x.json"
    forms = "clean,main,average,max_average,single1,single2"
    run(f"evaluate {checkpoint} {DIGITS} {BUDGET} --attack {forms} --images 100:112 --thresholds 2.2,2.1 --json {out}")
    told, printed = written(out), capsys.readouterr().out
    assert set(told) == {"images", "point", "thresholds", "forms", "worst_form", "union_correct", "audit", "remarks"}
    assert told["images"] == 12 and told["thresholds"] == [2.2, 2.1]
    assert list(told["forms"]) == forms.split(",")
    for form in told["forms"].values():
        assert set(form) == {"correct", "exits", "per_exit", "paper_mflops", "cumulative_macs", "saving",
                             "efficacy"}
        assert sum(form["exits"]) == 12 and len(form["per_exit"]) == 3
    assert told["worst_form"] == min(list(told["forms"])[1:], key=lambda f: told["forms"][f]["correct"])
    assert told["union_correct"] <= told["forms"][told["worst_form"]]["correct"]
    for expected in ("images 100:112", "pgd-2", "epsilon 0.2", "thresholds 2.2, 2.1 (given)", "max_average",
                     "worst form", "the paper's worst case (lowest of its 5 forms)", "right under every one of clean"):
        assert expected in printed


def test_evaluate_agrees_with_running_the_network(checkpoint, tmp_path):
    out = tmp_path / "x.json"
    run(f"evaluate {checkpoint} {DIGITS} --attack clean --images 20:60 --thresholds 2.2,2.1 --json {out}")
    clean = written(out)["forms"]["clean"]
    network = checkpoints.load(checkpoint).network
    images, labels = data.load("digits", shape=(1, 28, 28)).test[20:60].floats()
    with torch.no_grad():
        prediction, leaving = exits.route(network, images, OperatingPoint(thresholds=(2.2, 2.1)))
        every = network(images).argmax(-1)
    assert clean["correct"] == (prediction == labels).sum()
    assert clean["exits"] == torch.bincount(leaving, minlength=3).tolist()
    assert clean["per_exit"] == (every == labels).sum(1).tolist()
    macs = torch.tensor([float(e.cumulative_macs) for e in cost.cost(network).exits])
    assert clean["cumulative_macs"] == pytest.approx(macs[leaving].mean().item())


def test_evaluate_takes_the_datasets_budget_and_thresholds_of_the_paper(checkpoint, tmp_path, capsys):
    run(f"evaluate {checkpoint} {DIGITS} --images 5 --attack clean,main --json {tmp_path / 'x.json'}")
    assert written(tmp_path / "x.json")["thresholds"] == [0.023, 0.014]
    threat = data.load("digits").threat
    assert f"pgd-{threat['steps']}, epsilon {threat['epsilon']}, step {threat['step_size']}" in capsys.readouterr().out


def test_evaluate_runs_every_form_when_none_is_named(checkpoint, tmp_path):
    run(f"evaluate {checkpoint} {DIGITS} {BUDGET} --images 4 --json {tmp_path / 'x.json'}")
    assert list(written(tmp_path / "x.json")["forms"]) == [
        "clean", "single1", "single2", "main", "average", "max_average", "random", "gate_aware"]


def test_the_last_single_attack_is_main_by_either_name(checkpoint, tmp_path):
    run(f"evaluate {checkpoint} {DIGITS} {BUDGET} --images 6 --attack single3,main --json {tmp_path / 'x.json'}")
    told = written(tmp_path / "x.json")["forms"]
    assert told["single3"] == told["main"]


def test_calibrated_thresholds_come_from_held_out_clean_images(checkpoint, tmp_path):
    out = tmp_path / "x.json"
    run(f"evaluate {checkpoint} {DIGITS} --attack clean --images 6 --thresholds calibrated --json {out}")
    network, validation = checkpoints.load(checkpoint).network, data.load("digits", shape=(1, 28, 28)).validation
    with torch.no_grad():
        entropy = exits.entropy(network(validation.floats()[0])).numpy()
    assert written(out)["thresholds"] == pytest.approx(routing.calibrate(entropy), abs=1e-6)


def test_a_closed_exit_is_never_taken_and_stays_valid_json(checkpoint, tmp_path):
    out = tmp_path / "x.json"
    run(f"evaluate {checkpoint} {DIGITS} --attack clean --images 6 --thresholds closed,9 --json {out}")
    told = written(out)
    assert told["thresholds"] == ["-inf", 9.0] and told["forms"]["clean"]["exits"] == [0, 6, 0]


def test_the_saved_record_gives_the_same_numbers_again(checkpoint, tmp_path):
    run(f"evaluate {checkpoint} {DIGITS} {BUDGET} --images 30:38 --attack clean,average --thresholds 2.2,2.1 "
        f"--batch-size 4 --save-record {tmp_path / 'a.safetensors'} --json {tmp_path / 'x.json'}")
    atlas, told = Record.load(tmp_path / "a.safetensors"), written(tmp_path / "x.json")
    found = reading.read(atlas, thresholds=told["thresholds"])
    assert found.right("union").sum() == told["union_correct"]
    assert found.cost("cumulative_macs", "average") == told["forms"]["average"]["cumulative_macs"]
    assert atlas.meta["checkpoint"] == checkpoints.load(checkpoint).digest
    assert atlas.meta["audit"] == {"{}": told["audit"]}
    assert atlas.meta["images"] == [30, 38] and atlas.meta["defence"] == "average" and atlas.held_out is not None


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_images(checkpoint, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(f"evaluate {checkpoint} {DIGITS} {BUDGET} --images 8 --attack main --seed {seed} "
            f"--save-record {tmp_path / name} --json {tmp_path / name}.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    margins = [Record.load(tmp_path / name).logits for name in "abc"]
    assert np.array_equal(margins[0], margins[1]) and not np.array_equal(margins[0], margins[2])


def test_a_plain_network_is_evaluated_without_thresholds(plain, tmp_path, capsys):
    run(f"evaluate {plain} {DIGITS} {BUDGET} --images 5 --json {tmp_path / 'x.json'}")
    told = written(tmp_path / "x.json")
    assert told["thresholds"] == [] and list(told["forms"]) == ["clean", "main"]
    assert told["forms"]["main"]["exits"] == [5] and "thresholds none" in capsys.readouterr().out


@pytest.mark.parametrize("flags, sentence", [
    ("--attack clean,maim", "unknown attack form 'maim' .did you mean main"),
    ("--attack single9", "unknown attack form 'single9'"),
    ("--images 490:501", "images 490:501 are not among the 500 test images of digits; give a range within 0:500"),
    ("--images 500:", "images 500:500 are not among the 500 test images"),
    ("--thresholds 0.5", "1 thresholds for 3 exits; give 2"),
    ("--thresholds 0.5,0.5,0.5", "3 thresholds for 3 exits; give 2"),
    ("--device cuda:77", "there is no device 'cuda:77' here"), ("--device meta", "no device 'meta'"),
    ("--device gpu", "no device 'gpu' here .* use --device cpu, cuda or cuda:1"),
    ("--dataset digitz", "[Tt]here is no dataset 'digitz'"),
    ("--json {folder}", "is a folder; give the name of a file"),
    ("--save-record {folder}/tiny.safetensors/x", "may not be written"),
    ("--attack main --step-size 0", "step_size 0.0 is not above 0"),
])
def test_what_does_not_fit_is_answered_in_one_sentence(checkpoint, flags, sentence):
    flags = flags.format(folder=checkpoint.parent)
    with pytest.raises(WorkbookError, match=sentence) as error:
        run(f"evaluate {checkpoint} {DIGITS} --attack clean --images 2 {flags}")
    assert "\n" not in str(error.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(WorkbookError, match="does not exist"):
        run(f"evaluate {tmp_path / 'missing.safetensors'} {DIGITS}")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(WorkbookError, match="not a safetensors file"):
        run(f"evaluate {tmp_path / 'text.safetensors'} {DIGITS}")


def test_thresholds_that_a_network_does_not_have_are_refused(plain):
    with pytest.raises(WorkbookError, match="one exit and takes no thresholds"):
        run(f"evaluate {plain} {DIGITS} --thresholds 0.5 --images 2")
    unpublished = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25)
    unpublished.paper_thresholds = None
    with pytest.raises(WorkbookError, match="states no thresholds for this network; use --thresholds calibrated"):
        evaluating.find_thresholds("paper", unpublished, None)


def test_a_network_of_other_classes_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25, classes=7))
    with pytest.raises(WorkbookError, match="of 10 classes .*, but the network knows 7"):
        run(f"evaluate {path} {DIGITS}")


def test_cost_writes_and_prints_both_conventions(tmp_path, capsys):
    run(f"cost resnet38 --exits rdi --json {tmp_path / 'x.json'}")
    told, printed = written(tmp_path / "x.json"), capsys.readouterr().out
    assert set(told) == {"parameters", "macs", "exits"} and told["parameters"] == 692_310
    assert all(set(e) == {"paper_mflops", "cumulative_macs"} for e in told["exits"])
    assert [f"{e['paper_mflops']:.4f}" for e in told["exits"]][::6] == ["16.7969", "79.4219"]
    assert told["exits"][-1]["cumulative_macs"] == told["macs"] == 101_108_864
    for expected in ("692,310 parameters", "79.42", "101,108,864", "main"):
        assert expected in printed


def test_cost_of_several_widths_has_each_of_them(tmp_path, capsys):
    run(f"cost resnet20 --widths 0.5,1.0 --json {tmp_path / 'x.json'}")
    told = written(tmp_path / "x.json")
    assert set(told) == {"parameters", "macs", "exits", "widths"}
    assert told["macs"] == told["widths"]["1"]["macs"] > 2 * told["widths"]["0.5"]["macs"]
    assert "0.5" in capsys.readouterr().out


def test_cost_knows_the_published_shape_of_each_model(tmp_path):
    run(f"cost smallcnn --exits rdi --json {tmp_path / 'x.json'}")
    assert written(tmp_path / "x.json")["parameters"] == 836_846
    run(f"cost smallcnn --exits rdi --input 1x32x32 --json {tmp_path / 'y.json'}")
    assert written(tmp_path / "y.json")["macs"] > written(tmp_path / "x.json")["macs"]
    with pytest.raises(WorkbookError, match="unknown model 'resnet83'"):
        run("cost resnet83")
    with pytest.raises(WorkbookError, match="width"):
        run("cost resnet20 --widths 0.5")


def test_train_then_evaluate(tmp_path, capsys):
    name = "rdi_smallcnn-digits-main-quick"
    run(f"train {name} --seed 3 --folder {tmp_path / 'run'} --device cpu --json {tmp_path / 'x.json'}")
    told = written(tmp_path / "x.json")
    assert told["finished"] and told["seed"] == 3 and told["recipe"] == name and told["step"] == told["total"]
    assert f"{name}, seed 3" in capsys.readouterr().out
    run(f"evaluate {told['path']} {DIGITS} --attack clean --json {tmp_path / 'y.json'}")
    assert written(tmp_path / "y.json")["forms"]["clean"]["correct"] > 250  # chance is 50 of 500


def test_train_lists_its_recipes_and_knows_when_to_stop(tmp_path, capsys):
    run("train --list")
    assert capsys.readouterr().out.split() == list(recipes.names())
    run(f"train rdi_smallcnn-digits-standard-quick --minutes 0.0001 --folder {tmp_path} --device cpu")
    assert "the same command goes on from here" in capsys.readouterr().out
    with pytest.raises(WorkbookError, match="there is no recipe 'rdi_smallcnn-digits-man-quick'; did you mean"):
        run("train rdi_smallcnn-digits-man-quick")


def test_bench_runs_its_own_file_with_the_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    with pytest.raises(WorkbookError, match="is missing"):
        run("bench")
    (tmp_path / "tests" / "bench").mkdir(parents=True)
    (tmp_path / "tests" / "bench" / "run.py").write_text(
        "from pathlib import Path\ndef main(args):\n    Path(args.json).write_text(f'{args.rounds} {args.only}')\n")
    run(f"bench --rounds 3 --only a,b --json {tmp_path / 'out'}")
    assert (tmp_path / "out").read_text() == "3 ('a', 'b')"
