"""Files that last: safetensors with a JSON description, written whole or not at all, checked whole when read.

Nothing here is ever unpickled. A file carries its kind ("network", "state", ...), a format version, and two hashes: one
over the names, types, shapes and bytes of the tensors, one over the description. A flipped bit anywhere is found.
"""

import dataclasses
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

import lib
from lib import WorkbookError, data
from lib.models import released, zoo
from lib.models.network import Network

FORMAT = 1
LEFTOVER_SECONDS = 3600  # half-written files of killed writers are cleared away after this time


class OtherKind(WorkbookError):
    """A sound file, of another kind than the one asked for."""


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
    return write(path, "network", tensors, {"config": network.config, "classes": network.class_names, **metadata})


def load(path: Path | str, device: torch.device | str = "cpu") -> Loaded:
    """The network of a file that `save` wrote, rebuilt from its own description, in eval mode and float32; or the one
    network of other authors that is known here (see `released`). The content decides which, whatever the file's name.

    Raises WorkbookError when the file is missing, foreign, damaged, of a newer format, holds weights that are no
    numbers, or does not fit its description; nothing larger than the file's tensors is built to find that out.
    """
    if not is_safetensors(path):
        network, metadata, digest = released.load(Path(path).read_bytes(), path)
        network.class_names = _class_names(metadata, network.classes)
        return Loaded(network.to(device), metadata, digest)
    tensors, metadata, digest = read(path, "network")
    with described(path, "network"):
        with at_most(len(tensors), sum(t.numel() for t in tensors.values())):
            network = zoo.build(**metadata["config"], seed=None)
        network.load_state_dict(tensors)
        if missing := network.state_dict().keys() - tensors.keys():  # torch forgives a missing batch counter
            raise ValueError(f"{min(missing)} is missing")
        network.class_names = _class_names(metadata, network.classes)
    if broken := [name for name, t in tensors.items() if not t.isfinite().all()]:
        raise WorkbookError(f"{path} holds weights that are not finite numbers ({broken[0]}): its training diverged; "
                            "train it again with a lower learning rate")
    return Loaded(network.to(device).eval(), metadata, digest)


@contextmanager
def described(path: Path | str, kind: str) -> Iterator[None]:
    """Raises WorkbookError where what a sound file says of itself is not what this version makes of it."""
    try:
        yield
    except zoo.Missing as error:
        raise WorkbookError(f"{path}: {error}") from error
    except Exception as error:  # whatever a foreign description makes its reader raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise WorkbookError(f"{path} does not hold the {kind} that it describes ({reason}); it was written by another "
                            "version of this project: make it again or use that version") from error


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Refuse, by ValueError, to build a network of more parameters meanwhile than a file of so many tensors and numbers
    can hold; twice as many are let through, since factors replace weights that were built before."""
    left, thread = [2 * tensors, 2 * numbers], threading.get_ident()

    def count(module, name, parameter):
        if parameter is not None and threading.get_ident() == thread:
            left[:] = left[0] - 1, left[1] - parameter.numel()
            if min(left) < 0:
                raise ValueError("it asks for more weights than the file holds")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _class_names(metadata: dict, count: int) -> tuple[str, ...] | None:
    """What the outputs are called: as the file says, or as its dataset's classes are known to be."""
    names = metadata.get("classes") or data.CLASSES.get(metadata.get("dataset"))
    if names is not None and not (len(names) == count and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{len(names)} names for {count} classes")
    return names and tuple(names)


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
        with suppress(OSError):
            partial.unlink()
        raise WorkbookError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full, so {path} was not written; free some space and run again (nothing was overwritten)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} may not be written; choose another folder or change its permissions"
    return f"{path} could not be written ({error.strerror}); choose another folder"


def read(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict, str]:
    """(tensors on the CPU, values, digest) of a file that `write` wrote; raises WorkbookError unless all is sound."""
    damaged = WorkbookError(f"{path} is damaged (its checksum does not match); fetch it again or train it again")
    if not is_safetensors(path):
        raise OtherKind(f"{path} is not a safetensors file; give a file that this project wrote")
    try:
        with safe_open(path, "pt") as file:
            note, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:  # of whatever kind the reader's checks are
        raise WorkbookError(f"{path} is cut short or damaged; fetch it again or train it again") from None
    if "workbook" not in note:
        raise WorkbookError(f"{path} is a safetensors file of another program (it says nothing about its network); use "
                            "a file that this project wrote")
    text = note["workbook"]
    if hashlib.sha256(text.encode()).hexdigest() != note.get("seal"):
        raise damaged
    values = json.loads(text)
    if values["format"] > FORMAT:
        raise WorkbookError(f"{path} has format {values['format']}, newer than this version reads ({FORMAT}); update "
                            "the project")
    if values["kind"] != kind:
        raise OtherKind(f"{path} holds a {values['kind']}, not a {kind}; give the path of a {kind}")
    if digest(tensors) != values["sha256"]:
        raise damaged
    if log := os.environ.get("WORKBOOK_READ"):  # where a process that is watched names what its outputs rest on
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{note['seal'][:16]} {Path(path).resolve()}\n")
    return tensors, values, values["sha256"]


def seal(path: Path | str) -> str:
    """16 hex digits over all that a file of `write` holds, without reading its tensors; "" where it is not there."""
    if not Path(path).is_file():
        return ""
    with safe_open(path, "pt") as file:
        return file.metadata()["seal"][:16]


def is_safetensors(path: Path | str) -> bool:
    """Whether the file's content, not its name, looks so: a header's size, then its brace."""
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise WorkbookError(f"{path} is a device or a pipe, which may never end; give the path of a file")
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except FileNotFoundError:
        raise WorkbookError(f"{path} does not exist; check the name, or train it first") from None
    except OSError as error:
        raise WorkbookError(f"{path} cannot be read ({error.strerror}); give the path of a readable file") from error
