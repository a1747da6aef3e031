"""The two tables of the README that must not be typed: the notebooks, and the results of the shipped records.

    python -m lib.workbook.readme        rewrites them between their markers; a test holds that they are current
"""

from lib import ATLASES, ROOT, checkpoints
from lib.evaluation import accuracy
from lib.evaluation.atlas import Atlas
from lib.workbook import report, style
from lib.workbook.tables import DASH

README = ROOT / "README.md"
MARK = "<!-- {}: written by python -m lib.workbook.readme -->"


def notebooks() -> str:
    """One line per notebook: its file and the question it asks."""
    lines = ["| notebook | what it asks |", "|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        lines.append(f"| [{path.stem}](notebooks/{path.name}) | {report.title(path)} |")
    return "\n".join(lines)


def results() -> str:
    """One line per shipped record, at the paper's thresholds where there are any, else at calibrated ones."""
    lines = ["| network | dataset, test images | thresholds | clean | worst form (paper's statistic) "
             "| per-image worst case | cost: paper's MFlops | true M MACs | true saving |",
             "|---|---|---|---|---|---|---|---|---|"]
    for path in sorted(ATLASES.glob("*.safetensors")):
        atlas = Atlas.load(path)
        source = "paper" if atlas.meta["paper_thresholds"] else "calibrated"
        lines.append(_line(path.stem, atlas, source))
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


def current(text: str) -> str:
    """`text` of the README with both tables made anew."""
    for name, make in (("notebooks", notebooks), ("results", results)):
        begin, end = MARK.format(name), f"<!-- end of {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    checkpoints.replace(README, current(README.read_text()).encode())
