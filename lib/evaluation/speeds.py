"""How long a forward pass takes, several networks or operating points taking turns on the same images."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import lib
from lib import WorkbookError, randomness
from lib.evaluation.latency import _alternate, _name, median_interval
from lib.models.network import Network
from lib.operating_point import OperatingPoint

Way = tuple[Network, OperatingPoint | None]


def side_by_side(ways: Mapping[str, Way], images: Tensor, *, batch_sizes: Sequence[int] = (1, 32), passes: int = 100,
                 warm_up: int = 10, seconds: float = 20.0, seed: int = 0, **columns) -> list[dict]:
    """Tidy rows of ms an image, and of each way's time over the first one's in the same round (metric time_ratio).

    ways: {name: (network in eval mode, point)}.  images: (N, C, H, W) floats, N at least the largest batch.  They take
    turns on one batch, `passes` rounds after `warm_up` untimed ones, or as many as `seconds` allow for each batch size.
    Median; low and high are the distribution-free 95 % interval of the median. suite = "batch B".
    Raises WorkbookError when there are too few images.
    """
    if len(images) < max(batch_sizes):
        raise WorkbookError(f"{len(images)} images do not fill a batch of {max(batch_sizes)}; give more of them")
    for network, point in ways.values():
        network.check_point(point or OperatingPoint())
    source = randomness.generator(seed, "speeds", device=images.device)
    calls = {name: lambda x, n=network, p=point: n(x, p, source)[-1].argmax(-1)
             for name, (network, point) in ways.items()}
    first, rows = next(iter(ways)), []
    for size in batch_sizes:
        times = _alternate(calls, images, size, passes, warm_up, seconds)
        for name, values in times.items():
            common = {"model": ways[name][0].config["name"], "defence": name, "split": "latency", "seed": seed,
                      "images": len(values) * size, "suite": f"batch {size}", "device": _name(images.device),
                      "threads": torch.get_num_threads(), "seconds": float(values.sum()), "version": lib.__version__,
                      "evaluated_at": str((ways[name][1] or OperatingPoint()).to_json()), **columns}
            for metric, numbers in (("latency_ms", values / size * 1e3), ("time_ratio", values / times[first])):
                low, median, high = median_interval(numbers)
                rows.append({**common, "metric": metric, "value": median, "low": low, "high": high})
    return rows
