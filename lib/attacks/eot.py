"""Expectation over transformation: what an attacker sees of a network that draws fresh noise at every forward pass.

One draw gives one noisy gradient; the mean over several draws is the gradient of the expected loss (Athalye et al.
2018). Both functions call what they are given `draws` times, so whatever randomness it holds is drawn anew each time;
for a deterministic network one draw says it all.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor, draws: int = 1) -> Tensor:
    """Mean over `draws` calls of d loss(x) / dx, the shape of `x`; no parameter's gradient is computed or touched."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return mean(lambda: torch.autograd.grad(loss(x), x)[0], draws)


def mean(function: Callable[[], Tensor], draws: int = 1) -> Tensor:
    """Mean over `draws` calls of `function()`, one result held at a time."""
    total = function()
    for _ in range(draws - 1):
        total = total + function()
    return total / draws if draws > 1 else total
