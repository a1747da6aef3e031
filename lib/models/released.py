"""Import of the RDI-Nets authors' released weights: RDI-ResNet38 on CIFAR-10, max-average defence (Hu et al. 2020).

The file is a pickle of an old PyTorch. It is opened with `weights_only=True`, which rebuilds tensors and runs nothing.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib import WorkbookError
from lib.models import zoo
from lib.models.network import Network

NAME = "rdi_resnet38_released"  # of the file, and of the records made of it
BLOCK = {"conv1": "main.0", "bn1": "main.1.norms.0", "conv2": "main.3", "bn2": "main.4.norms.0",
         "downsample.0": "shortcut.0", "downsample.1": "shortcut.1.norms.0"}
HEADS = ({"1": "1", "2": "2.norms.0", "5": "5", "6": "6.norms.0", "9": "8"},
         {**{f"1.{theirs}": f"1.{ours}" for theirs, ours in BLOCK.items()}, "4": "3"},
         {"2": "1"})


@dataclass(frozen=True)
class Released:
    """As `checkpoints.Loaded`: the network in eval mode, what is known about it, and the sha256 of the file."""

    network: Network
    metadata: dict
    digest: str


def names() -> dict[str, str]:
    """Module names of the released file -> ours."""
    table = {"conv1": "stages.0.0", "bn1": "stages.0.1.norms.0", "fc": "heads.6.1"}
    for group in range(3):
        for layer in range(6):
            stage = 1 + 6 * group + layer
            table |= {f"group{group}_layer{layer}.{theirs}": f"stages.{stage}.0.{ours}"
                      for theirs, ours in BLOCK.items()}
        for branch in (2 * group, 2 * group + 1):
            table |= {f"branch_layer{branch + 1}.{theirs}": f"heads.{branch}.{ours}"
                      for theirs, ours in HEADS[group].items()}
    return table


def load(path: Path | str, device: torch.device | str = "cpu") -> Released:
    """The released RDI-ResNet38 from `path`, in eval mode.

    Raises WorkbookError when the file is missing, is no PyTorch file, would run code when opened, or holds anything
    but the tensors of this one network.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WorkbookError(f"{path} cannot be read ({error.strerror}); give the released weights' path") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles; the error says what to do
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or damaged pickle makes the reader raise
        raise WorkbookError(f"{path} cannot be opened as tensors alone; give the released RDI-ResNet38 file "
                            "(.pth.tar), whole and unchanged") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise WorkbookError(f"{path} holds no state_dict of tensors; give the released RDI-ResNet38 file (.pth.tar)")
    network = zoo.build("resnet38", exits="rdi")
    _fill(network, {str(name).removeprefix("module."): tensor for name, tensor in state.items()}, path)
    metadata = {"config": network.config, "source": "released by the authors of RDI-Nets (Hu et al. 2020)",
                "recipe": {"name": "released", "defence": "max_average"}, "dataset": "cifar10",
                "arch": content.get("arch"), "iterations": content.get("iter")}
    return Released(network.to(device).eval(), metadata, hashlib.sha256(data).hexdigest())


def _fits(tensor: Tensor, place: Tensor) -> bool:
    same = (tensor.shape, tensor.dtype, tensor.layout) == (place.shape, place.dtype, place.layout)
    return same and bool(tensor.isfinite().all())


def _fill(network: Network, state: dict[str, Tensor], path: Path | str):
    """Copy every released tensor to its place; WorkbookError unless names, shapes and values are those expected."""
    ours, table, renamed = network.state_dict(), names(), {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        target = f"{table.get(module)}.{leaf}"
        if target not in ours or not _fits(tensor, ours[target]):
            raise WorkbookError(f"{path} does not hold the released RDI-ResNet38 ('{name}' does not fit); other "
                                "networks of these authors cannot be imported")
        renamed[target] = tensor
    if missing := len(ours) - len(renamed):
        raise WorkbookError(f"{path} does not hold the released RDI-ResNet38 ({missing} of its {len(ours)} tensors are "
                            "missing); give the released file, whole and unchanged")
    network.load_state_dict(renamed)
