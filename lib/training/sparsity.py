"""Sparse structure selection (Huang & Wang, ECCV 2018): train with a factor on each channel, cut the channels that die.

As the baseline of Hu et al. (2020, Fig. 6) uses it: one factor per inner channel of each residual block of ResNet-38,
after the first batch norm and before its ReLU; the 16/32/64 channels of the residual stream and all blocks stay.

    sparse = loop.load_or_fit(selection(recipes.find("resnet38-cifar10-standard-paper"), gamma=…), folder / "sparse")
    small = prune(sparse)                                            # really smaller, same logits
    recipe = continued(recipes.find("resnet38-cifar10-main-paper"), small, name=…)  # inherit=False draws new weights
    network = loop.load_or_fit(recipe, folder / "defended", start=small)
"""

import copy
import dataclasses

import torch
from torch import Tensor

from lib import WorkbookError
from lib.models import zoo
from lib.models.layers import ScaledReLU
from lib.models.network import Network
from lib.models.resnet import BasicBlock
from lib.training.constraints import Unconstrained
from lib.training.recipe import Recipe

DEAD = 1e-4  # a factor at or below this is dead when training ends
PUBLISHED_WIDTHS = {  # inner widths of the authors' five pruned ResNet-38 by group and block; gammas are not stated
    "r004": [[15, 16, 16, 13, 16, 14], [32, 32, 31, 31, 27, 25], [64, 63, 59, 34, 20, 51]],
    "r005": [[15, 12, 13, 13, 15, 10], [32, 28, 27, 18, 13, 17], [62, 62, 42, 32, 25, 50]],
    "r006": [[16, 15, 10, 10, 11, 9], [30, 25, 15, 10, 13, 12], [56, 53, 36, 33, 13, 51]],
    "r007": [[13, 12, 12, 13, 10, 7], [32, 25, 21, 17, 12, 13], [61, 53, 31, 21, 18, 32]],
    "r008": [[12, 13, 9, 7, 12, 6], [31, 23, 20, 12, 10, 7], [56, 43, 26, 10, 19, 29]],
}


def selection(recipe: Recipe, gamma: float, **changes) -> Recipe:
    """`recipe` as a sparse training with penalty gamma * sum of factors; larger gamma, fewer channels."""
    return dataclasses.replace(recipe, name=f"{recipe.name}-sss_{gamma:g}", constraint={"name": "sss", "gamma": gamma},
                               network={**recipe.network, "channel_scales": True}, **changes)


def published(recipe: Recipe, label: str, **changes) -> Recipe:
    """`recipe` for one of the five published pruned ResNet-38 (r004 ... r008), built directly, without selection."""
    if label not in PUBLISHED_WIDTHS:
        raise WorkbookError(f"there are no published widths '{label}'; choose from {', '.join(PUBLISHED_WIDTHS)}")
    return dataclasses.replace(recipe, name=f"{recipe.name}-{label}",
                               network={**recipe.network, "inner": PUBLISHED_WIDTHS[label]}, **changes)


class APGNAG(torch.optim.SGD):
    """Nesterov SGD; groups with a `gamma` take the proximal step of SSS instead (its Eqs. 10-12, "APG-NAG").

    For a factor w (the look-ahead iterate, where the gradient g of the data loss is taken) with velocity v:
    z = w - lr g;  s = sign(z) max(|z| - lr gamma, 0);  v <- s - w + m v;  w <- max(s + m v, 0). No weight decay.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if "gamma" in group:
                lr, momentum, gamma = group["lr"], group["momentum"], group["gamma"]
                for factor in (f for f in group["params"] if f.grad is not None):
                    velocity = self.state[factor].setdefault("momentum_buffer", torch.zeros_like(factor))
                    z = factor - lr * factor.grad
                    shrunk = z.sign() * (z.abs() - lr * gamma).clamp(min=0)
                    velocity.mul_(momentum).add_(shrunk - factor)
                    factor.copy_((shrunk + momentum * velocity).clamp(min=0))
                    factor.grad = None  # so that SGD leaves it alone
        return super().step()


class Selection(Unconstrained):
    """Drives factors of channels to zero during training; hands back the network with the dead ones exactly at zero."""

    def __init__(self, network: Network, recipe: Recipe, rate: Tensor, *, gamma: float):
        super().__init__(network, recipe, rate)
        self.factors = list(factors(network).values())
        if not self.factors:
            raise WorkbookError(f"{network.config['name']} has no channel factors to select by; build it with "
                                "channel_scales=True (resnet38)")
        chosen = {id(factor) for factor in self.factors}
        groups = [{"params": [p for p in network.parameters() if id(p) not in chosen],
                   "weight_decay": recipe.weight_decay}, {"params": self.factors, "gamma": gamma}]
        self.optimiser = APGNAG(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True)

    def after_step(self, step: int) -> dict[str, Tensor]:
        return {"alive": torch.cat([f.detach() > DEAD for f in self.factors]).float().mean()}

    @torch.no_grad()
    def deployed(self) -> Network:
        twin = copy.deepcopy(self.network)
        for factor in factors(twin).values():
            factor[factor <= DEAD] = 0
        return twin


def factors(network: Network) -> dict[str, Tensor]:
    """Factors (inner channels,) of each block that has them, by the block's name in the network, in stage order."""
    return {name: block.main[2].scale for name, block in network.named_modules()
            if isinstance(block, BasicBlock) and isinstance(block.main[2], ScaledReLU)}


def prune(network: Network) -> Network:
    """The network without the channels whose factor is 0: built anew, really smaller, with the same logits.

    Sliced are the first convolution's outputs, its batch norm, and the second convolution's inputs. A surviving factor
    is positive, passes through the ReLU, and is absorbed by the batch norm's scale and shift. A block whose channels
    all died keeps its first one, silent. Raises WorkbookError for a network without factors, or conditioned.
    """
    scales = {name: scale.detach() for name, scale in factors(network).items()}
    if not scales or network.knobs - {"exits", "thresholds"}:
        raise WorkbookError(f"{network.config['name']} cannot be pruned by channel factors; build a resnet38 with "
                            "channel_scales=True, without conditioning and with one width")
    state = network.state_dict()
    widths = []
    for name, scale in scales.items():
        kept = scale.nonzero()[:, 0]
        if len(kept) == 0:
            kept = kept.new_zeros(1)
        widths.append(len(kept))
        first, norm, second = (f"{name}.main.{place}" for place in (0, 1, 3))
        state[f"{first}.weight"] = state[f"{first}.weight"][kept]
        state[f"{second}.weight"] = state[f"{second}.weight"][:, kept]
        for entry in [n for n in state if n.startswith(f"{norm}.") and state[n].dim()]:
            absorbs = entry.endswith((".weight", ".bias"))
            state[entry] = (state[entry] * scale if absorbs else state[entry])[kept]
        del state[f"{name}.main.2.scale"]
    per_group = len(widths) // 3
    inner = [widths[i:i + per_group] for i in range(0, len(widths), per_group)]
    small = zoo.build(**{**network.config, "inner": inner, "channel_scales": False})
    small.class_names = network.class_names
    small.load_state_dict(state)
    return small.to(next(network.parameters()).device).train(network.training)
