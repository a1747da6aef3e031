"""Weights as low rank plus sparse, W = U V + C: the parametrisation that ATMC compresses (Gui et al., NeurIPS 2019).

The rank is full, so that every weight can be written this way; a low rank arises through zeros alone.
"""

import copy

from torch import Tensor, nn

from lib import WorkbookError
from lib.models.layers import Weighted
from lib.models.network import Network


class Factors(nn.Module):
    """One layer's weight (out, d), d = in * k * k, as (B + I) A + C, or B (A + I) + C where d < out (released code).

    With r = min(out, d): a (r, d), b (out, r), c (out, d). The identity is constant and costs nothing.
    At the start one factor is the dense weight and the other two are zero, so that nothing changes.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        dense = weight.detach().flatten(1)
        out, columns = dense.shape
        rank = min(out, columns)
        self.shape, self.identity_left = weight.shape, rank == out
        self.a = nn.Parameter(dense.new_zeros(rank, columns))
        self.b = nn.Parameter(dense.new_zeros(out, rank))
        self.c = nn.Parameter(dense.new_zeros(out, columns))
        (self.a if self.identity_left else self.b).data.copy_(dense)

    def forward(self) -> Tensor:
        """The composed weight, in the layer's own shape."""
        own = self.a if self.identity_left else self.b
        return (own + self.b @ self.a + self.c).view(self.shape)


def factorise(network: Network) -> Network:
    """A copy whose convolutions and linear layers hold factors; same outputs.

    Raises WorkbookError for a conditioned network or one of several widths.
    """
    if network.knobs - {"exits", "thresholds"}:
        raise WorkbookError("only a network without conditioning and with one width can be factorised; build it with "
                            "conditioning='none'")
    twin = copy.deepcopy(network)
    for layer in twin.modules():
        if isinstance(layer, Weighted) and layer.factors is None:
            layer.factors, layer.weight = Factors(layer.weight), None
    twin.config = {**network.config, "factorised": True}
    return twin


def composed(network: Network) -> Network:
    """The network as it is deployed: a copy with plain weights, or `network` itself where it has no factors."""
    if not any(isinstance(module, Factors) for module in network.modules()):
        return network
    twin = copy.deepcopy(network)
    for layer in twin.modules():
        if isinstance(layer, Weighted) and layer.factors is not None:
            layer.weight, layer.factors = nn.Parameter(layer.factors().detach()), None
    twin.config = {**network.config, "factorised": False}
    return twin
