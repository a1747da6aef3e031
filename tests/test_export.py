"""Exported programs: against the network they come from, image by image, and against exits routed one by one."""

import json

import pytest
import torch

from lib import CHECKPOINTS, WorkbookError, __main__, checkpoints, exporting
from lib.models import exits, export, zoo
from lib.operating_point import OperatingPoint

EVERY = CHECKPOINTS / "cheap_resnet38-cifar10_jpeg-float_slim-laptop.safetensors"
CLOSED = -float("inf")
POINTS = {"clean, all exits": OperatingPoint(noise=0.0, batch_norm=0.0, width=1.0),
          "a frozen draw, half width": OperatingPoint(noise=1.0, batch_norm=1.0, width=0.5, draw=0),
          "mixed, three exits": OperatingPoint(noise=0.5, batch_norm=0.3, width=1.0, draw=3,
                                               thresholds=(CLOSED, 0.9, CLOSED, 1.4, CLOSED, CLOSED))}


@pytest.fixture(scope="module")
def every():
    return checkpoints.load(EVERY).network


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
@torch.no_grad()
def test_the_stages_answer_as_the_network(every, point):
    images = torch.rand(100, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, gates = export.stages(every, point), export.opened(every, point)
    whole, x = every(images, point.replace(thresholds=None)), images
    for stage, k in zip(found, gates, strict=True):
        logits, x = stage(x)
        assert torch.allclose(logits, whole[k], atol=1e-4, rtol=0)
    if point.thresholds:
        assert torch.equal(export.route(found, gates.values(), images), exits.route(every, images, point)[0])
        assert len(found) == 3


@pytest.mark.parametrize("options", [dict(conditioning="oat"), dict(conditioning="pni"), dict(widths=(1.0, 0.5)),
                                     dict(backbone="mobilenet_v2", exits="rdi"), dict(backbone="wrn16_8")], ids=str)
@torch.no_grad()
def test_other_networks_are_exported_as_well(options):
    options = dict(options)
    network = zoo.build(options.pop("backbone", "resnet20"), width_multiplier=0.25, **options).eval()
    knobs = {"code": dict(code=0.2), "noise": dict(noise=1.0, draw=1), "width": dict(width=0.5)}
    point = OperatingPoint(**{k: v for knob in network.knobs & knobs.keys() for k, v in knobs[knob].items()})
    x = images = torch.rand(3, 3, 32, 32)
    for stage, wanted in zip(export.stages(network, point), network(images, point), strict=True):
        logits, x = stage(x)
        assert torch.allclose(logits, wanted, atol=1e-4, rtol=1e-4)


def test_what_no_program_can_hold_is_refused(every, tmp_path, capsys):
    for point in (OperatingPoint(noise=0.5), OperatingPoint(noise=torch.tensor([0.0, 1.0]), draw=0)):
        with pytest.raises(WorkbookError, match="give single values, and no noise or draw=0"):
            export.stages(every, point)
    for at, told in (("missing.json", "holds no operating point"), ('{"width": 0.3}', "width 0.3 was not trained"),
                     ('{"color": 1}', "unknown knob color"), ('{"noise": "x"}', "noise 'x' has to be a number")):
        assert __main__.main(["export", str(EVERY), str(tmp_path / "x"), "--at", at]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "x" / "card.json").exists()


def test_the_card_of_an_earlier_export_does_not_stand_beside_other_programs(tmp_path, monkeypatch):
    card = tmp_path / "card.json"
    card.write_text("{}")
    assert __main__.main(["export", str(EVERY), str(tmp_path), "--at", '{"width": 0.3}']) == 2 and card.is_file()
    monkeypatch.setattr(exporting, "write", lambda *args, **options: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        __main__.main(["export", str(EVERY), str(tmp_path), "--at", '{"noise": 0, "batch_norm": 0, "width": 1}'])
    assert not card.exists()


@pytest.mark.slow
@pytest.mark.parametrize("onnx", [False, True], ids=["torch.export", "ONNX"])
@pytest.mark.parametrize("name", POINTS)
def test_the_verb_writes_programs_that_answer_alike_without_this_project(every, name, onnx, tmp_path):
    """Each stage by itself, on 100 images; the card says what the record does."""
    for package in ("onnx", "onnxscript", "onnxruntime") if onnx else ():
        pytest.importorskip(package, reason="ONNX is left out: pip install onnx onnxscript onnxruntime")
    point, folder = POINTS[name], tmp_path / "out"
    (tmp_path / "at.json").write_text(json.dumps({"point": point.to_json()}))
    flags = ["--at", str(tmp_path / "at.json")] + ["--no-onnx"] * (not onnx)
    assert __main__.main(["export", str(EVERY), str(folder), *flags]) == 0
    told, images = json.loads((folder / "card.json").read_text()), torch.rand(100, 3, 32, 32)
    ways = {"torch.export", *["network"] * bool(point.thresholds), *["onnxruntime"] * onnx}
    assert told["furthest_logit"] < 1e-4 and [set(took) for took in told["latency_ms"].values()] == [ways] * 2
    with torch.no_grad():
        whole, x = every(images, point.replace(thresholds=None)), images
        for file, k in zip(told["stages"], export.opened(every, point), strict=True):
            path = folder / file
            program = export.served(path.with_suffix(".onnx")) if onnx else torch.export.load(path).module()
            logits, x = program(x)
            assert torch.allclose(logits, whole[k], atol=1e-4, rtol=0)
    if name == "clean, all exits":
        assert "thresholds, or paper" in told["remark"] and "clean_acc" not in told
