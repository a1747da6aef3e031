"""Import of RDI-ResNet38 (Hu et al. 2020) as its authors' code writes it: their released weights, and others' own.

Such files are pickles. They are opened with `weights_only=True`, which rebuilds tensors and runs nothing.
"""

import argparse
import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import WorkbookError
from lib.models import zoo
from lib.models.network import Network

NAME = "rdi_resnet38_released"  # of the file, and of the records made of it
RELEASED = "f1c76b0f65ce23f5ecea647e3d8fa9688dc9bb3507cdc3b86942c94fe9e823b8"  # sha256 of the file
WRAPPERS = r"^((module|_orig_mod|model|net|network)\.)+"  # what wrapping a network puts before its names
BLOCK = {"conv1": "main.0", "bn1": "main.1.norms.0", "conv2": "main.3", "bn2": "main.4.norms.0",
         "downsample.0": "shortcut.0", "downsample.1": "shortcut.1.norms.0"}
HEADS = ({"1": "1", "2": "2.norms.0", "5": "5", "6": "6.norms.0", "9": "8"},
         {**{f"1.{theirs}": f"1.{ours}" for theirs, ours in BLOCK.items()}, "4": "3"},
         {"2": "1"})


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


def load(data: bytes, path: Path | str) -> tuple[Network, dict, str]:
    """(RDI-ResNet38 in eval mode, what is known about it, sha256 of the file) from the content of the file at `path`:
    a state_dict, alone or inside what a trainer wrote, under the names that any wrapper gives, in single or half
    precision, with or without batch counters.

    Only the file that the authors released is called theirs. Raises WorkbookError for what is no PyTorch file, would
    run code when opened, or holds anything but the tensors of this one network, or several of it.
    """
    content, digest = _opened(data, path), hashlib.sha256(data).hexdigest()
    network = zoo.build("resnet38", exits="rdi", seed=None)
    states = list(_states(content, {f"{module}.weight" for module in names()}))
    if len(states) != 1:
        raise WorkbookError(f"{path} holds {len(states) or 'no'} state_dicts of RDI-ResNet38; give the released "
                            "RDI-ResNet38 file (.pth.tar), or one like it with one such network")
    _fill(network, states[0], path)
    theirs = digest == RELEASED
    metadata = {"config": network.config, "dataset": "cifar10" if theirs else None,
                "source": "released by the authors of RDI-Nets (Hu et al. 2020)" if theirs else f"imported from {path}",
                "recipe": {"name": "released", "defence": "max_average"} if theirs else {"name": "imported"},
                "arch": content.get("arch"), "iterations": content.get("iter")}
    return network.eval(), metadata, digest


def _opened(data: bytes, path: Path | str):
    """What a pickle holds, with nothing run but the making of tensors, numpy scalars and argparse's bare namespaces."""
    scalar = np._core.multiarray.scalar
    harmless = [np.dtype, argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"),
                *(type(np.dtype(kind)) for kind in "?bBhHiIlLefd")]
    try:
        file = io.BytesIO(data)
        if zipfile.is_zipfile(file) and any(part.compress_type for part in zipfile.ZipFile(file).infolist()):
            raise ValueError("torch compresses nothing: a small file could take all memory")
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(harmless):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or damaged pickle makes the reader raise
        raise WorkbookError(f"{path} is not a safetensors file and cannot be opened as tensors alone; give a file that "
                            "this project wrote, or the released RDI-ResNet38 file, whole and unchanged") from error


def _states(content, known: set[str], depth: int = 3) -> Iterator[dict]:
    """The dictionaries in `content`, itself or inside, that hold some of the weights `known`, by their bare names."""
    if not isinstance(content, dict):
        return
    state = {re.sub(WRAPPERS, "", str(name)): value for name, value in content.items()}
    if known & state.keys():
        yield state
    elif depth:
        for value in content.values():
            yield from _states(value, known, depth - 1)


def _fits(tensor, place: Tensor) -> bool:
    kinds = {place.dtype, torch.float16, torch.bfloat16} if place.is_floating_point() else {place.dtype}
    return (isinstance(tensor, Tensor) and (tensor.shape, tensor.layout) == (place.shape, place.layout)
            and tensor.dtype in kinds and bool(tensor.isfinite().all()))


def _fill(network: Network, state: dict, path: Path | str):
    """Copy every tensor to its place; WorkbookError unless names, shapes and values are those expected."""
    ours, table = network.state_dict(), names()
    filled = {name: torch.zeros_like(t) for name, t in ours.items() if name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        target = f"{table.get(module)}.{leaf}"
        if target not in ours and not isinstance(tensor, Tensor):
            continue  # a note among the tensors
        if target not in ours or not _fits(tensor, ours[target]):
            raise WorkbookError(f"{path} does not hold the released RDI-ResNet38 ('{name}' does not fit); other "
                                "networks of these authors cannot be imported")
        filled[target] = tensor
    if missing := len(ours) - len(filled):
        raise WorkbookError(f"{path} does not hold the released RDI-ResNet38 ({missing} of its {len(ours)} tensors are "
                            "missing); give the released file, whole and unchanged")
    network.load_state_dict(filled)
