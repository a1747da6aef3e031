"""Other ways to decide when an image leaves, and what is then answered, from the logits that a record kept.

    for name, (score, answers) in gates.decisions(record.probabilities()[v]).items():
        leaving = routing.decide(score, routing.calibrate(score_of_held_out_images))
        right = routing.at_exit(answers == record.labels, leaving)

Every score is low where the exit is sure, as entropy is, so that all that is said of thresholds holds for it. An attack
that was made against another decision is no attack on this one: what it leaves is an upper bound.
"""

import numpy as np


def decisions(probabilities: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{decision: (score float32, answers)}, (exits, N) each, of probabilities (exits, N, classes).

    Patience counts how many exits in a row, this one included, gave the same answer (PABEE), as a negative score. The
    means are over all exits passed so far, whose heads all have to be run.
    """
    top, answers = np.sort(probabilities, axis=-1), probabilities.argmax(-1)
    means = probabilities.cumsum(0) / np.arange(1, len(probabilities) + 1)[:, None, None]
    agreeing = np.ones(answers.shape)
    for k in range(1, len(answers)):
        agreeing[k] += np.where(answers[k] == answers[k - 1], agreeing[k - 1], 0)
    found = {"entropy": (entropy(probabilities), answers), "largest probability": (-top[..., -1], answers),
             "margin of two": (top[..., -2] - top[..., -1], answers), "patience": (-agreeing, answers),
             "mean so far": (entropy(means), means.argmax(-1))}
    return {decision: (np.float32(score), said) for decision, (score, said) in found.items()}


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """In nats, (…) of probabilities (…, classes)."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(-1)
