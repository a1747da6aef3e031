"""Files that last: safetensors with a JSON description, written whole or not at all, checked whole when read.

Nothing here is ever unpickled. A file carries its kind ("network", "state", ...), a format version, and two hashes: one
over the names, types, shapes and bytes of the tensors, one over the description. A flipped bit anywhere is found.
"""

import dataclasses
import errno
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

import lib
from lib import WorkbookError
from lib.models import zoo
from lib.models.network import Network

FORMAT = 1
LEFTOVER_SECONDS = 3600  # half-written files of killed writers are cleared away after this time
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
         "BOOL": torch.bool}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A network read from a file, in eval mode. digest: sha256 of its tensors as stored."""

    network: Network
    metadata: dict
    digest: str


def save(path: Path | str, network: Network, *, dtype: torch.dtype | None = None, **metadata) -> str:
    """Write `network` and what is known about it (recipe, dataset, metrics, ...: JSON values); returns the digest.

    dtype: torch.float16 halves the file; buffers (running statistics) stay as they are, and `load` gives float32 back.
    Raises WorkbookError when the disk is full, the folder may not be written, or a weight does not fit `dtype`.
    """
    parameters = {name for name, _ in network.named_parameters()}
    tensors = network.state_dict()
    if dtype is not None:
        tensors = {name: t.to(dtype) if name in parameters else t for name, t in tensors.items()}
        if unfit := [n for n in parameters if not tensors[n].isfinite().all()]:
            raise WorkbookError(f"weights of {unfit[0]} are too large for {dtype}; save {path} in float32")
    return write(path, "network", tensors, {"config": network.config, **metadata})


def load(path: Path | str, device: torch.device | str = "cpu") -> Loaded:
    """The network of a file that `save` wrote, rebuilt from its own description, in eval mode and float32.

    Raises WorkbookError when the file is missing, foreign, damaged, of a newer format, or does not fit its description.
    """
    tensors, metadata, digest = read(path, "network")
    try:
        network = zoo.build(**metadata["config"])
        network.load_state_dict(tensors)
        if missing := network.state_dict().keys() - tensors.keys():  # torch forgives a missing batch counter
            raise ValueError(f"{min(missing)} is missing")
    except (WorkbookError, RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WorkbookError(f"{path} does not hold the network that it describes ({reason}); it was written by another "
                            "version of this project: train it again or use that version") from error
    return Loaded(network.to(device).eval(), metadata, digest)


def save_state(path: Path | str, tensors: dict[str, Tensor], values: dict) -> str:
    """Write the state of an unfinished computation (tensors and JSON values); guarantees and errors as `save`."""
    return write(path, "state", tensors, values)


def load_state(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict]:
    """(tensors, values) of a file that `save_state` wrote. Raises WorkbookError as `load`."""
    tensors, values, _ = read(path, "state")
    return {name: t.to(device) for name, t in tensors.items()}, values


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of `tensors`, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{t.dtype}|{tuple(t.shape)}|".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def write(path: Path | str, kind: str, tensors: dict[str, Tensor], values: dict) -> str:
    """Write tensors and JSON values as one file of the given kind, atomically; returns the digest of the tensors."""
    path = Path(path)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    sha256 = digest(tensors)
    text = json.dumps({"format": FORMAT, "kind": kind, "version": lib.__version__, **values, "sha256": sha256})
    seal = hashlib.sha256(text.encode()).hexdigest()
    replace(path, to_bytes(tensors, {"workbook": text, "seal": seal}))
    return sha256


def replace(path: Path | str, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or whoever comes after a crash, finds the old file or the new one whole.

    Raises WorkbookError when there is no room or no permission; what stood at `path` is untouched then.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{path.name}.*.partial"):
            if time.time() - old.stat().st_mtime > LEFTOVER_SECONDS:
                old.unlink(missing_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WorkbookError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full, so {path} was not written; free some space and run again (nothing was overwritten)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} may not be written; choose another folder or change its permissions"
    return f"{path} could not be written ({error.strerror}); choose another folder"


def read(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict, str]:
    """(tensors on the CPU, values, digest) of a file that `write` wrote; raises WorkbookError unless all is sound."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise WorkbookError(f"{path} does not exist; check the name, or train it first") from None
    except OSError as error:
        raise WorkbookError(f"{path} cannot be read ({error.strerror}); give the path of a readable file") from error
    header, start = _header(path, data)
    note = header.pop("__metadata__", None)
    if not isinstance(note, dict) or "workbook" not in note:
        raise WorkbookError(f"{path} is a safetensors file of another program (it says nothing about its network); use "
                            "a file that this project wrote")
    damaged = WorkbookError(f"{path} is damaged (its checksum does not match); fetch it again or train it again")
    text = note["workbook"]
    if hashlib.sha256(text.encode()).hexdigest() != note.get("seal"):
        raise damaged
    values = json.loads(text)
    if values["format"] > FORMAT:
        raise WorkbookError(f"{path} has format {values['format']}, newer than this version reads ({FORMAT}); update "
                            "the project")
    if values["kind"] != kind:
        raise WorkbookError(f"{path} holds a {values['kind']}, not a {kind}; give the path of a {kind}")
    try:
        tensors = {name: _tensor(entry, memoryview(data)[start:]) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise damaged from None
    if digest(tensors) != values["sha256"]:
        raise damaged
    return tensors, values, values["sha256"]


def _header(path: Path | str, data: bytes) -> tuple[dict, int]:
    """(the JSON header of a safetensors file, where its tensors begin)."""
    size = int.from_bytes(data[:8], "little")
    start = 8 + size
    if len(data) < 8 or data[8:9] != b"{":  # a size may begin with the same bytes as a pickle: the brace decides
        if data[:2] in (b"PK", b"\x80\x02"):
            raise WorkbookError(f"{path} is a pickled file, which could run anything when opened and is never read "
                                "here; give a .safetensors file that this project wrote")
        raise WorkbookError(f"{path} is not a safetensors file; give a file that this project wrote")
    cut = WorkbookError(f"{path} is cut short or damaged; fetch it again or train it again")
    try:
        header = json.loads(data[8:start])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise cut from None
    if len(data) != start + end:
        raise cut
    return header, start


def _tensor(entry: dict, data: memoryview) -> Tensor:
    first, last = entry["data_offsets"]
    kind, shape = TYPES[entry["dtype"]], entry["shape"]
    flat = torch.frombuffer(bytearray(data[first:last]), dtype=kind) if last > first else torch.empty(0, dtype=kind)
    return flat.reshape(shape)
