"""A training step as one CUDA graph: thousands of small kernels for the price of one launch. Elsewhere a plain call."""

import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from lib import randomness

WARM_UP = 3  # eager steps, each a real one, before the capture: they settle cuDNN's choices and make every buffer


class Streams:
    """The random streams of one step, seeded anew at each step but always the same objects, as a graph needs them.

    `streams(purpose)` draws what randomness.generator(seed, "train", step, purpose) would draw.
    """

    def __init__(self, seed: int, device: torch.device):
        self.seed, self.device, self.step = seed, device, 0
        self.known: dict[str, torch.Generator] = {}

    def begin(self, step: int) -> None:
        self.step = step
        for purpose, known in self.known.items():
            known.manual_seed(randomness.generator(self.seed, "train", step, purpose).initial_seed())

    def __call__(self, purpose: str) -> torch.Generator:
        if purpose not in self.known:
            self.known[purpose] = randomness.generator(self.seed, "train", self.step, purpose, device=self.device)
        return self.known[purpose]


class Captured:
    """Calls `body()` -> {name: tensor}; on CUDA, from the fourth call with the same `key` on, replays it as a graph.

    Whatever changes between calls must stand in tensors that `body` reads in place, or in `streams`; whatever else it
    depends on (the attack's budget, which objective) must be told apart by `key`. Where capture fails, training goes on
    eagerly and says so once.
    """

    def __init__(self, body: Callable[[], dict[str, Tensor]], streams: Streams):
        self.body, self.streams = body, streams
        self.stream = torch.cuda.Stream(streams.device) if streams.device.type == "cuda" else None
        self.key: Hashable = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outputs: dict[str, Tensor] = {}
        self.calls, self.able = 0, True

    def __call__(self, key: Hashable) -> dict[str, Tensor]:
        if self.stream is None:
            return self.body()
        if key != self.key:
            self.key, self.graph, self.calls = key, None, 0
        self.calls += 1
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):  # gradients remember the stream of their first use: always the same one
            if self.graph is None and self.able and self.calls > WARM_UP:
                self.capture()
            if self.graph is None:
                outputs = self.body()
            else:
                self.graph.replay()
                outputs = {name: t.clone() for name, t in self.outputs.items()}
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return outputs

    def capture(self) -> None:
        """Record `body` without running it; the weights are as before."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.streams.known.values():
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.body()
        except RuntimeError as error:
            self.able = False
            self.streams.known.clear()  # a generator that belongs to a broken graph can draw no more
            reason = str(error).splitlines()[0]
            warnings.warn(f"the step could not be captured as a CUDA graph ({reason}); going on eagerly", stacklevel=3)
        else:
            self.graph = graph
