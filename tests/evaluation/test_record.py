"""The record: what it holds, what it refuses, that it is cut, joined and kept; made of networks of every kind."""

import dataclasses

import numpy as np
import pytest
import torch

from lib import ATLASES, WorkbookError, checkpoints, randomness
from lib.attacks import forms as attack_forms
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import latency, points, recording, routing
from lib.evaluation.reading import read
from lib.evaluation.record import Record, combine, join
from lib.evaluation.recording import hold_out, record, suite
from lib.models import cost, exits, zoo
from lib.models.mixture import mixture
from lib.models.view import AttackView
from lib.operating_point import OperatingPoint
from tests.helpers.made_record import made, view
from tests.helpers.networks import images, small

THREAT = Threat(0.2, 0.1, 2)
ALL = ("clean", "single1", "single2", "main", "average", "max_average", "random", "gate_aware")
QUIET, NOISY = OperatingPoint(noise=0.0, batch_norm=1.0), OperatingPoint(noise=1.0, batch_norm=1.0)


def split_for(network, count=8):
    return Split((images(network, count) * 255).byte(), torch.arange(count) % network.classes)


@pytest.fixture(scope="module")
def network():
    """RDI-SmallCNN, narrow, with a main output that is not all zeros."""
    network = small("smallcnn", exits="rdi", seed=1)
    with torch.no_grad():
        network.heads[-1][-1].weight.normal_(0, 0.3, generator=randomness.generator(0, "test"))
    return network


@pytest.fixture(scope="module")
def split(network):
    return split_for(network, 12)


def run(network, split, forms=ALL, **more):
    how = dict(batch_size=4, held_out=split[:6], dataset="digits", checkpoint="abc") | more
    return record(network, split, suite(network, THREAT, forms, thresholds=(2.2, 2.1)), **how)


@pytest.fixture(scope="module")
def full(network, split):
    return run(network, split)


@pytest.fixture(scope="module")
def every_knob():
    """Exits, noise, two batch norms and two widths at once."""
    return small("resnet38", exits="cheap", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))


def same(one: Record, other: Record) -> bool:
    arrays = ("right", "prediction", "entropy", "logits", "labels")
    return one.views == other.views and all(np.array_equal(getattr(one, a), getattr(other, a)) for a in arrays)


def test_it_holds_what_the_network_says_about_every_image(full, network, split):
    floats, labels = split.floats()
    with torch.no_grad():
        logits = network(floats)
    assert full.prediction.shape == (8, 3, 12) and full.num_exits == 3 and full.images == 12
    assert full.prediction[0].tolist() == logits.argmax(-1).tolist()
    assert np.allclose(full.entropy[0], exits.entropy(logits).numpy(), atol=1e-6)
    assert np.allclose(full.logits[0], logits.numpy(), atol=1e-3) and full.logits.dtype == np.float16
    assert np.array_equal(full.right, full.prediction == labels.numpy()) and full.labels.tolist() == labels.tolist()


def test_probabilities_follow_from_the_kept_logits(full):
    found = full.probabilities()
    assert np.allclose(found.sum(-1), 1, atol=1e-5)
    assert np.allclose(exits.entropy(torch.from_numpy(found).log()).numpy(), full.entropy, atol=0.01)
    assert full.probabilities(temperature=100.0).max() < found.max()
    with pytest.raises(WorkbookError, match="holds no logits"):
        full.lightened().probabilities()


def test_each_view_is_the_attack_it_says_crafted_on_the_folded_copy(full, network, split):
    for start in (0, 8):
        floats, labels = split[start:start + 4].floats()
        attacked = attack_forms.suite(AttackView(network), floats, labels, THREAT, ["average", "gate_aware"], seed=0,
                                      batch_index=start, thresholds=(2.2, 2.1))
        for form, shown in attacked.items():
            with torch.no_grad():
                expected = network(shown).argmax(-1)
            assert full.prediction[ALL.index(form)][:, start:start + 4].tolist() == expected.tolist()


def test_it_remembers_how_it_was_made(full, network):
    views = {v.form: v for v in full.views}
    assert views["clean"].threat is None and not views["clean"].attacked
    assert views["average"].threat == THREAT and views["average"].crafted_at == OperatingPoint()
    assert views["gate_aware"].thresholds_used == (2.2, 2.1) and views["average"].thresholds_used is None
    counted, plain = cost.cost(network), cost.cost(zoo.build(**{**network.config, "exits": "none"})).macs
    assert full.exit_costs().cumulative((1, 1)).tolist() == [e.cumulative_macs for e in counted.exits]
    assert full.costs()["paper_mflops"].tolist() == [e.paper_mflops for e in counted.exits]
    assert full.costs()["trunk"][-1] == plain and full.meta["attacked_on"] == "its folded copy"
    assert full.meta["images"] == [0, 12] and full.meta["split"] == "test" and full.meta["dataset"] == "digits"
    closed = cost.cost(network, OperatingPoint(exits=(2, 3)))
    assert full.exit_costs().cumulative((-np.inf, 1))[1:].tolist() == [e.cumulative_macs for e in closed.exits][1:]


def test_a_form_does_not_depend_on_which_others_are_recorded(full, network, split):
    assert np.array_equal(run(network, split, ["max_average"]).entropy[0], full.entropy[ALL.index("max_average")])


def test_slices_join_to_the_record_made_in_one_go(full, network, split):
    left, right = run(network, split[:8], held_out=None), run(network, split[8:], held_out=None, first=8)
    joined = join([left, right])
    assert same(joined, full) and joined.meta["images"] == [0, 12]
    with pytest.raises(WorkbookError, match="gap"):
        join([right, left])
    with pytest.raises(WorkbookError, match="made differently"):
        join([left, dataclasses.replace(right, meta={**right.meta, "checkpoint": "other"})])


def test_a_killed_recording_goes_on_and_refuses_what_is_not_its_own(full, network, split, tmp_path, monkeypatch):
    really, calls = attack_forms.suite, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return really(*args, **kwargs)

    monkeypatch.setattr(attack_forms, "suite", killed)
    with pytest.raises(KeyboardInterrupt):
        run(network, split, folder=tmp_path)
    assert same(run(network, split, folder=tmp_path), full)
    assert len(calls) == 8  # two a batch (gates, and the rest): the first was kept, the second was broken off
    other = Split(split.images.flip(0), split.labels)
    retrained = small("smallcnn", exits="rdi", seed=2)
    for changed in (dict(forms=("clean",)), dict(seed=3), dict(split=other), dict(network=retrained)):
        with pytest.raises(WorkbookError, match="holds another recording"):
            run(**{"network": network, "split": split, "folder": tmp_path} | changed)


def test_restarts_begin_elsewhere_and_stand_side_by_side(full, network, split):
    views = suite(network, Threat(0.3, 1e-9, 1), ["main", "average"], restart=1)  # the random start is all of it
    again = record(network, split, views, batch_size=4, dataset="digits", checkpoint="abc")
    first = record(network, split, [dataclasses.replace(v, restart=0) for v in views], batch_size=4,
                   dataset="digits", checkpoint="abc")
    assert not np.array_equal(first.entropy, again.entropy)
    both = combine([first, again])
    assert [(v.form, v.restart) for v in both.views] == [("main", 0), ("average", 0), ("main", 1), ("average", 1)]
    assert np.array_equal(both.select(restart=1).entropy, again.entropy)
    with pytest.raises(WorkbookError, match="cannot be combined"):
        combine([full, again.select(images=slice(0, 4))])


def test_draws_are_counted_where_there_is_one_exit(split):
    noisy = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    pictures = split_for(noisy)
    found = record(noisy, pictures, [view("main", evaluated_at=p, crafted_at=QUIET) for p in (NOISY, QUIET)], draws=3)
    floats, labels = pictures.floats()
    made_here = attack_forms.suite(AttackView(noisy), floats, labels, view("main").threat, ["main"], seed=0,
                                   point=QUIET)["main"]
    with torch.no_grad():
        said = torch.stack([noisy(made_here, NOISY.replace(draw=d))[-1].argmax(-1) for d in range(3)])
    assert [v.draws for v in found.views] == [3, 1] and found.points == (NOISY, QUIET)
    assert found.right[0, 0].tolist() == (said == labels).sum(0).tolist()
    assert found.prediction[0, 0].tolist() == said[0].tolist()


def test_every_draw_is_kept_where_thresholds_act_within_it(every_knob):
    narrow = NOISY.replace(width=0.5)
    pictures = split_for(every_knob, 6)
    views = points.views(every_knob, THREAT, forms=("main", "average"), noises=(0.0, 1.0), mixes=(1.0,), draws=2,
                         lambdas=(1.0,), switches=(0.0,), widths=(1.0, 0.5))
    found = record(every_knob, pictures, views, draws=2, held_out=pictures[:4])
    assert {v.draws for v in found.views} == {1} and found.num_exits == 7
    drawn = [v.evaluated_at.draw for v in found.views if v.form == "clean" and v.point == narrow]
    assert drawn == [0, 1]
    with torch.no_grad():
        logits = every_knob(pictures.floats()[0], narrow.replace(draw=1))
    place = found.views.index(view("clean", evaluated_at=narrow.replace(draw=1)))
    assert found.prediction[place].tolist() == logits.argmax(-1).tolist()
    assert found.costs(narrow)["trunk"][-1] < found.costs()["trunk"][-1] / 2
    entropies, right = found.held(narrow)
    assert entropies.shape == right.shape == (7, 8)  # four images, two draws
    assert found.thresholds_of("calibrated", narrow) == routing.calibrate(entropies)
    reading = read(found, narrow, "calibrated")
    assert set(reading.names) >= {"clean", "main", "average", "main, EOT", "average, EOT", "main, noise-free transfer"}
    floats, labels = pictures.floats()
    routed = [exits.route(every_knob, floats, narrow.replace(draw=d, thresholds=reading.thresholds)) for d in (0, 1)]
    right = np.mean([(said == labels).numpy() for said, _ in routed], axis=0)
    assert np.array_equal(reading.right("clean"), right) and np.array_equal(
        reading.leaving["clean"], [leaving.tolist() for _, leaving in routed])
    assert reading.right("union").max() <= right.max() and reading.measured("saving").value > 0.5  # half the width


def test_it_comes_back_from_its_file_as_it_was(full, tmp_path):
    full.save(tmp_path / "x.safetensors")
    back = Record.load(tmp_path / "x.safetensors")
    assert same(back, full) and back.meta == full.meta and same(back.held_out, full.held_out)
    assert back.thresholds_of("calibrated") == full.thresholds_of("calibrated")


def test_infinite_thresholds_and_missing_arrays_survive_the_file(tmp_path):
    found = made([view("gate_aware", thresholds_used=(-np.inf,))], np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), [0] * 3,
                 validation=(np.ones((2, 4)), np.ones((2, 4))))
    found.save(tmp_path / "x.safetensors")
    back = Record.load(tmp_path / "x.safetensors")
    assert back.views[0].thresholds_used == (-np.inf,) and back.logits is None and back.held_out.labels is None


def test_foreign_and_damaged_files_are_refused_in_one_sentence(full, network, tmp_path):
    path = tmp_path / "x.safetensors"
    full.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for content in (whole[:-5], whole[:100], bytes(flipped), b"", b"not a record at all"):
        path.write_bytes(content)
        with pytest.raises(WorkbookError) as error:
            Record.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(WorkbookError, match="does not exist"):
        Record.load(tmp_path / "missing")
    checkpoints.save(path, network)
    with pytest.raises(WorkbookError, match="holds a network"):
        Record.load(path)


def lacking(name):
    return lambda tensors, values: values["about"]["meta"].pop(name)


@pytest.mark.parametrize("spoil", [
    *(lacking(name) for name in ("model", "costs", "seed", "images")), lambda tensors, values: values.pop("about"),
    lambda tensors, values: values["about"]["views"].pop(), lambda tensors, values: tensors.pop("prediction"),
    lambda tensors, values: values["about"]["meta"].update(costs=[]), lambda tensors, values: values.update(about=[7]),
    lambda tensors, values: values["about"]["views"][1]["threat"].update(power=1),
    lambda tensors, values: tensors.update(labels=tensors["labels"][:5]),
    lambda tensors, values: tensors.update(entropy=tensors["entropy"][:, :2])])
def test_a_sound_file_that_is_no_record_of_ours_is_refused_in_one_sentence(full, spoil, tmp_path):
    """Anybody can seal a file: that nothing was flipped does not make it what it says."""
    full.save(tmp_path / "x")
    tensors, values, _ = checkpoints.read(tmp_path / "x", "record")
    spoil(tensors, values)
    checkpoints.write(tmp_path / "x", "record", tensors, {k: v for k, v in values.items() if "about" in k})
    with pytest.raises(WorkbookError, match="does not hold the record that it describes") as error:
        Record.load(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_no_network_larger_than_any_is_built_for_a_record(full):
    hostile = dataclasses.replace(full, meta=full.meta | {"model": full.meta["model"] | {"width_multiplier": 60}})
    with pytest.raises(WorkbookError, match="asks for more weights"):
        latency.shaped(hostile)


def test_select_cuts_views_and_images(full):
    part = full.select(["clean", "main"], images=slice(4, 10))
    assert [v.form for v in part.views] == ["clean", "main"] and part.meta["images"] == [4, 10]
    assert np.array_equal(part.entropy, full.entropy[[0, 3]][:, :, 4:10]) and len(part.labels) == 6
    assert part.select(images=slice(1, 3)).meta["images"] == [5, 7]
    for wrong in (dict(forms=["nothing"]), dict(seed=9), dict(images=slice(5, 5))):
        with pytest.raises(WorkbookError, match="nothing is left"):
            full.select(**wrong)


def test_thresholds_come_from_the_paper_the_held_out_images_or_a_budget(full):
    entropies, _ = full.held()
    assert full.thresholds_of("paper") == (0.023, 0.014)
    assert full.thresholds_of("calibrated") == routing.calibrate(entropies)
    budget = full.exit_costs().cumulative((1, 1)).mean()
    leaving = routing.decide(entropies, full.thresholds_of(budget))
    assert full.exit_costs().cumulative(full.thresholds_of(budget))[leaving].mean() <= budget
    with pytest.raises(WorkbookError, match="unknown source of thresholds 'papper'"):
        full.thresholds_of("papper")
    with pytest.raises(WorkbookError, match="no held-out images"):
        dataclasses.replace(full, held_out=None).thresholds_of("calibrated")
    with pytest.raises(WorkbookError, match="states no thresholds"):
        dataclasses.replace(full, meta={**full.meta, "paper_thresholds": None}).thresholds_of()


@pytest.mark.parametrize("settings, sentence", [
    (dict(forms=["clen"]), "unknown attack form 'clen'"),
    (dict(forms=[]), "no attack form given"),
    (dict(forms=["main", "single3"]), "'main' is given twice"),
    (dict(forms=["main"], threat=None), "needs its budget"),
    (dict(point=OperatingPoint(thresholds=(0.1, 0.2))), "leave exits and thresholds open"),
    (dict(point=OperatingPoint(exits=(1,))), "leave exits and thresholds open"),
    (dict(point=OperatingPoint(noise=0.5)), "has no knob noise"),
    (dict(forms=["gate_aware"], thresholds=(0.1,)), "1 thresholds for 3 exits; give 2"),
    (dict(mode="sleep"), "unknown attack mode 'sleep'"),
])
def test_settings_that_do_not_fit_are_refused(network, split, settings, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        record(network, split[:2], suite(network, **{"threat": THREAT} | settings))


def test_nothing_to_record_is_refused(network, split):
    with pytest.raises(WorkbookError, match="no image to evaluate"):
        record(network, split[:0], suite(network, THREAT))
    with pytest.raises(WorkbookError, match="nothing to record"):
        record(network, split, [])
    with pytest.raises(WorkbookError, match="no held-out images"):
        hold_out(network, split[:0])


def test_recording_leaves_the_network_as_it_was(network, split):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = run(network, split[:4], ("clean", "average"))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()
    assert same(first, run(network, split[:4], ("clean", "average")))


def test_an_audit_can_come_along(network, split, monkeypatch):
    asked = []
    monkeypatch.setattr(recording, "audit", lambda *args, **how: asked.append((args, how)) or {"flags": []})
    found = run(network, split, ("clean", "main"), audited=5)
    assert found.meta["audit"] == {"{}": {"flags": []}} and len(asked[0][0][1]) == 5
    assert asked[0][0][4].thresholds == found.thresholds_of("calibrated")  # the decision that is deployed


def test_every_recording_of_an_attack_is_audited_briefly_and_the_gravest_audit_stays(network, split, monkeypatch):
    asked, flags = [], iter([[], ["zero gradients"], [], ["weak"], []])
    monkeypatch.setattr(recording, "audit", lambda *args, **how: asked.append(how) or {"flags": next(flags)})
    assert "audit" not in run(network, split, ("clean",)).meta and not asked
    one, two, three = (run(network, split[s:s + 4], ("clean", "main"), first=s, held_out=None) for s in (0, 4, 8))
    assert [how["limit"] for how in asked] == [4, 4, 4] and not any(how["others"] for how in asked)
    assert join([one, two, three]).meta["audit"] == {"{}": {"flags": ["zero gradients"]}}
    again = run(network, split[:4], ("average",), held_out=None)
    assert combine([one, again]).meta["audit"] == combine([again, one]).meta["audit"] == {"{}": {"flags": ["weak"]}}
    assert "audit" not in run(network, split[:4], ("clean", "main"), audited=0).meta
    run(network, split[:4], ("main",), audited=64, held_out=None)
    assert asked[-1]["others"]


@pytest.mark.gpu
def test_a_gpu_records_what_a_cpu_records(network, split):
    there = zoo.build(**network.config)
    there.load_state_dict(network.state_dict())
    views = suite(network, Threat(0.2, 0.1, 2, random_start=False), ALL, thresholds=(2.2, 2.1))
    here = record(network, split, views)
    gpu = record(there.cuda().eval(), split.to("cuda"), views)
    assert np.allclose(gpu.entropy[0], here.entropy[0], atol=1e-3)
    for v, form in enumerate(ALL):  # random draws its weights from the device's own generator
        assert form == "random" or (gpu.prediction[v] == here.prediction[v]).mean() > 0.97


def test_a_mixture_of_networks_goes_on_from_its_kept_parts(tmp_path, split):
    """Whose description nests theirs: what was kept tells it in JSON's lists."""
    ends = [zoo.build("smallcnn", input_shape=(1, 28, 28), width_multiplier=0.25, seed=s).eval() for s in (0, 1)]
    both, images = mixture(*ends, 0.25), split[:4]
    views = suite(both, Threat(0.1, 0.1, 1), ("clean", "main"))
    first, again = (record(both, images, views, folder=tmp_path) for _ in range(2))
    assert np.array_equal(first.prediction, again.prediction)


def test_networks_of_one_backbone_that_were_built_differently_have_different_names():
    """So that no page takes the plain, the pruned and the factorised one for three trainings of one network."""
    names = ("", "-r007", "-atmc_365838_8bit")
    models = [Record.load(ATLASES / f"resnet38-cifar10_jpeg-main-laptop{name}.safetensors").model for name in names]
    assert models == ["resnet38", "resnet38 inner 403", "resnet38 factorised"]
