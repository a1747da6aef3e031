"""ATMC, adversarially trained model compression (Gui et al., NeurIPS 2019), as in the authors' code, its slips mended.

Weights are low rank plus sparse (`models.factors`). While the network trains adversarially, at most k entries of all
factors together stay non-zero (projected after every step), and ADMM pulls each factor towards a copy whose entries
come from a codebook of at most 2^b non-zero values. Batch norm and biases are left alone. Hu et al. (2020, Table 5)
compare with it on ResNet-38. The stages: dense adversarial training, projected, projected and quantised.

    dense = loop.load_or_fit(base, folder / "dense")  # base: plain ResNet-38, PGD-defended
    start = factorise(dense)
    k = nonzeros_for(start, 56.82 / 79.42)
    recipe = compression(base, start, nonzeros=k, learning_rate=0.01)
    sparse = loop.load_or_fit(recipe, folder / "projected", start=start)
    recipe = compression(base, sparse, nonzeros=k, bits=8, learning_rate=0.005)
    final = loop.load_or_fit(recipe, folder / "quantised", start=sparse)
    sparse_cost(final, bits=8)
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import WorkbookError
from lib.attacks.decision import attack_mode
from lib.models.cost import MEBI
from lib.models.layers import Conv2d, Weighted
from lib.models.network import Network
from lib.training.constraints import Unconstrained, continued
from lib.training.recipe import Recipe

ROUNDS = 20  # of Lloyd's algorithm, at most, as in the authors' code


def compression(recipe: Recipe, network: Network, *, nonzeros: int, bits: int | None = None, rho: float = 0.1,
                interval: int = 10, **changes) -> Recipe:
    """`recipe` as one stage of ATMC that starts from `network`: projected to `nonzeros`, quantised where `bits` is set.

    rho: weight of the ADMM penalty.  interval: steps between updates of the quantised copy and the dual variable.
    changes: other fields, such as the stage's iterations and learning rate.
    """
    stage = f"atmc_{nonzeros}" + (f"_{bits}bit" if bits else "")
    constraint = {"name": "atmc", "nonzeros": nonzeros, "bits": bits, "rho": rho, "interval": interval}
    return continued(recipe, network, name=f"{recipe.name}-{stage}", constraint=constraint, **changes)


class Compression(Unconstrained):
    """Keeps theta sparse, theta' (`copies`) sparse and quantised, and the scaled dual u (`duals`) between the two.

    Minimised is the loss + rho/2 ||theta + u - theta'||^2 (the augmented Lagrangian of the paper's section 3.2). Handed
    back is theta' with theta's batch norm and biases. The authors leave theta' without the limit on non-zeros, which it
    then meets only at convergence; here it is projected too, so that what is stored obeys both constraints.
    Without `bits` there is no theta': the network is only projected.
    """

    def __init__(self, network: Network, recipe: Recipe, rate: Tensor, *, nonzeros: int, bits: int | None = None,
                 rho: float = 0.1, interval: int = 10):
        super().__init__(network, recipe, rate)
        self.nonzeros, self.bits, self.rho, self.interval = nonzeros, bits, rho, interval
        self.theta = compressible(network)
        with torch.no_grad():
            project(self.theta, nonzeros)
            self.copies = quantise(self.theta, bits, nonzeros) if bits else []
            self.duals = [torch.zeros_like(t) for t in self.copies]

    def penalty(self) -> Tensor | float:
        rows = zip(self.theta[:len(self.copies)], self.duals, self.copies, strict=True)
        return self.rho / 2 * sum((theta + dual - copied).square().sum() for theta, dual, copied in rows)

    def gap(self) -> Tensor:
        """||theta - theta'|| / ||theta||: how far what is handed back is from what is trained."""
        rows = zip(self.theta, self.copies, strict=True)
        apart = torch.stack([(theta - copied).square().sum() for theta, copied in rows]).sum()
        return (apart / torch.stack([theta.square().sum() for theta in self.theta]).sum()).sqrt()

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Tensor]:
        """Project; every `interval` steps theta' <- codebook(theta + u), then u <- u + theta - theta'."""
        project(self.theta, self.nonzeros)
        if not self.bits:
            return {}
        if step % self.interval == 0:
            for theta, dual, kept, new in zip(self.theta, self.duals, self.copies, self.quantised(), strict=True):
                kept.copy_(new)  # in place, as a captured step reads them
                dual += theta - new
        return {"penalty": self.penalty(), "gap": self.gap()}

    def quantised(self) -> list[Tensor]:
        return quantise([t + u for t, u in zip(self.theta, self.duals, strict=True)], self.bits, self.nonzeros)

    @torch.no_grad()
    def deployed(self) -> Network:
        if not self.bits:
            return self.network
        twin = copy.deepcopy(self.network)
        for theta, copied in zip(compressible(twin), self.quantised(), strict=True):
            theta.copy_(copied)
        return twin

    def tensors(self) -> dict[str, Tensor]:
        both = {"copy": self.copies, "dual": self.duals}
        return {f"constraint.{kind}.{index}": t for kind, kept in both.items() for index, t in enumerate(kept)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, t in self.tensors().items():
            t.copy_(tensors[name])


def parts(layer: Weighted) -> list[Tensor]:
    """The tensors that hold a layer's weight: its factors, or the weight itself."""
    return [layer.weight] if layer.factors is None else list(layer.factors.parameters())


def compressible(network: Network) -> list[Tensor]:
    """Every tensor under the constraints, in the network's order: biases and batch norm are not among them."""
    return [t for layer in network.modules() if isinstance(layer, Weighted) for t in parts(layer)]


@torch.no_grad()
def project(tensors: Sequence[Tensor], nonzeros: int) -> None:
    """Zero, in place, all but the `nonzeros` entries of largest magnitude, ranked over all tensors together."""
    magnitudes = torch.cat([t.flatten() for t in tensors]).abs()
    if nonzeros >= len(magnitudes):
        return
    kept = torch.zeros_like(magnitudes).scatter_(0, magnitudes.topk(nonzeros, sorted=False).indices, 1.0)
    for t, mask in zip(tensors, kept.split([t.numel() for t in tensors]), strict=True):
        t.mul_(mask.view(t.shape))


def quantise(tensors: Sequence[Tensor], bits: int, nonzeros: int) -> list[Tensor]:
    """New tensors with at most 2^bits non-zero values each and at most `nonzeros` non-zeros in all."""
    quantised = [codebook(t, bits) for t in tensors]
    project(quantised, nonzeros)
    return quantised


def codebook(values: Tensor, bits: int) -> Tensor:
    """Each entry moved to the nearest of 2^bits centres, found by 1-d k-means on the non-zero entries, or to 0.

    0 is one more centre, which never moves. A tensor with no more than 2^bits non-zeros is left as it is. The centres
    start at equal quantiles (the authors draw them at random), so that a tensor has one codebook.
    """
    ordered = values[values != 0].double().sort().values
    count = len(ordered)
    if count <= 2**bits:
        return values.clone()
    quantiles = torch.linspace(0, count - 1, 2**bits, device=values.device, dtype=torch.double).round().long()
    centres = torch.cat([ordered[quantiles], ordered.new_zeros(1)]).sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])  # so that a round costs 2^bits look-ups, not a pass
    for _ in range(ROUNDS):
        middle = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([middle.new_zeros(1), middle, middle.new_full((1,), count)])
        held = edges.diff()
        means = sums[edges].diff() / held.clamp(min=1)
        centres = torch.where((held > 0) & (centres != 0), means, centres)
    nearest = torch.bucketize(values.double(), (centres[1:] + centres[:-1]) / 2)
    return centres.to(values.dtype)[nearest]


@dataclass(frozen=True)
class SparseCost:
    """One image through the convolutions of every exit, the paper's convention, and the weights' size.

    dense_conv_macs: executed with composed weights, zeros included.  sparse_conv_macs: ideal, one product per non-zero
    of each factor and output position; the identity is free.  nonzeros: of linear layers as well.  stored_bits:
    non-zeros times bits per value, the ATMC paper's size; positions, codebooks, biases and batch norm are not in it.
    Neither paper says what its "MFlops" counts for a sparse network.
    """

    dense_conv_macs: int
    sparse_conv_macs: int
    nonzeros: int
    stored_bits: int

    @property
    def share(self) -> float:
        """Ideal sparse convolution MACs over dense ones."""
        return self.sparse_conv_macs / self.dense_conv_macs

    @property
    def sparse_mflops(self) -> float:
        return self.sparse_conv_macs / MEBI


def sparse_cost(network: Network, bits: int = 32) -> SparseCost:
    """The cost counts of a network with or without factors, stored with `bits` per non-zero."""
    dense = sparse = nonzeros = 0
    for layer, places in positions(network):
        kept = sum(int(t.count_nonzero()) for t in parts(layer))
        nonzeros += kept
        if isinstance(layer, Conv2d):
            dense += places * math.prod((layer.weight if layer.factors is None else layer.factors).shape)
            sparse += places * kept
    return SparseCost(dense, sparse, nonzeros, nonzeros * bits)


def positions(network: Network) -> list[tuple[Weighted, int]]:
    """Each layer and how many output positions its weight is applied to in one image (1 for a linear layer)."""
    found: list[tuple[Weighted, int]] = []
    hooks = [layer.register_forward_hook(lambda layer, _, out: found.append((layer, math.prod(out.shape[2:]))))
             for layer in network.modules() if isinstance(layer, Weighted)]
    try:
        with torch.no_grad(), attack_mode(network, "eval"):
            network(torch.zeros(1, *network.input_shape, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def nonzeros_for(network: Network, share: float) -> int:
    """The largest k whose projection leaves at most `share` of the dense convolution MACs, ideally executed.

    Table 5's 56.82 of 79.42 MFlops is share 0.7154. Early layers weigh more in MACs than in weights, so that the answer
    depends on where the large entries are: it is exact for the entries that the network has now, and training moves
    them; look at `sparse_cost` afterwards. Raises WorkbookError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise WorkbookError(f"share {share} of the dense MACs is outside (0, 1]; Table 5 needs {56.82 / 79.42:.4f}")
    magnitudes, macs = [], []
    for layer, places in positions(network):
        for t in parts(layer):
            magnitudes.append(t.detach().flatten().abs())
            macs.append(torch.full_like(magnitudes[-1], places if isinstance(layer, Conv2d) else 0, dtype=torch.long))
    magnitudes, macs = torch.cat(magnitudes), torch.cat(macs)
    order = magnitudes.argsort(descending=True, stable=True)
    order = order[magnitudes[order] > 0]
    spent = macs[order].cumsum(0)
    target = math.floor(share * sparse_cost(network).dense_conv_macs)
    return int((spent <= target).sum())
