"""Attacks on the saving (slowdown, DeepSloth of Hong et al. 2021): inside the budget, past every gate.

    slow_keep   the image leaves as late as can be, and its decision stays right: nobody sees that it is attacked
    slow_break  … and its decision becomes wrong
    slow_free   … whatever its decision

DeepSloth pulls early exits towards the uniform distribution; here their entropies are pushed over the very thresholds.
"""

import torch
from torch import Tensor

from lib.attacks import steps
from lib.models.exits import entropy, routed

FORMS = ("slow_keep", "slow_break", "slow_free")
REACH = 0.1  # nats that an entropy is pushed beyond its threshold
EDGE = 0.5  # logits that the label is pushed beyond the decision
WEIGHT = 5.0  # of the entropies, in nats, against the label, in logits


def loss(form: str, logits: Tensor, labels: Tensor, gates: Tensor) -> Tensor:
    """What is ascended, (N,).  logits: of all exits (exits, N, classes).  gates: thresholds (exits - 1,)."""
    lead = steps.lead(logits[-1], labels)
    aside = {"slow_keep": -(lead + EDGE).relu(), "slow_break": lead.clamp(max=EDGE), "slow_free": 0.0}[form]
    return aside - WEIGHT * _held(logits, gates, REACH)


def score(form: str, logits: Tensor, labels: Tensor, gates: Tensor) -> Tensor:
    """How well an image does, (N,): its decision as asked above all, then how late it leaves, then how nearly later."""
    answers, exit = routed(logits, gates)
    right = answers.argmax(-1) == labels
    asked = {"slow_keep": right, "slow_break": ~right, "slow_free": torch.ones_like(right)}[form]
    held = _held(logits, gates, 0.0)
    return asked * len(logits) + exit - held / (1 + held)


def _held(logits: Tensor, gates: Tensor, reach: float) -> Tensor:
    """Nats that early exits' entropies still lie below their thresholds and `reach`; a closed exit holds nobody."""
    return (gates.clamp(-20, 20)[:, None] + reach - entropy(logits[:-1])).relu().sum(0)
