"""Other decisions from kept logits, against definitions written out image by image."""

import math

import numpy as np
import pytest

from lib import ATLASES
from lib.evaluation import gates
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
            wanted = {"entropy": -sum(q * math.log(q) for q in p[k, n]), "largest probability": -two[1],
                      "margin of two": two[0] - two[1], "patience": -row,
                      "mean so far": -sum(q * math.log(q) for q in mean)}
            for decision, score in wanted.items():
                assert found[decision][0][k, n] == pytest.approx(score, abs=1e-6), decision
            assert found["mean so far"][1][k, n] == mean.argmax() and found["patience"][1][k, n] == said[k]


def test_a_sure_exit_has_no_entropy():
    assert gates.entropy(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([0.0, math.log(2)])


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
