"""Early exits: when an image leaves, the prefix up to one exit, and inference that really drops what has left."""

import math

import torch
from torch import Tensor

from lib import WorkbookError
from lib.models.conditioning import take
from lib.models.network import Network, check_batch
from lib.operating_point import OperatingPoint


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, natural log, -sum p log(p + 1e-5) (released code; Eq. 6)."""
    p = logits.softmax(-1)
    return -(p * (p + 1e-5).log()).sum(-1)


def effective_thresholds(point: OperatingPoint, num_exits: int) -> tuple[float, ...]:
    """The point's thresholds with disabled exits closed (-inf). Raises WorkbookError when thresholds are missing."""
    if point.thresholds is None:
        if num_exits == 1:
            return ()
        raise WorkbookError(f"routing needs thresholds: give OperatingPoint(thresholds=…) with {num_exits - 1} values")
    if point.exits is None:
        return point.thresholds
    return tuple(t if k + 1 in point.exits else -math.inf for k, t in enumerate(point.thresholds))


def decide(entropies: Tensor, thresholds) -> Tensor:
    """Exit (N,), 0-based, of each image from its entropies (exits, N): the first k with H_k < t_k, else the last."""
    num_exits = entropies.shape[0]
    if len(thresholds) != num_exits - 1:
        raise WorkbookError(f"{len(thresholds)} thresholds for {num_exits} exits; give {num_exits - 1}")
    leaves = entropies[:-1] < torch.as_tensor(thresholds, dtype=entropies.dtype, device=entropies.device)[:, None]
    last = torch.ones_like(entropies[:1], dtype=torch.bool)
    return torch.cat([leaves, last]).to(torch.uint8).argmax(0)


def routed(logits: Tensor, thresholds) -> tuple[Tensor, Tensor]:
    """(logits (N, classes) of the exit that each image leaves by, that exit (N,)) of all exits' (exits, N, classes)."""
    exit = decide(entropy(logits.detach()), thresholds)
    return logits[exit, torch.arange(logits.shape[1], device=logits.device)], exit


def prefix(network: Network, images: Tensor, exit: int, point: OperatingPoint | None = None,
           generator: torch.Generator | None = None) -> Tensor:
    """Logits (N, classes) of one exit (0-based): the backbone up to its tap and its own head, nothing else."""
    network.check_images(images)
    at = network.conditions(point, generator)
    x = images
    for k in range(exit + 1):
        x = network.advance(x, k, at)
    return network.heads[exit](x, at)


def route(network: Network, images: Tensor, point: OperatingPoint,
          generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The deployed decision: (prediction (N,), exit (N,) 0-based). Images that left are dropped from the batch.

    Heads of disabled exits are not run. Where the point has one value per image all are, and the batch is not shrunk.
    Raises WorkbookError as `network.check_batch`, and where thresholds are missing.
    """
    check_batch(network, images)
    at = network.conditions(point, generator)
    last = network.num_exits - 1
    thresholds = effective_thresholds(point, network.num_exits)
    if len(images) == 1:  # nothing to shrink: a comparison in place of index arithmetic, which costs as much as a head
        return _route_one(network, images, thresholds, at)
    if at.per_image:
        logits, exits = routed(network(images, point, generator), thresholds)
        return logits.argmax(-1), exits
    rows = torch.arange(len(images), device=images.device)  # which image each row of the batch is
    prediction, exits = torch.empty_like(rows), torch.full_like(rows, last)
    x = images
    for k in range(last + 1):
        x = network.advance(x, k, at)
        if k < last and thresholds[k] == -math.inf:
            continue
        logits = network.heads[k](x, at)
        leaves = entropy(logits) < thresholds[k] if k < last else torch.ones_like(rows, dtype=torch.bool)
        count = int(leaves.count_nonzero())
        if count == 0:  # a small batch pays for its head alone
            continue
        if count == len(rows):
            prediction[rows], exits[rows] = logits.argmax(-1), k
            break
        out, staying = leaves.nonzero()[:, 0], (~leaves).nonzero()[:, 0]
        prediction[rows[out]], exits[rows[out]] = logits[out].argmax(-1), k
        x, rows = take(x, staying), rows[staying]
    return prediction, exits


def _route_one(network: Network, x: Tensor, thresholds, at) -> tuple[Tensor, Tensor]:
    last = network.num_exits - 1
    for k, threshold in enumerate((*torch.tensor(thresholds, dtype=torch.float32).tolist(), math.inf)):
        x = network.advance(x, k, at)
        if threshold == -math.inf:
            continue
        logits = network.heads[k](x, at)
        if k == last or entropy(logits).item() < threshold:
            return logits.argmax(-1), torch.full((1,), k, device=x.device)
