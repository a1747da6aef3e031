"""What this machine can do: device, driver, packages, disk, datasets, browser, and a verdict for every verb.

Standard library only: torch is asked in a process of its own, in whichever environment has it. Changes nothing.
"""

import json
import os
import platform
import shutil
import sys

from lib import DATASETS, ROOT, RUNS, WorkbookError, environment, packages, writable

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """
import json, torch
from lib import data
print(json.dumps([{"cuda": torch.version.cuda, "available": torch.cuda.is_available(),
                   "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]},
                  {name: str(place) for name, place in data.available().items()}]))
"""


def browser() -> str | None:
    """The path of an installed Chromium or Chrome, for pictures of figures and for the browser test."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def device_sentence(torch: dict | None, driver: str | None) -> str:
    """Which device training will use and, where a GPU stays unused, why and what to do. torch: what PROBE said."""
    if torch is None:
        return "no torch yet" + (f"; NVIDIA driver {driver} is there" if driver else "; no NVIDIA driver: CPU")
    if torch["available"]:
        return f"{', '.join(torch['gpus'])} (CUDA {torch['cuda']}, driver {driver or 'unknown'})"
    if driver is None:
        return "CPU (no NVIDIA driver)"
    if torch["cuda"] is None:
        return f"CPU: torch is a build without CUDA though driver {driver} is there; install a CUDA build"
    oldest = environment.OLDEST_DRIVER.get(packages.release(torch["cuda"])[0])
    if oldest and packages.release(driver)[0] < oldest:
        return (f"CPU: driver {driver} is too old for torch's CUDA {torch['cuda']}; update it to {oldest} or newer, or "
                f"run `pip install --force-reinstall --index-url {environment.CUDA_12} torch torchvision` there")
    return f"CPU: torch's CUDA {torch['cuda']} sees no GPU though driver {driver} is there; check CUDA_VISIBLE_DEVICES"


def place_of(need: str | None) -> tuple[bool, str]:
    """Whether a verb with this need-set can run here, and where or why not."""
    if need is None or not packages.missing(need):
        return True, "ready in this Python"
    if environment.ready():
        return True, "ready in .venv"
    if sentence := environment.obstacle():
        return False, sentence
    return True, "sets up .venv first (about 6 GB, a few minutes, a network)"


def doctor(args) -> int:
    """Print the findings; the exit code is 1 if a verb cannot work here."""
    places = {need: place_of(need) for need in set(packages.NEEDS.values())}
    if places["core"][1].endswith("in this Python"):
        python, path = sys.executable, None
    else:
        version = environment.venv_version()
        python, path = (environment.PYTHON, [str(environment.site_packages(version))]) if version else (None, [])
    answer = environment.output_of([python, "-c", PROBE]) if python else None
    torch, datasets = json.loads(answer) if answer else (None, None)
    installed = {one.name: packages.distribution(one.name, path) for one in packages.requirements()}
    try:
        runs, refusal = f"are kept in {writable(RUNS, 'name another place in WORKBOOK_RUNS')}", ""
    except WorkbookError as error:
        runs = refusal = str(error)
    notes = {"run": "" if torch and torch["available"] else "; preset paper needs a CUDA device, the others do not",
             "test": "" if browser() else "; the browser test is skipped"}
    found = "unknown before the packages are there" if datasets is None else ", ".join(["digits", *datasets])
    lines = {
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device_sentence(torch, environment.driver()),
        "packages": ", ".join(f"{name} {package.version if package else '-'}" for name, package in installed.items()),
        "disk": f"{shutil.disk_usage(ROOT).free / 1e9:.1f} GB free",
        "datasets": f"{found}; downloads go to {DATASETS}",
        "runs": runs,
        "browser": browser() or "none; pictures of figures and the browser test need Chromium",
    }
    for verb, need in packages.NEEDS.items():
        works, how = (False, refusal) if refusal and verb in ("run", "train", "fleet") else places[need]
        lines[f"lib {verb}"] = f"{how}{notes.get(verb, '')}" if works else f"cannot work: {how}"
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {line}" for name, line in lines.items()))
    return int(any(line.startswith("cannot work") for line in lines.values()))
