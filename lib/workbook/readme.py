"""The tables of the README that must not be typed: the notebooks, and the results of the shipped records.

    python -m lib.workbook.readme        rewrites them between their markers; a test holds that they are current
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas

from lib import ATLASES, CHECKPOINTS, ROOT, checkpoints
from lib.evaluation.reading import Reading, read
from lib.evaluation.record import Record
from lib.models import zoo
from lib.training import recipes, timing
from lib.workbook import notebooks as pages
from lib.workbook import once_for_all, runs, style
from lib.workbook.once_for_all import Member, Trained
from lib.workbook.published import suited
from lib.workbook.session import Session
from lib.workbook.tables import DASH, spread

README = ROOT / "README.md"
TIMED = {"cuda_float": "resnet34-cifar10-float-paper", "cuda_max_average": "rdi_resnet38-cifar10-max_average-paper",
         "cuda_fleet_plain": "resnet38-cifar10-main-laptop"}  # rows of tests/bench/cuda.py, and of what
MARK = "<!-- {}: written by python -m lib.workbook.readme -->"


def _markdown(head: str, lines: Iterable[Sequence]) -> str:
    """A table; head: its columns, "network | clean"."""
    return "\n".join((f"| {head} |", "|---" * len(head.split(" | ")) + "|", *(
        f"| {' | '.join(map(str, line))} |" for line in lines)))


def notebooks() -> str:
    """One line per notebook: its file and the question it asks."""
    return _markdown("notebook | what it asks", (
        (f"[{path.stem}](notebooks/{path.name})", pages.question(path)) for path in pages.paths()))


def results() -> str:
    """One line per shipped record, at the paper's thresholds where they suit it, else at calibrated ones."""
    found = {name: read(record, thresholds=suited(record)) for name, record in shipped(with_knob=False).items()}
    lists = _attacks(found.values())
    return _markdown("network | dataset, test images | thresholds | clean | worst form (paper's statistic) "
                     "| robust: strong suite | PGD suite | cost: paper's MFlops | true M MACs | true saving",
                     (_line(name, reading, lists) for name, reading in found.items())) + _footnotes(lists)


def shipped(with_knob: bool) -> dict[str, Record]:
    """The records by name that came along, but of digits: of once-for-all networks and what they are compared with, or
    of the others."""
    found = {path.stem: Record.load(path) for path in sorted(ATLASES.glob("*.safetensors"))}
    return {name: record for name, record in found.items() if record.meta["dataset"] != "digits"
            and with_knob == once_for_all.at_points(record.meta["defence"])}


def _line(name: str, found: Reading, lists: dict[str, str]) -> tuple:
    worst = f"{_percent(found, 'paper_worst')} ({style.spoken(found.paper_worst)})" if found.paper_worst else DASH
    return (name.replace("-laptop", ""), _images(found.record), suited(found.record), _percent(found, "clean"), worst,
            _robust(found, lists), _percent(found, "union"), f"{found.cost('paper_mflops'):.2f}",
            f"{found.cost('cumulative_macs') / 1e6:.2f}", f"{100 * found.measured('saving').value:.1f} %")


def _images(record: Record) -> str:
    return f"{style.dataset(record.meta)}: {record.images:,}"


def _attacks(readings: Iterable[Reading]) -> dict[str, str]:
    """{the attacks that some of them met, in words: their letter}."""
    told = dict.fromkeys(_spoken(found) for found in readings if found.robust == "strong")
    return {words: chr(ord("a") + n) for n, words in enumerate(told)}


def _spoken(found: Reading) -> str:
    """"strong-2: gate_aware, margin × 8, …": a name and how often, where it is numbered."""
    counts = Counter(attack.split()[0] for attack in found.survived)
    return f"{found.record.strong.meta['suite']}: " + ", ".join(
        name if count == 1 else f"{name} × {count}" for name, count in counts.items())


def _robust(found: Reading, lists: dict[str, str]) -> str:
    if found.robust == "union":
        return DASH
    return f"{_percent(found, 'strong')} of {found.right('strong').shape[-1]} {lists[_spoken(found)]}"


def _footnotes(lists: dict[str, str]) -> str:
    return "".join(f"\n\n{letter} = {words}" for words, letter in lists.items())


def _percent(found: Reading, quantity: str) -> str:
    return found.bound(quantity) + spread(found.measured(quantity), 1, unit=100)


def with_knob() -> str:
    """One line per shipped network with a knob λ (or several trainings of one) at both of its ends."""
    found = [(name, _member(name, record)) for name, record in shipped(with_knob=True).items()
             if not any(f"-{family}" in name for family in once_for_all.FAMILIES)] + _repeats()
    ends = {name: [member.read(at) for at in once_for_all.ends(member.network)] for name, member in found}
    lists = _attacks(end for both in ends.values() for end in both)
    return _markdown("network | dataset, test images | " + "".join(
        f"λ = {n}: clean | robust: strong suite | PGD suite | " for n in (0, 1)) + "parameters", (
        (name.replace("-laptop", ""), _images(member.record), *(shown for end in ends[name] for shown in (
            _percent(end, "clean"), _robust(end, lists), _percent(end, "union"))),
         f"{member.network.weight_count():,}") for name, member in found)) + _footnotes(lists)


def _member(name: str, record: Record) -> Member:
    files = (place / f"{name}.safetensors" for place in (CHECKPOINTS, ATLASES))
    trained = Trained.load(next(filter(Path.is_file, files)))
    return Member(trained.defence, trained, record)


def _repeats() -> list[tuple[str, Member]]:
    """Of FLOAT and its control, trained several times."""
    asked = Session(seed=0, weights="shipped", network="resnet20")
    found = [m for dataset, which in (("cifar10_jpeg", "pgd"), ("fashion_mnist", "suite"))
             for m in asked.replace(dataset=dataset).repeats(("float", "dual_bn"), which).values()]
    return [(f"{m.trained.name.rsplit('-', 2)[0]}, {len(m.runs)} trainings", m) for m in found]


def coverage() -> str:
    """One line per table and figure of both papers: where it is shown, on what, and whether that is the paper's size:
    as the stored page itself says, or counted, where nothing has to be trained."""
    lines = []
    for row in csv.DictReader((Path(__file__).with_name("coverage.csv")).open(encoding="utf-8")):
        here, asked = (DASH,) * 3, (f"{row['network']}: {row['dataset']}", row["images"])
        if row["notebook"]:
            networks, images, preset = seen_on(pages.FOLDER / f"{row['notebook']}.ipynb")
            here = (networks, images, "yes") if preset == "paper" else (networks, images, f"no: {preset}")
            here = (row["network"], "none", "yes, counted") if row["counted"] else here
        link = f"[{row['notebook'][:2]}](notebooks/{row['notebook']}.ipynb)" if row["notebook"] else "not here"
        lines.append((f"{row['paper']}, {row['item']}", row["what"], link, *asked, *here))
    return _markdown("paper | shows | notebook | the paper's networks | images | networks on the page | images "
                     "| the paper's size?", lines)


def differences() -> str:
    """One line per choice in which the workbook differs from what a paper says, or had to decide what it does not."""
    head, *lines = csv.reader(Path(__file__).with_name("differences.csv").open(encoding="utf-8"))
    return _markdown(" | ".join(head), ([cell or DASH for cell in line] for line in lines))


def hours() -> str:
    """One line per notebook that trains: what it takes at paper size, as far as its backbones were timed on a GPU."""
    history = (ROOT / "tests/bench/history.jsonl").read_text("utf-8").splitlines()
    steps, paces = {row["name"]: row["ms"] for line in history if line for row in json.loads(line)["cuda"]}, {}
    for row, name in TIMED.items():
        recipe = replace(recipes.find(name), attack_mode="eval")  # as it was timed
        work = recipe.batch_size * timing.work(recipe, zoo.build(**recipe.network))
        paces[name.split("-")[0]] = steps[row] / 1000 / work
    table = runs.bill(runs.plan(runs.choose(), Path(), "paper", "train", 0, {}), lambda recipe: paces.get(
        recipe.name.split("-")[0], 0.0)).query("trainings > 0")
    more = {"in all", *pandas.read_csv(runs.NEEDS).query("network not in @paces").notebook}
    return _markdown("notebook | trainings | hours | to record: hours | GB", (
        (name, f"{count:.0f}", *(f"{'≥ ' * (name in more)}{value:.1f}" if value else DASH for value in spent),
         f"{stored:.1f}") for name, (count, *spent, stored) in table.iterrows()))


def seen_on(page: Path) -> tuple[str, str, str]:
    """(networks and their dataset, images, preset) that a stored page says its numbers are of."""
    cells = pages.cells(page)
    said = "\n".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for cell in cells
                     for o in cell.get("outputs", ()))
    counts = dict.fromkeys(" of ".join(one) for one in re.findall(r"([\d,]+) (?:test )?images of ([^·\n]+?) ·", said))
    shown = " ".join((said, *json.loads(page.read_bytes())["metadata"].get("shows", ())))
    source = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = ([name for name in recipes.NETWORKS if re.search(form.format(name), text)] for form, text in (
        (r"(?<!\w){}-\w+-\w+-\w+", shown), (r"network {}\b", said), (r'"{}"', source)))
    networks = ", ".join(map(style.label, next(filter(None, found))))
    return networks, ", ".join(counts), re.search(r"preset (\w+)", said)[1]


def current(text: str) -> str:
    """`text` of the README with its tables made anew."""
    for name, make in (("notebooks", notebooks), ("results", results), ("once for all", with_knob),
                       ("coverage", coverage), ("differences", differences), ("hours", hours)):
        begin, end = MARK.format(name), f"<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{make().replace('<', '&lt;')}\n{end}{after}"  # no name of a record is markup
    return text


if __name__ == "__main__":
    checkpoints.replace(README, current(README.read_text("utf-8")).encode())
