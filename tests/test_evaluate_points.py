"""`evaluate` at any operating point, under any algorithm: equal to the record, the point said first, or refused."""

import json

import pytest
import torch

from lib import ATLASES, CHECKPOINTS, WorkbookError, __main__, checkpoints, data, evaluating
from lib.attacks.steps import Threat
from lib.evaluation import points, reading, recording
from lib.models.layers import Chain
from lib.operating_point import OperatingPoint
from tests.helpers.broken import BROKEN, broken

torch.set_num_threads(1)
FLOAT = CHECKPOINTS / "resnet20-digits-float_slim-laptop.safetensors"
OAT = CHECKPOINTS / "resnet20-digits-oat-laptop.safetensors"
EXITS = CHECKPOINTS / "rdi_smallcnn-digits-max_average-laptop.safetensors"


def evaluate(tmp_path, capsys, path, flags, budget="--steps 2 --step-size 0.1"):
    out = tmp_path / "x.json"
    line = f"evaluate {path} --dataset digits --device cpu --images 6 {budget} {flags} --json {out}"
    evaluating.evaluate(__main__.parse(line.split()))
    return json.loads(out.read_text()), capsys.readouterr().out


@pytest.mark.parametrize("flags, point", [
    ("--lambda-n 1 --lambda-th 0", OperatingPoint(noise=1.0, batch_norm=1.0, width=1.0)),
    ("--lambda-n 0.2 --lambda-th 0.5 --width 0.5", OperatingPoint(noise=0.4, batch_norm=0.0, width=0.5)),
    ("--noise 0 --batch-norm 1", OperatingPoint(noise=0.0, batch_norm=1.0, width=1.0)),
    ("", OperatingPoint(noise=0.0, batch_norm=0.0, width=1.0))])
def test_a_float_network_is_judged_at_the_point_asked_for_and_it_is_said_first(tmp_path, capsys, flags, point):
    draws = "--draws 2" if point.noise else ""
    told, printed = evaluate(tmp_path, capsys, FLOAT, f"{flags} {draws} --attack clean,main")
    assert printed.startswith(f"operating point: {points.name(point)}\n") and told["point"] == point.to_json()
    network = checkpoints.load(FLOAT).network
    dataset = data.load("digits", shape=network.input_shape)
    views = recording.suite(network, Threat(0.15, 0.1, 2), point=point)
    found = reading.read(recording.record(network, dataset.test[:6], views, draws=2), point)
    for name in ("clean", "main"):
        assert told["forms"][name]["correct"] == pytest.approx(found.right(name).sum())
    assert told["forms"]["main"]["cumulative_macs"] == found.cost("cumulative_macs")
    assert ("EOT" in told["forms"]) == (point.noise > 0)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--lambda-n 1 --lambda-th 0", "--lambda-n 0.2 --lambda-th 0.5",
                                   "--lambda-n 1 --lambda-th 0 --width 0.5"])
def test_what_evaluate_says_is_what_the_notebook_shows(tmp_path, flags, monkeypatch):
    """The shipped record that page 22 reads: the same images, seed, batches and draws give the same numbers."""
    monkeypatch.setattr("lib.evaluating.EOT", 2)  # what it adds, dearer
    out, record = tmp_path / "x.json", recording.Record.load(ATLASES / FLOAT.name)
    how = f"--images 0:{record.meta['batch_size']} --batch-size {record.meta['batch_size']} --seed 0 --draws 5"
    line = f"evaluate {FLOAT} --dataset digits --device cpu --attack clean,main {flags} {how} --json {out}"
    evaluating.evaluate(__main__.parse(line.split()))
    told = json.loads(out.read_text())
    found = reading.read(record.select(images=slice(0, record.meta["batch_size"])), OperatingPoint.from_json(
        told["point"]))
    assert told["images"] == found.record.images == 250 and found.draws == 5
    for name in ("clean", "main"):
        assert told["forms"][name]["correct"] == pytest.approx(found.right(name).sum(), abs=1e-9)
        assert told["forms"][name]["cumulative_macs"] == found.cost("cumulative_macs")


@pytest.mark.parametrize("path, flags, match", [
    (FLOAT, "--lambda-n 1 --noise 0.5", "says what noise is"), (FLOAT, "--lambda-th 0.5", "give that as well"),
    (EXITS, "--lambda-n 1", "not made for a lambda"), (EXITS, "--noise 0.5", "has no knob noise"),
    (OAT, "--lambda-n 0.5", "has no code"), (FLOAT, "--width 0.3", "width 0.3 was not trained"),
    (FLOAT, "--algorithm wrm --steps 2", "no radius; give --epsilon"), (EXITS, "--robustbench-card x", "ask for it"),
    (EXITS, "--draws 3", "--draws changes nothing about a point"),
    (EXITS, "--algorithm cw --loss ce", "--loss changes nothing about PGD on the margin"),
    *((EXITS, f"--algorithm fgsm {flag}", "one step of FGSM") for flag in ("--steps 5", "--step-size 0.1")),
    *((EXITS, f"--attack clean {flag}", "changes nothing about clean images; leave it out") for flag in (
        "--epsilon 0.3", "--steps 5", "--step-size 0.1", "--mode batch", "--loss margin", "--algorithm fgsm"))])
def test_what_cannot_be_done_is_refused(tmp_path, capsys, path, flags, match):
    with pytest.raises(WorkbookError, match=match):
        evaluate(tmp_path, capsys, path, flags, budget="")


@pytest.mark.parametrize("flags, said", [
    ("--algorithm cw --steps 2", "pgd cw-2"), ("--algorithm fgsm", "fgsm-1"), ("--loss margin --steps 2", "pgd cw-2"),
    ("--algorithm wrm --epsilon 0.5 --steps 2", "wrm-2")])
def test_the_algorithm_is_the_one_named(tmp_path, capsys, flags, said):
    told, printed = evaluate(tmp_path, capsys, OAT, f"{flags} --code 1 --attack clean,main", budget="")
    assert said in printed and told["point"] == {"code": 1.0} and "λ 1" in printed


def test_the_strong_suite_and_autoattack_join(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyautoattack")
    from lib.attacks import autoattack, strong

    monkeypatch.setattr(strong, "STEPS", 3)
    run, few = autoattack.run, dict(iterations=3, queries=5)
    monkeypatch.setattr(autoattack, "run", lambda *args, **options: run(*args, **options | few))
    card = tmp_path / "card.json"
    flags = f"--attack clean --thresholds 0.8,0.4 --strong --autoattack standard --robustbench-card {card}"
    told, printed = evaluate(tmp_path, capsys, EXITS, flags)
    assert told["strong"]["suite"] == strong.SUITE and "reroute 3" in told["strong"]["left"]
    assert "an upper bound" in printed
    assert told["strong"]["correct"] <= told["forms"]["clean"]["correct"]
    assert told["autoattack"]["flags"] == []
    about = json.loads(card.read_text())
    assert about["eps"] == "38.25/255" and about["autoattack_acc"] == f"{100 * told['autoattack']['correct'] / 6:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, *BROKEN])
def test_broken_networks_are_flagged_in_evaluate_and_in_a_record(tmp_path, capsys, monkeypatch, how):
    sound = checkpoints.load(CHECKPOINTS / "rdi_resnet38-digits-max_average-laptop.safetensors").network
    network = broken(sound, how) if how else sound
    loaded = checkpoints.Loaded(network, {}, "0" * 64)
    monkeypatch.setattr(checkpoints, "load", lambda *_: loaded)
    path = tmp_path / "record.safetensors"
    flags = f"--attack clean,main --thresholds 3,3,3,3,3,3 --save-record {path}"
    told, printed = evaluate(tmp_path, capsys, "x.safetensors", flags)
    (kept,) = (audit["flags"] for audit in recording.Record.load(path).meta["audit"].values())
    assert kept == told["audit"]["flags"]
    if how is None:
        assert not set(kept) & {*BROKEN, "zero gradients"} and isinstance(network.stages[0], Chain)
    else:
        assert how in kept and how in printed and "!" in printed
    images = data.load("digits", shape=network.input_shape).test[:6]
    made = recording.record(network, images, recording.suite(network, Threat(0.15, 0.1, 2)), audited=6)
    (audit,) = made.meta["audit"].values()
    assert how is None or how in audit["flags"]
