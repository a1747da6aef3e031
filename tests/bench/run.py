"""How fast the engine is against the plain forms of tests/bench/reference.py: python3 -m lib bench.

Each row is a ratio, plain time / engine time (above 1: the engine is faster), of works run in turns in this process;
process CPU time, children's included, so that other programs disturb it less. Only `float_step` is a price: what
FLOAT's noise and dual batch norm cost. One thread, RDI-ResNet38, batch 32, PGD-10 unless a row says else (`work`).
Where there is a GPU, whole training steps on it follow, each beside its counted floor (`cuda`).
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

import lib
from lib import WorkbookError, commands

sys.path.insert(0, str(lib.ROOT))
from tests.bench import cuda  # noqa: E402
from tests.bench.work import GROUPS, ROWS, Work  # noqa: E402

HISTORY = Path(__file__).with_name("history.jsonl")
ROUNDS = 7


def spent(function: Callable, *arguments) -> float:
    """CPU seconds of this process and its children that one call takes."""
    def now():
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in used)

    begun = now()
    function(*arguments)
    return now() - begun


def measure(work: Work, rounds: int) -> list[dict]:
    """A row per engine: quartiles of the ratio over `rounds` rounds after one untimed turn, all in turns."""
    ratios: dict[str, list[float]] = {name: [] for name in work.engines}
    for r in range(rounds * work.turns + 1):
        plain, taken = 0.0, dict.fromkeys(work.engines, 1e-9)
        for part in work.parts:
            plain += spent(work.plain, *part)
            for name, engine in work.engines.items():
                taken[name] += spent(engine.run, *part)
        for name, found in ratios.items():
            found += [plain / taken[name]] if r else []
    rows = []
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
        rows.append({"name": name, "ratio": round(middle, 3), "q25": round(low, 3), "q75": round(high, 3),
                     "note": work.engines[name].note})
    return rows


def import_seconds() -> float:
    """CPU seconds that `import lib` takes in a fresh interpreter, beyond the interpreter's own start."""
    code = "import time; t = time.process_time(); import lib; print(time.process_time() - t)"
    return float(subprocess.run([sys.executable, "-c", code], cwd=lib.ROOT, capture_output=True, text=True).stdout)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def main(args) -> int:
    known = (*ROWS, *cuda.ROWS)
    if unknown := [name for name in args.only or () if name not in known]:
        raise WorkbookError(f"there is no measurement {', '.join(unknown)}; choose from {', '.join(known)}")
    wanted, device, rounds = args.only or known, commands.find_device(args.device), args.rounds or ROUNDS
    ratios, steps = ([name for name in wanted if name in rows] for rows in (ROWS, cuda.ROWS))
    if device.type == "cuda" and args.device:  # the GPU alone was asked for
        ratios = []
    elif device.type != "cuda":
        if args.only and steps:
            raise WorkbookError(f"{', '.join(steps)}: only a GPU can measure that; choose from {', '.join(ROWS)}")
        steps = []
    told = {"rows": on_cpu(ratios, rounds) if ratios else [], "cuda": on_cuda(steps, device) if steps else []}
    told |= {"rounds": rounds, "import_seconds": round(import_seconds(), 4), "device": processor(), "threads": 1,
             "torch": torch.__version__, "version": lib.__version__}
    if told["cuda"]:
        told["gpu"] = torch.cuda.get_device_name(device)
    print(f"import lib takes {1000 * told['import_seconds']:.0f} ms; {rounds} rounds on one thread of {told['device']}")
    commands.write_json(args.json, told)
    if args.record:
        with open(HISTORY, "a", encoding="utf-8") as file:
            file.write(json.dumps({"date": date.today().isoformat(), **told}) + "\n")
        print(f"added to {HISTORY}")
    return 0


def on_cpu(wanted: Sequence[str], rounds: int) -> list[dict]:
    """Measure and print the rows of ratios, on one thread."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    print(f"{'measurement':16}{'ratio':>8}{'q25':>8}{'q75':>8}  what")
    try:
        for names, make in GROUPS.items():
            if chosen := [name for name in names if name in wanted]:
                for row in measure(make(chosen), rounds):
                    rows.append(row)
                    print(f"{row['name']:16}{row['ratio']:8.2f}{row['q25']:8.2f}{row['q75']:8.2f}  {row['note']}",
                          flush=True)
    finally:
        torch.set_num_threads(threads)
    return rows


def on_cuda(wanted: Sequence[str], device: torch.device) -> list[dict]:
    """Measure and print the training steps on a GPU."""
    print(f"{torch.cuda.get_device_name(device)}; floors are those of an H200")
    print(cuda.HEAD)
    rows = []
    for name in wanted:
        rows.append(cuda.measure(name, device))
        print(cuda.line(rows[-1]), flush=True)
    return rows
