"""Several trainings at once: stacked readings, intervals over trainings and images, which networks are attacked how."""

from dataclasses import replace

import numpy as np
import pytest

from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.evaluation.stats import interval
from lib.operating_point import OperatingPoint
from lib.workbook import float_seeds, seeds
from lib.workbook.float_seeds import Repeated
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from lib.workbook.studies import Reading
from tests.evaluation.made_record import hit, made
from tests.networks import small

THREAT, IMAGES, DRAWS = Threat(0.1, 0.05, 2), 60, 2
FULL, QUIET = OperatingPoint(noise=1.0, batch_norm=1.0), OperatingPoint(noise=0.0, batch_norm=1.0)


def training(method: str, lift: float) -> Member:
    """Right on 0.6 + lift of the clean images; attacked on 0.2 + lift in BN_A, on none in BN_C."""
    network = small("resnet20", conditioning=method, input_shape=(3, 8, 8))
    views = [replace(v, draws=DRAWS if network.conditions(v.point).noisy else 1)
             for v in float_seeds.plan("suite", THREAT, 3)(network)]
    share = [0.6 + lift if not v.attacked else (0.2 + lift) * (v.point.batch_norm or 0) for v in views]
    return Member(method, Trained(method, network, "0" * 8), hit(network, views, share, IMAGES, defence=method))


def repeated(method: str, *lifts: float) -> Repeated:
    return Repeated.of([training(method, lift) for lift in lifts])


@pytest.fixture(scope="module")
def found():
    return {"float": repeated("float", 0.3, 0.2, 0.1), "dual_bn": repeated("dual_bn", 0.1, 0.0, 0.1)}


def test_every_point_meets_three_attacks_and_transfer_only_where_there_is_noise():
    network = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    asked = float_seeds.plan("suite", THREAT, 7)(network)
    clean = [view.point for view in asked if not view.attacked]
    assert QUIET in clean and float_seeds.halfway(network) in clean
    for point in clean:
        met = [view for view in asked if view.attacked and view.point == point]
        assert len(met) == 3
        if network.conditions(point).noisy:
            assert sorted(a.threat.draws for a in met) == [1, 1, 7]
            assert {a.crafted_at for a in met} == {point, points.quiet(point)}
        else:
            assert [a.restart for a in met] == [0, 1, 2] and all(a.crafted_at == point for a in met)
    fewer = float_seeds.plan("pgd", THREAT)(network)
    assert set(fewer) < set(asked) and all(sum(v.attacked and v.point == p for v in fewer) == 2 for p in clean)


def test_what_is_read_has_a_row_per_training(found):
    reading = found["float"].read(FULL)
    assert reading.right("clean").shape == (3, IMAGES) == reading.right("union").shape
    assert reading.right("clean").mean(1) == pytest.approx([0.9, 0.8, 0.7], abs=0.01)
    assert reading.right("EOT").mean() == pytest.approx(0.4, abs=0.01)
    assert found["float"].read(1.0).point == FULL  # by λ_n, as a single training is read


def test_intervals_draw_the_trainings_too(found):
    over = found["float"].read(FULL).measured("clean")
    one = found["float"].runs[1].read(FULL).measured("clean")
    assert over.value == pytest.approx(0.8, abs=0.01) and over.low < one.value < over.high
    alike = interval(np.stack([found["float"].runs[1].read(FULL).right("clean")] * 3))
    assert over.high - over.low > alike.high - alike.low


def test_verdicts_and_what_each_training_says(found):
    lines = float_seeds.verdicts(found, found)
    assert lines.loc["λ_n = 1 is more robust than λ_n = 0", "verdict"] == "held"
    assert lines.loc["control, half-way between the batch norms: more robust than BN_C", "images"] == IMAGES
    each = float_seeds.by_training(found)
    noise = each.loc[("all of the noise: FLOAT (1, BN_A) instead of the control's BN_A", "robust")]
    assert noise.tolist() == ["+20.0", "+20.0", "+0.0"]
    assert list(float_seeds.alphas(found)) == ["training 1", "training 2", "training 3"]
    assert len(float_seeds.alphas(found)) == 8  # ResNet-20 cut to a block a group: stem, six convolutions, linear


def test_the_shipped_pairs_differ_in_the_noise_alone():
    noisy, control = (float_seeds.recipe(method, 1) for method in float_seeds.METHODS)
    apart = {"network", "name", "defence"}
    told = [{k: v for k, v in recipe.to_json().items() if k not in apart} for recipe in (noisy, control)]
    assert told[0] == told[1] and noisy.seed == 1
    assert {**noisy.network, "conditioning": "dual_bn"} == control.network


def defence(*worst: int) -> list[Reading]:
    """A training per number: so many of 100 images are right under its worst form, all clean ones are."""
    readings = []
    for right in worst:
        prediction = np.zeros((5, 2, 100), int)
        prediction[1:, :, right:] = 1
        record = made(("clean", "single1", "main", "average", "max_average"), prediction,
                     np.full(prediction.shape, 0.1), [0] * 100)
        readings.append(Reading(record, OperatingPoint(), (0.5,), "paper", trained=Trained("made", None, "")))
    return readings


def test_the_ordering_is_judged_over_trainings():
    found = {"standard": defence(0, 2, 1), "main": defence(20, 25, 22), "average": defence(50, 20, 35),
             "max_average": defence(60, 63, 61)}
    lines = seeds.verdicts(found)
    assert lines.loc["main branch withstands more than standard (paper's worst case)", "verdict"] == "held"
    unsure = lines.loc["average withstands more than main branch (paper's worst case)"]
    assert unsure["verdict"] == "too small to tell" and unsure["difference"] == "+12.7 points"
    assert lines.loc["robustness costs clean accuracy (standard above max-average)", "difference"] == "+0.0 points"
    assert seeds.measured(found["average"], "paper_worst") == pytest.approx((35, 20, 50))
    assert seeds.table(found).loc["average", "ATA, paper's worst case"] == "35.0 (20.0 to 50.0)"
