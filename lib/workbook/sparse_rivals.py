"""The sparse rivals of RDI-ResNet38: pruning and then defending (Fig. 6), and ATMC (Table 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch

from lib import WorkbookError
from lib.data import Split
from lib.models import zoo
from lib.models.cost import cost
from lib.models.factors import factorise
from lib.models.network import Network
from lib.training import admm, sparsity
from lib.training.constraints import continued
from lib.workbook import networks, studies, style, tables
from lib.workbook.networks import Trained
from lib.workbook.parameters import Settings
from lib.workbook.published import TABLES
from lib.workbook.studies import Reading

SHARE = TABLES[5].value("atmc", "paper_mflops") / TABLES[1].value("resnet38", "paper_mflops")  # of the dense MACs
STAGE = {"quick": (20, 0.02), "laptop": (200, 0.01), "paper": (27_500, 0.01)}  # ATMC: steps of a stage, learning rate


def published_widths() -> pd.DataFrame:
    """The authors' five pruned ResNet-38 beside the whole one, built at full size and counted."""
    lines = {}
    for label in (None, *sparsity.PUBLISHED_WIDTHS):
        network = zoo.build("resnet38", inner=sparsity.PUBLISHED_WIDTHS.get(label))
        found = cost(network)
        lines[label or "whole"] = {"parameters": f"{found.parameters:,}", "M MACs": f"{found.macs / 1e6:.2f}",
                                   "as the paper counts": f"{found.exits[0].paper_mflops:.3f}"}
    return pd.DataFrame(lines).T


@dataclass(frozen=True)
class Pruned:
    """What channel selection leaves: sparse (dead channels at zero), small (without them), defended (then trained)."""

    sparse: Trained
    small: Network
    defended: Trained

    def gap(self, images: Split) -> float:
        """The largest difference between the logits of the network with dead channels and the one without them."""
        floats, _ = images.floats()
        with torch.inference_mode():
            return (self.sparse.network(floats) - self.small(floats)).abs().max().item()

    @property
    def alive(self) -> tuple[int, int]:
        """(channels left, channels there were), of those that selection may cut."""
        every = torch.cat(list(sparsity.factors(self.sparse.network).values()))
        return int((every > 0).sum()), len(every)


def prune(settings: Settings, gamma: float) -> Pruned:
    """Select channels in a plain training, cut the dead ones, and train what is left against PGD."""
    sparse = networks.train(settings, sparsity.selection(studies.recipe(settings, "resnet38", "standard"), gamma))
    small = sparsity.prune(sparse.network).eval()
    base = studies.recipe(settings, "resnet38", "main")
    defended = networks.train(settings, continued(base, small, name=f"{base.name}-pruned_{gamma:g}"), small)
    return Pruned(sparse, small, defended)


def direct(settings: Settings) -> dict[str, Trained]:
    """Networks of the published widths that the settings name, built directly and trained against PGD.

    Raises WorkbookError below the paper's size: the widths are those of the whole network.
    """
    labels = [] if settings.widths == "none" else settings.widths.replace(",", " ").split()
    if labels and settings.preset != "paper":
        raise WorkbookError("the published widths are those of the whole ResNet-38; train them with preset = \"paper\"")
    base = studies.recipe(settings, "resnet38", "main")
    return {f"widths {label}": networks.train(settings, sparsity.published(base, label)) for label in labels}


def compress(settings: Settings, bits: int) -> tuple[Trained, int]:
    """ATMC from the plain network trained against PGD: limited in non-zeros, then on a codebook as well.

    Returns the network and how many non-zeros it may have.
    """
    base, dense = studies.recipe(settings, "resnet38", "main"), studies.obtain(settings, "resnet38", "main")
    steps, rate = STAGE[settings.preset]
    stage = dict(iterations=steps, epochs=None, schedule="linear", milestones=(), warmup=0.0, epsilon_warmup=0.0)
    start = factorise(dense.network)
    nonzeros = admm.nonzeros_for(start, SHARE)
    projected = networks.train(
        settings, admm.compression(base, start, nonzeros=nonzeros, learning_rate=rate, **stage), start)
    final = admm.compression(base, projected.network, nonzeros=nonzeros, bits=bits, learning_rate=rate / 2, **stage)
    return networks.train(settings, final, projected.network), nonzeros


def constraints(trained: Trained, nonzeros: int, bits: int) -> str:
    """Whether a network, as read from its file, keeps ATMC's constraints, in words."""
    kept = [t.detach() for t in admm.compressible(trained.network)]
    limits = {"non-zeros": (sum(int(t.count_nonzero()) for t in kept), nonzeros),
              "values in a tensor": (max(len(t.unique()) for t in kept), 2**bits + 1)}
    return "\n".join(f"{name}: {found:,}, at most {limit:,} allowed: {'kept' if found <= limit else 'broken'}"
                     for name, (found, limit) in limits.items())


def at_equal_cost(early: Reading, rival: Reading) -> dict:
    """A verdict: does the network with early exits withstand more than its rival, at no more true cost on clean images?

    Its thresholds are chosen on held-out images for that budget.
    """
    claim = "at no more true cost, early exits withstand more than the pruned network"
    macs = rival.plain("trunk")
    try:
        thresholds = early.record.thresholds_of(macs)
    except WorkbookError:
        return {"claim": claim, "difference": tables.DASH, "95 % interval": tables.DASH, "images": tables.DASH,
                "verdict": "cannot be asked: already the first exit costs more"}
    bought = replace(early, thresholds=thresholds, source="budget")
    return tables.verdict(claim, bought.right("paper_worst"), rival.right("paper_worst"))


def costs(networks: Mapping[str, tuple[Trained, int]]) -> pd.DataFrame:
    """Three counts of sparse networks {label: (network, bits a value)}; the paper does not say which one it gives."""
    lines = {}
    for label, (trained, bits) in networks.items():
        found = admm.sparse_cost(trained.network, bits)
        lines[style.label(label)] = {
            "published": tables.number(None if trained.quick else TABLES[5].value(label, "paper_mflops")),
            "executed, as the paper counts": f"{found.dense_conv_macs / 2**20:.3f}",
            "ideal sparse, as the paper counts": f"{found.sparse_mflops:.3f}",
            "share of the dense": f"{100 * found.share:.1f} %", "non-zero weights": f"{found.nonzeros:,}",
            "stored, kB": f"{found.stored_bits / 8000:.1f}"}
    return pd.DataFrame(lines).T


def ideal(trained: Trained) -> float:
    """MFlops, as the paper counts, on hardware that skips every zero."""
    return admm.sparse_cost(trained.network).sparse_mflops


def with_not_run(table: pd.DataFrame, readings: Mapping[str, Reading]) -> pd.DataFrame:
    """The table of `readings` with a line for each of the published widths that they leave out."""
    labels = [f"widths {label}" for label in sparsity.PUBLISHED_WIDTHS if f"widths {label}" not in readings]
    if not labels:
        return table
    index = pd.MultiIndex.from_tuples([(label, "not run") for label in labels], names=table.index.names)
    missing = pd.DataFrame(tables.DASH, index=index, columns=table.columns)
    return tables.stacked(table, missing)
