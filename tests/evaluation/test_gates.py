"""Other decisions from kept logits, against definitions written out image by image."""

import math

import numpy as np
import pytest

from lib import ATLASES, WorkbookError
from lib.evaluation import gates
from lib.evaluation.reading import read
from lib.evaluation.record import Record

LOGITS = ATLASES / "repeats" / "cheap_resnet38-cifar10_jpeg-float_slim-laptop-logits.safetensors"


def test_every_score_is_its_definition():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (5, 30))
    found = gates.decisions(p)
    for n in range(30):
        said = [int(p[k, n].argmax()) for k in range(5)]
        for k in range(5):
            two, mean, row = sorted(p[k, n])[-2:], p[:k + 1, n].mean(0), 0
            while row <= k and said[k - row] == said[k]:
                row += 1
            wanted = {"entropy": -sum(q * math.log(q) for q in p[k, n]), "largest probability": 1 - two[1],
                      "margin of two": 1 - (two[1] - two[0]), "patience": 1 / row,
                      "mean so far": -sum(q * math.log(q) for q in mean)}
            for decision, score in wanted.items():
                assert found[decision][0][k, n] == pytest.approx(score, abs=1e-6), decision
            assert found["mean so far"][1][k, n] == mean.argmax() and found["patience"][1][k, n] == said[k]


def test_a_sure_exit_has_no_entropy():
    assert gates.entropy(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([0.0, math.log(2)])


@pytest.mark.parametrize("decision", gates.DECISIONS)
def test_a_record_read_by_another_decision_is_that_decision_image_by_image(decision):
    kept = Record.load(LOGITS)
    record, n = gates.by(kept, decision), 17
    thresholds = {"entropy": 1.5, "largest probability": 0.6, "margin of two": 0.8, "patience": 0.4, "mean so far": 1.6}
    gate = (-math.inf, *[thresholds[decision]] * 5)  # the first exit is closed
    at, place = read(record, kept.points[0], gate), kept.views.index(read(kept, kept.points[0], gate).view("main"))
    p = kept.probabilities()[place][:, n]
    score = {"entropy": lambda k: kept.entropy[place, k, n], "largest probability": lambda k: 1 - p[k].max(),
             "margin of two": lambda k: 1 - np.ptp(np.sort(p[k])[-2:]),
             "patience": lambda k: 1 / next((j for j in range(1, k + 1) if kept.prediction[place, k - j, n]
                                             != kept.prediction[place, k, n]), k + 1),
             "mean so far": lambda k: gates.entropy(p[:k + 1].mean(0))}[decision]
    left = next((k for k in range(1, 6) if score(k) < gate[k]), 6)
    answer = p[:left + 1].mean(0).argmax() if decision == "mean so far" else kept.prediction[place, left, n]
    assert at.leaving["main"][0, n] == left and at.right("main")[n] == (answer == kept.labels[n])
    costs = kept.exit_costs()
    heads = costs.heads[:left + 1].sum() if decision in ("patience", "mean so far") else costs.heads[1:left + 1].sum()
    assert at.spent("main")[n] * at.plain("trunk") == pytest.approx(costs.trunk[left] + heads)


def test_attacks_knew_no_other_decision_and_what_was_not_kept_is_said():
    kept = Record.load(LOGITS)
    used = next(view.thresholds_used for view in kept.views if view.form == "gate_aware")
    assert read(kept, kept.points[0], used).bound("union") == ""
    for decision in list(gates.DECISIONS)[1:]:
        at = read(gates.by(kept, decision), kept.points[0], used)
        assert at.bound("union") == at.bound("gate_aware") == "≤ " and at.bound("main") == ""
    closed = (-math.inf,) * 6
    assert read(gates.by(kept, "patience"), kept.points[0], closed).bound("union") == ""
    assert read(gates.by(kept, "mean so far"), kept.points[0], closed).bound("union") == "≤ "
    few = kept.lightened()
    assert gates.supported(few) == ("entropy", "patience") and gates.by(few, "patience").thresholds_of("calibrated")
    with pytest.raises(WorkbookError, match="cannot say who leaves by 'mean so far'; it can be read by entropy, patie"):
        gates.by(few, "mean so far")


def test_the_logits_that_came_along_are_those_of_the_record():
    """Recorded again, image by image the same answers and entropies as in the record that kept no logits."""
    kept = Record.load(LOGITS)
    whole = Record.load(ATLASES / LOGITS.name.replace("-logits", ""))
    assert kept.meta["weights"] == whole.meta["weights"] and np.array_equal(kept.labels, whole.labels)
    for v, view in enumerate(kept.views):
        score, answers = gates.decisions(kept.probabilities()[v])["entropy"]
        assert np.array_equal(kept.entropy[v], whole.entropy[whole.views.index(view)])
        assert score == pytest.approx(kept.entropy[v], abs=5e-3)  # logits are kept in half precision
        assert (answers == kept.labels).mean() == pytest.approx(kept.right[v].mean(), abs=2e-3)
