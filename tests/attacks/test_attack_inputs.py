"""What an attack takes and what it refuses in words: threats, forms, images and labels."""

import math

import pytest
import torch

from lib import WorkbookError, randomness
from lib.attacks import forms
from lib.attacks.steps import Threat
from tests.helpers.linear_oracle import linear_network, random_batch

torch.set_num_threads(1)
TWO_CLASS = torch.randn(3, 2, 4, generator=randomness.generator(1, "weights"))
PGD = Threat(0.1, 0.03, 8)


# ---- the threat

@pytest.mark.parametrize("arguments, said", [
    (dict(epsilon=8, step_size=2, steps=10), "epsilon 8"),
    (dict(epsilon=-0.1, step_size=0.1, steps=1), "epsilon -0.1"),
    (dict(epsilon=math.nan, step_size=0.1, steps=1), "epsilon nan"),
    (dict(epsilon="0.1", step_size=0.1, steps=1), "epsilon 0.1"),
    (dict(epsilon=0.1, step_size=0, steps=1), "step_size 0"),
    (dict(epsilon=0.1, steps=1), "step_size None"),
    (dict(epsilon=0.1, step_size=0.1, steps=0), "steps 0"),
    (dict(epsilon=0.1, step_size=0.1, steps=2.5), "steps 2.5"),
    (dict(epsilon=0.1, step_size=0.1), "steps None"),
    (dict(epsilon=0.1, step_size=0.1, steps=1, draws=0), "draws 0"),
    (dict(epsilon=0.1, step_size=0.1, steps=1, algorithm="pdg"), "pgd, fgsm"),
    (dict(epsilon=0.1, step_size=0.1, steps=1, loss="cw"), "ce, margin"),
    (dict(epsilon=0.3, algorithm="wrm"), "steps None"),
])
def test_an_impossible_threat_is_refused_in_words(arguments, said):
    with pytest.raises(WorkbookError, match=said.replace("(", r"\(")):
        Threat(**arguments)


def test_a_threat_states_what_its_algorithm_really_does():
    fgsm = Threat(0.1, 0.03, 8, algorithm="fgsm")
    assert (fgsm.step_size, fgsm.steps, fgsm.random_start, fgsm.reach) == (0.1, 1, False, 0.1)
    assert Threat(0.1, algorithm="fgsm_authors").reach == 0.2
    assert Threat(0.1, algorithm="fgsm_authors", random_start=False).reach == 0.1
    assert Threat(0.3, 0.01, 20, algorithm="wrm").step_size is None


# ---- forms and batches

def test_names_of_forms():
    assert forms.names(3) == ("single1", "single2", "main", "average", "max_average", "random", "gate_aware")
    assert forms.names(1) == forms.paper_forms(1) == ("main",)
    assert len(forms.paper_forms(7)) == 9 and forms.paper_forms(7)[6:] == ("main", "average", "max_average")
    assert forms.find("single7", 7) == "main" == forms.find("single1", 1)
    for form, exits, said in (("max-average", 3, "did you mean max_average.*single1, single2, main"),
                              ("average", 1, "1 exit has main"), ("single8", 7, "single6, main")):
        with pytest.raises(WorkbookError, match=said):
            forms.find(form, exits)


@pytest.mark.parametrize("spoil, said", [
    (lambda x, y: ((x * 255).to(torch.uint8), y), "uint8"),
    (lambda x, y: (x * 255, y), "0 to 255"),
    (lambda x, y: (x - 0.5, y), "-0.5"),
    (lambda x, y: (x * math.nan, y), "nan"),
    (lambda x, y: (x, y[:2]), "do not fit"),
    (lambda x, y: (x, y.float()), "int64"),
    (lambda x, y: (x, y + 2), "classes 0 to 1"),
    (lambda x, y: (x[:0], y[:0]), "do not fit"),
    (lambda x, y: (x.flatten(1), y), "shape"),
])
def test_images_and_labels_that_do_not_fit_are_refused_in_words(spoil, said):
    images, labels = random_batch(4)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 1
    with pytest.raises(WorkbookError, match=said):
        forms.craft("main", linear_network(TWO_CLASS), *spoil(images, labels), PGD, generator=None)
