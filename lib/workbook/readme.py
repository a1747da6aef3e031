"""The tables of the README that must not be typed: the notebooks, and the results of the shipped records.

    python -m lib.workbook.readme        rewrites them between their markers; a test holds that they are current
"""

from pathlib import Path

from lib import ATLASES, CHECKPOINTS, ROOT, checkpoints
from lib.evaluation import accuracy, points
from lib.evaluation.atlas import Atlas
from lib.evaluation.grid import Grid
from lib.workbook import float_seeds, lambda_study, report, style
from lib.workbook.lambda_study import Member
from lib.workbook.networks import Trained
from lib.workbook.published import suited
from lib.workbook.tables import DASH, spread

README = ROOT / "README.md"
MARK = "<!-- {}: written by python -m lib.workbook.readme -->"


def notebooks() -> str:
    """One line per notebook: its file and the question it asks."""
    lines = ["| notebook | what it asks |", "|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        lines.append(f"| [{path.stem}](notebooks/{path.name}) | {report.title(path)} |")
    return "\n".join(lines)


def results() -> str:
    """One line per shipped record, at the paper's thresholds where they suit it, else at calibrated ones."""
    lines = ["| network | dataset, test images | thresholds | clean | worst form (paper's statistic) "
             "| per-image worst case | cost: paper's MFlops | true M MACs | true saving |",
             "|---|---|---|---|---|---|---|---|---|"]
    for path in sorted(set(ATLASES.glob("*.safetensors")) - set(ATLASES.glob("*-grid.safetensors"))):
        atlas = Atlas.load(path)
        lines.append(_line(path.stem, atlas, suited(atlas)))
    return "\n".join(lines)


def _line(name: str, atlas: Atlas, source: str) -> str:
    thresholds = atlas.thresholds(source) if atlas.num_exits > 1 else ()
    found = accuracy.summary(atlas, thresholds)
    clean, worst = found["forms"]["clean"], found["forms"].get(found["paper_worst"])
    shown = [_percent(clean), DASH if worst is None else f"{_percent(worst)} ({style.spoken(found['paper_worst'])})",
             f"{100 * found['union_accuracy']:.1f} ({100 * found['union_low']:.1f}–{100 * found['union_high']:.1f})"]
    return (f"| {name.rsplit('-', 1)[0] if name.count('-') > 2 else name} | {atlas.meta['data_variant']}, "
            f"{found['images']:,} | {source} | {' | '.join(shown)} | {clean['paper_mflops']:.2f} "
            f"| {clean['cumulative_macs'] / 1e6:.2f} | {100 * clean['saving']:.1f} % |")


def _percent(form: dict) -> str:
    return f"{100 * form['accuracy']:.1f} ({100 * form['low']:.1f}–{100 * form['high']:.1f})"


def once_for_all() -> str:
    """One line per shipped network with a knob λ (or several trainings of one) at both of its ends."""
    lines = ["| network | dataset, test images | λ = 0: clean | λ = 0: robust | λ = 1: clean | λ = 1: robust "
             "| parameters |", "|---|---|---|---|---|---|---|"]
    found = [_member(path) for path in sorted(ATLASES.glob("*-grid.safetensors"))
             if not any(f"-{family}" in path.stem for family in lambda_study.FAMILIES)]
    found += [_pairs(method) for method in float_seeds.METHODS]
    for name, member in found:
        width = max(member.network.widths) if "width" in member.network.knobs else None
        ends = [points.interval(member.read(n, 0.0, width).share(what)) for n in (0.0, 1.0)
                for what in ("clean", "union")]
        shown = " | ".join(spread(e, 1, unit=100) for e in ends)
        count = sum(p.numel() for p in member.network.parameters())
        lines.append(f"| {name} | {member.grid.meta['dataset']}, {len(member.grid.labels):,} | {shown} | {count:,} |")
    return "\n".join(lines)


def _member(path: Path) -> tuple[str, Member]:
    name = path.stem.removesuffix("-grid")
    loaded = checkpoints.load(CHECKPOINTS / f"{name}.safetensors")
    return name.rsplit("-", 1)[0], Member(name.split("-")[2], Trained(name, loaded.network, loaded.digest),
                                          Grid.load(path))


def _pairs(method: str) -> tuple[str, Member]:
    runs = float_seeds.shipped(method, "suite")
    trainings = f"{len(runs)} training{'s' if len(runs) > 1 else ''}"
    return f"{runs[0].trained.name.rsplit('-', 2)[0]}, {trainings}", float_seeds.Repeated.of(runs)


def current(text: str) -> str:
    """`text` of the README with its tables made anew."""
    for name, make in (("notebooks", notebooks), ("results", results), ("once for all", once_for_all)):
        begin, end = MARK.format(name), f"<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    checkpoints.replace(README, current(README.read_text("utf-8")).encode())
