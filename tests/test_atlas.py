"""The per-image record: what it holds, what it refuses, and that it can be cut, joined and kept."""

import dataclasses

import numpy as np
import pytest
import torch

from lib import WorkbookError, checkpoints, data, randomness
from lib.attacks import forms as attack_forms
from lib.attacks.steps import Threat
from lib.evaluation import atlas as atlases
from lib.evaluation import routing
from lib.evaluation.atlas import Atlas, combine, concatenate, record
from lib.models import cost, exits, zoo
from lib.operating_point import OperatingPoint
from tests.made_atlas import made, view

THREAT = Threat(0.2, 0.1, 2)
ALL = ("clean", "single1", "single2", "main", "average", "max_average", "random", "gate_aware")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", shape=(1, 28, 28))


@pytest.fixture(scope="module")
def network():
    """RDI-SmallCNN, narrow, with a main output that is not all zeros."""
    network = zoo.build("smallcnn", exits="rdi", input_shape=(1, 28, 28), width_multiplier=0.25, seed=1).eval()
    with torch.no_grad():
        network.heads[-1][-1].weight.normal_(0, 0.3, generator=randomness.generator(0, "test"))
    return network


@pytest.fixture(scope="module")
def full(network, digits):
    return record(network, digits.test[:12], forms=ALL, threat=THREAT, batch_size=4, validation=digits.validation[:30],
                  thresholds=(2.2, 2.1), dataset="digits", checkpoint="abc")  # fmt: skip


def same(one: Atlas, other: Atlas) -> bool:
    arrays = ("prediction", "entropy", "margin", "labels")
    return one.views == other.views and all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


def test_it_holds_what_the_network_says_about_every_image(full, network, digits):
    images, labels = digits.test[:12].floats()
    with torch.no_grad():
        logits = network(images)
    clean = full.view("clean")
    assert full.prediction.shape == (8, 3, 12) and full.num_exits == 3
    assert clean.prediction.tolist() == logits.argmax(-1).tolist()
    assert np.allclose(clean.entropy, exits.entropy(logits).numpy(), atol=1e-6)
    for e in range(3):
        for n in range(12):
            scores = logits[e, n].tolist()
            true = scores.pop(labels[n])
            assert clean.margin[e, n] == pytest.approx(true - max(scores), abs=1e-5)
    assert (full.prediction.dtype, full.entropy.dtype, full.margin.dtype) == (np.int16, np.float32, np.float32)
    assert full.labels.tolist() == labels.tolist()


def test_a_positive_margin_is_a_right_prediction(full):
    assert ((full.margin > 0) == (full.prediction == full.labels)).all()


def test_each_view_is_the_attack_it_says(full, network, digits):
    for start in (0, 8):
        images, labels = digits.test[start:start + 4].floats()
        made = attack_forms.suite(network, images, labels, THREAT, ["average", "gate_aware"], seed=0, batch_index=start,
                                  thresholds=(2.2, 2.1))  # fmt: skip
        for form, attacked in made.items():
            with torch.no_grad():
                expected = network(attacked).argmax(-1)
            assert full.view(form).prediction[:, start:start + 4].tolist() == expected.tolist()


def test_it_remembers_how_it_was_made(full, network):
    views = {v.form: v for v in full.views}
    assert views["clean"].threat is None and not views["clean"].attacked
    assert views["average"].threat == THREAT and views["average"].crafted_at == OperatingPoint()
    assert views["gate_aware"].thresholds_used == (2.2, 2.1) and views["average"].thresholds_used is None
    counted = cost.cost(network)
    assert full.meta["cumulative_macs"] == [e.cumulative_macs for e in counted.exits]
    assert full.meta["plain_macs"] == cost.cost(zoo.build(**{**network.config, "exits": "none"})).macs
    assert full.meta["images"] == [0, 12] and full.meta["split"] == "test" and full.meta["dataset"] == "digits"
    assert full.exit_costs.cumulative((1, 1)).tolist() == full.meta["cumulative_macs"]
    closed = cost.cost(network, OperatingPoint(exits=(2, 3)))
    assert full.exit_costs.cumulative((-np.inf, 1))[1:].tolist() == [e.cumulative_macs for e in closed.exits][1:]


def test_a_form_does_not_depend_on_which_others_are_recorded(full, network, digits):
    few = record(network, digits.test[:12], forms=("max_average",), threat=THREAT, batch_size=4)
    assert np.array_equal(few.entropy[0], full.view("max_average").entropy)


def test_slices_join_to_the_record_made_in_one_go(full, network, digits):
    def part(start, stop):
        return record(network, digits.test[start:stop], forms=ALL, threat=THREAT, batch_size=4, thresholds=(2.2, 2.1),
                      validation=digits.validation[:30], first=start, dataset="digits",
                      checkpoint="abc")  # fmt: skip

    left, right = part(0, 8), part(8, 12)
    joined = concatenate([left, right])
    assert same(joined, full) and joined.meta["images"] == [0, 12]
    with pytest.raises(WorkbookError, match="gap"):
        concatenate([right, left])
    with pytest.raises(WorkbookError, match="recorded differently"):
        concatenate([left, dataclasses.replace(right, meta={**right.meta, "checkpoint": "other"})])


def test_a_killed_recording_goes_on_and_makes_the_same_atlas(full, network, digits, tmp_path, monkeypatch):
    def go():
        return record(network, digits.test[:12], forms=ALL, threat=THREAT, batch_size=4, thresholds=(2.2, 2.1),
                      folder=tmp_path)  # fmt: skip

    really, calls = attack_forms.suite, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return really(*args, **kwargs)

    monkeypatch.setattr(attack_forms, "suite", killed)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert same(go(), full) and len(calls) == 4  # two batches were kept, one was broken off, one was left
    with pytest.raises(WorkbookError, match="holds another recording"):
        record(network, digits.test[:12], forms=("clean",), batch_size=4, folder=tmp_path)


def test_other_seeds_are_restarts_and_stand_side_by_side(full, network, digits):
    again = record(network, digits.test[:12], forms=("main", "average"), threat=THREAT, batch_size=4, seed=1,
                   validation=digits.validation[:30], dataset="digits", checkpoint="abc")  # fmt: skip
    both = combine([full.select(["main", "average"]), again])
    assert both.names == ("main", "average", "main 2", "average 2")
    assert [v.seed for v in both.views] == [0, 0, 1, 1]
    assert not np.array_equal(both.view("main").margin, both.view("main 2").margin)
    assert both.select(seed=1).names == ("main", "average")
    with pytest.raises(WorkbookError, match="cannot be combined"):
        combine([full, again.select(images=slice(0, 4))])


def test_one_attack_can_be_judged_at_several_points(digits):
    noisy = zoo.build("resnet20", conditioning="float", input_shape=(3, 32, 32), width_multiplier=0.25).eval()
    split = data.load("digits", shape=(3, 32, 32)).test[:6]
    points = [OperatingPoint(noise=1.0, batch_norm=1.0, draw=d) for d in range(2)] + [OperatingPoint(noise=0.0)]
    atlas = record(noisy, split, threat=THREAT, point=OperatingPoint(noise=0.5, batch_norm=1.0),
                   evaluated_at=points)
    assert atlas.names == ("clean", "clean 2", "clean 3", "main", "main 2", "main 3")
    assert [v.draw for v in atlas.views] == [0, 1, None] * 2
    assert all(v.crafted_at == OperatingPoint(noise=0.5, batch_norm=1.0) for v in atlas.views if v.attacked)
    assert not np.array_equal(atlas.view("main").margin, atlas.view("main 2").margin)
    assert atlas.select(evaluated_at=points[2]).names == ("clean", "main")


def test_points_of_different_cost_do_not_share_an_atlas():
    slim = zoo.build("resnet20", widths=(0.5, 1.0), input_shape=(3, 32, 32), width_multiplier=0.25).eval()
    split = data.load("digits", shape=(3, 32, 32)).test[:2]
    points = [OperatingPoint(width=w) for w in (0.5, 1.0)]
    with pytest.raises(WorkbookError, match="cost differently"):
        record(slim, split, forms=["clean"], evaluated_at=points)
    costs = [record(slim, split, forms=["clean"], point=p).meta["plain_macs"] for p in points]
    assert costs[0] < costs[1] / 2


def test_it_comes_back_from_its_file_as_it_was(full, tmp_path):
    full.save(tmp_path / "x.safetensors")
    back = Atlas.load(tmp_path / "x.safetensors")
    assert same(back, full) and back.meta == full.meta
    assert np.array_equal(back.validation.correct, full.validation.correct)
    assert back.thresholds("calibrated") == full.thresholds("calibrated")


def test_infinite_thresholds_survive_the_file(tmp_path):
    atlas = made([view("gate_aware", thresholds_used=(-np.inf,))], np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), [0] * 3)
    atlas.save(tmp_path / "x.safetensors")
    assert Atlas.load(tmp_path / "x.safetensors").views[0].thresholds_used == (-np.inf,)


def test_foreign_and_damaged_files_are_refused_in_one_sentence(full, network, tmp_path):
    path = tmp_path / "x.safetensors"
    full.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for content in (whole[:-5], whole[:100], bytes(flipped), b"", b"not an atlas at all"):
        path.write_bytes(content)
        with pytest.raises(WorkbookError) as error:
            Atlas.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(WorkbookError, match="does not exist"):
        Atlas.load(tmp_path / "missing")
    checkpoints.save(path, network)
    with pytest.raises(WorkbookError, match="holds a network"):
        Atlas.load(path)


def test_select_cuts_views_and_images(full):
    part = full.select(["clean", "main"], images=slice(4, 10))
    assert part.names == ("clean", "main") and part.meta["images"] == [4, 10]
    assert np.array_equal(part.entropy, full.entropy[[0, 3]][:, :, 4:10]) and len(part.labels) == 6
    assert part.select(images=slice(1, 3)).meta["images"] == [5, 7]
    for wrong in (dict(forms=["nothing"]), dict(seed=9), dict(images=slice(5, 5))):
        with pytest.raises(WorkbookError, match="nothing is left"):
            full.select(**wrong)
    with pytest.raises(WorkbookError, match="has no view 'fgsm'; it has clean, single1"):
        full.view("fgsm")


def test_names_tell_algorithms_apart():
    fgsm = view("main", threat=Threat(0.1, algorithm="fgsm"))
    margin = view("main", threat=Threat(0.1, 0.1, 2, loss="margin"))
    atlas = made(["clean", "main", fgsm, margin], np.zeros((4, 1, 3)), np.zeros((4, 1, 3)), [0] * 3)
    assert atlas.names == ("clean", "main", "fgsm main", "pgd cw main")
    assert atlas.select(threat=fgsm.threat).names == ("main",)


def test_thresholds_come_from_the_paper_the_held_out_images_or_a_budget(full):
    assert full.thresholds("paper") == (0.023, 0.014)
    assert full.thresholds("calibrated") == routing.calibrate(full.validation.entropy)
    assert list(full.thresholds("calibrated")) == full.meta["calibrated_thresholds"]
    budget = sum(full.meta["cumulative_macs"]) / 3
    leaving = routing.decide(full.validation.entropy, full.thresholds(budget))
    assert full.exit_costs.cumulative(full.thresholds(budget))[leaving].mean() <= budget
    with pytest.raises(WorkbookError, match="unknown source of thresholds 'papper'"):
        full.thresholds("papper")
    with pytest.raises(WorkbookError, match="no held-out images"):
        dataclasses.replace(full, validation=None).thresholds("calibrated")
    with pytest.raises(WorkbookError, match="states no thresholds"):
        dataclasses.replace(full, meta={**full.meta, "paper_thresholds": None}).thresholds()


def test_a_network_with_one_exit_has_one_form(digits):
    plain = zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25).eval()
    atlas = record(plain, digits.test[:5], threat=THREAT, validation=digits.validation[:9])
    assert atlas.names == ("clean", "main") and atlas.thresholds() == atlas.thresholds("calibrated") == ()
    assert atlas.exit_costs.cumulative(()).tolist() == [atlas.meta["plain_macs"]]


@pytest.mark.parametrize("settings, sentence", [
    (dict(forms=["clen"]), "unknown attack form 'clen'"),
    (dict(forms=[]), "no attack form given"),
    (dict(forms=["main", "single3"]), "'main' is given twice"),
    (dict(forms=["main"], threat=None), "needs its budget"),
    (dict(point=OperatingPoint(thresholds=(0.1, 0.2))), "leave exits and thresholds open"),
    (dict(evaluated_at=OperatingPoint(exits=(1,))), "leave exits and thresholds open"),
    (dict(point=OperatingPoint(noise=0.5)), "has no knob noise"),
    (dict(forms=["gate_aware"], thresholds=(0.1,)), "1 thresholds for 3 exits; give 2"),
    (dict(mode="sleep"), "unknown attack mode 'sleep'"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(network, digits, settings, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        record(network, digits.test[:2], **{"threat": THREAT, "progress": False, **settings})


def test_no_images_are_refused(network, digits):
    with pytest.raises(WorkbookError, match="no image to evaluate"):
        record(network, digits.test[:0], forms=["clean"])
    with pytest.raises(WorkbookError, match="no held-out images"):
        atlases.hold_out(network, digits.validation[:0])


def test_recording_leaves_the_network_as_it_was(network, digits):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = record(network, digits.test[:4], forms=("clean", "average"), threat=THREAT)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()
    again = record(network, digits.test[:4], forms=("clean", "average"), threat=THREAT)
    assert same(first, again)


@pytest.mark.gpu
def test_a_gpu_records_what_a_cpu_records(network, digits):
    there = zoo.build(**network.config)
    there.load_state_dict(network.state_dict())
    settings = dict(forms=ALL, threat=Threat(0.2, 0.1, 2, random_start=False), thresholds=(2.2, 2.1))
    here = record(network, digits.test[:64], **settings)
    gpu = record(there.cuda().eval(), digits.test[:64].to("cuda"), **settings)
    assert np.allclose(gpu.view("clean").entropy, here.view("clean").entropy, atol=1e-3)
    for form in set(ALL) - {"random"}:  # which draws its weights from the device's own generator
        assert (gpu.view(form).prediction == here.view(form).prediction).mean() > 0.97
