"""Which packages the workbook needs, and whether they are there. Standard library only.

requirements.txt is the one list; a comment that starts with "core" marks what training and evaluating need.
"""

import contextlib
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from lib import ROOT

REQUIREMENTS = ROOT / "requirements.txt"
LOCK = ROOT / "requirements.lock"  # one version of each, with its hashes; made by the command in its first lines
NEEDS = {"run": "all", "test": "all", "lab": "all", "doctor": None, "page": "all"} | dict.fromkeys(
    ("train", "fleet", "evaluate", "choose", "export", "cost", "bench"), "core")  # of each verb; None: Python alone
LINE = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(;.*)?$")
BOUND = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*([^,\s]+)")


@dataclass(frozen=True)
class Requirement:
    """`name` with its version `bounds`; `core` packages are those that training and evaluating need."""

    name: str
    bounds: str
    core: bool = False

    @classmethod
    def parse(cls, line: str) -> "Requirement | None":
        """From a line of requirements.txt or a package's own metadata; None where it holds only on some condition."""
        text, _, comment = line.partition("#")
        match = LINE.match(text.strip())
        if not match or match[3]:
            return None
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        return cls(name, match[2].strip(), comment.strip().startswith("core"))


def requirements() -> list[Requirement]:
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    return [need for line in lines if (need := Requirement.parse(line))]


def release(version: str) -> tuple[int, ...]:
    """(2, 15, 0) of 2.15.0+cu132. Vendors' builds such as 2.12.0a0+nv25.3 count as the release they lead to."""
    return tuple(int(part) for part in re.match(r"v?(\d+(?:\.\d+)*)", version)[1].split("."))


def fits(version: str, bounds: str) -> bool:
    """Whether the release of `version` is within `bounds`, such as >=2.11,<3 (PEP 440, release numbers alone)."""
    for operator, text in BOUND.findall(bounds):
        wanted, have = release(text), release(version)
        length = max(len(wanted), len(have))
        a, b = (part + (0,) * (length - len(part)) for part in (have, wanted))
        if text.endswith(".*"):
            a, b = a[:len(wanted)], b[:len(wanted)]
        same_series = a[:len(wanted) - 1] == b[:len(wanted) - 1]
        if not {"==": a == b, "!=": a != b, ">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b,
                "~=": a >= b and same_series}[operator]:
            return False
    return True


def distribution(name: str, path: list[str] | None = None) -> metadata.Distribution | None:
    """The installed package `name` on `path` (default: where this Python looks), None where it is not or is broken."""
    for candidate in metadata.Distribution.discover(name=name, path=sys.path if path is None else path):
        with contextlib.suppress(KeyError, OSError):
            if candidate.metadata["Version"]:
                return candidate
    return None


def missing(need: str = "all", path: list[str] | None = None) -> list[str]:
    """What keeps the listed packages ("all" or "core") from being satisfied on `path`; empty if nothing does.

    A listed package has to fit what the others ask of it too: torchvision works with the torch it was built for only.
    """
    wanted = [one for one in requirements() if need == "all" or one.core]
    installed = {one.name: distribution(one.name, path) for one in wanted}
    problems = []
    for one in wanted:
        package = installed[one.name]
        if package is None:
            problems.append(f"{one.name} is missing")
            continue
        if not fits(package.version, one.bounds):
            problems.append(f"{one.name} {package.version} is not {one.bounds}")
        for dependency in filter(None, map(Requirement.parse, package.requires or ())):
            other = installed.get(dependency.name)
            if other and not fits(other.version, dependency.bounds):
                problems.append(f"{one.name} {package.version} asks for {dependency.name} {dependency.bounds}, "
                                f"not {other.version}")
    return problems
