"""Other ways to decide when an image leaves, and what is then answered, from what a record kept.

    read(gates.by(record, "patience"), point, "calibrated")     # a record as any other

    for name, (score, answers) in gates.decisions(record.probabilities()[v]).items():
        leaving = routing.decide(score, routing.calibrate(score_of_held_out_images))
        right = routing.at_exit(answers == record.labels, leaving)

Every score is positive, and low where the exit is sure, as entropy is, so that all that is said of thresholds holds for
it. An attack that was made against another decision is no attack on this one: what it leaves is an upper bound.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from lib import WorkbookError
from lib.evaluation.record import Record

DECISIONS = {  # what an image leaves by: the score in words
    "entropy": "its entropy (nats)", "largest probability": "1 − the largest probability",
    "margin of two": "1 − the margin of the two largest probabilities",
    "patience": "1 / how many exits in a row agree", "mean so far": "the entropy of the mean so far (nats)"}


def decisions(probabilities: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{decision: (score float32, answers)}, (…, exits, N) each, of probabilities (…, exits, N, classes).

    Patience counts how many exits in a row, this one included, gave the same answer (PABEE). The means are over all
    exits passed so far. Both need the heads of all of these.
    """
    ranked, answers = np.sort(probabilities, axis=-1), probabilities.argmax(-1)
    unsure = ranked[..., :-1].sum(-1)  # what is left beside the largest, exact where that is nearly 1
    means = probabilities.cumsum(-3) / np.arange(1, probabilities.shape[-3] + 1)[:, None, None]
    found = {"entropy": (entropy(probabilities), answers), "largest probability": (unsure, answers),
             "margin of two": (unsure + ranked[..., -2], answers), "patience": (1 / in_a_row(answers), answers),
             "mean so far": (entropy(means), means.argmax(-1))}
    return {decision: (np.float32(score), said) for decision, (score, said) in found.items()}


def in_a_row(answers: np.ndarray) -> np.ndarray:
    """(…, exits, N) how many exits up to this one gave the same answer."""
    agreeing = np.ones(answers.shape)
    for k in range(1, answers.shape[-2]):
        same = answers[..., k, :] == answers[..., k - 1, :]
        agreeing[..., k, :] += np.where(same, agreeing[..., k - 1, :], 0)
    return agreeing


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """In nats, (…) of probabilities (…, classes); `exits.entropy`, which gates compare, adds 1e-5 in its logarithm."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(-1)


def supported(record: Record) -> tuple[str, ...]:
    """Which decisions a record with exits can tell of: without logits entropy, and patience from the answers."""
    if record.num_exits == 1 or record.entropy is None:
        return ("entropy",)
    return tuple(d for d in DECISIONS if d == "entropy" or record.logits is not None
                 or (d == "patience" and record.prediction is not None))


@lru_cache(maxsize=32)
def by(record: Record, decision: str) -> Record:
    """The record under another decision: its score where entropies were, its answers where those of an exit alone were.

    The paper's thresholds and the strong suite were another decision's and are left out, held-out images as well where
    too little was kept of them. Raises WorkbookError for a decision that the record cannot tell of.
    """
    if decision == "entropy":
        return record
    if decision not in supported(record):
        more = f"; it can be read by {', '.join(supported(record))}, and with its logits by all"
        raise WorkbookError(f"this record cannot say who leaves by {decision!r}{more}")
    if decision == "patience":
        score, answers = np.float32(1 / in_a_row(record.prediction)), record.prediction
    else:
        score, answers = decisions(record.probabilities())[decision]
    right = record.right if decision != "mean so far" else (answers == record.labels).astype(np.uint8)
    held = record.held_out and decision in supported(record.held_out)
    return replace(record, entropy=score, prediction=answers.astype(record.prediction.dtype), right=right, strong=None,
                   held_out=by(record.held_out, decision) if held else None,
                   meta={**record.meta, "decision": decision, "paper_thresholds": None})
