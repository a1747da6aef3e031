"""What a network learned besides its weights' own values, read from it."""

import pandas as pd

from lib import WorkbookError
from lib.models.layers import BatchNorm2d, Weighted
from lib.models.network import Network


def alphas(network: Network) -> pd.DataFrame:
    """|alpha| of every noisy layer, in the order of depth: the noise's deviation in units of the weights' own.

    Its sign means nothing, as noise is symmetric. With several alphas in a layer, their mean. Raises WorkbookError for
    a network without noise.
    """
    found = [m for m in network.modules() if isinstance(m, Weighted) and m.alpha is not None]
    if not found:
        raise WorkbookError(f"{network.config['name']} ({network.conditioning}) carries no noise and has no alpha")
    return pd.DataFrame([{
        "layer": f"{depth} {'linear' if m.weight.dim() == 2 else 'x'.join(map(str, m.weight.shape))}",
        "alpha": float(m.alpha.detach().abs().mean()), "deviation of the weights": float(m.weight.detach().std()),
        "weights": m.weight.numel()} for depth, m in enumerate(found, start=1)])


def batch_norms(network: Network) -> pd.DataFrame:
    """Running mean and variance of the last batch norm before the classifier, at full width: a line per channel and
    bank ("BN_C", "BN_A"). Raises WorkbookError for a network without two banks."""
    last = [m for m in network.modules() if isinstance(m, BatchNorm2d)][-1]
    if last.banks != 2:
        raise WorkbookError(f"{network.config['name']} ({network.conditioning}) has one set of batch norms, not two")
    return pd.concat([pd.DataFrame({"bank": bank, "mean": norm.running_mean.cpu(), "variance": norm.running_var.cpu()})
                      for bank, norm in zip(("BN_C", "BN_A"), last.norms[:2], strict=True)])
