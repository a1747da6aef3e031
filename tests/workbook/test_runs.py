"""The headless driver: what it refuses, what it leaves, and that one broken notebook stops no other."""

import json
import re
from argparse import Namespace
from pathlib import Path

import nbformat
import pandas
import pytest
from plotly.offline import get_plotlyjs

from lib import ATLASES, WorkbookError, checkpoints
from lib.evaluation import rows
from lib.evaluation.record import Record
from lib.models import zoo
from lib.training import recipes
from lib.workbook import headless, notebooks, panel, runs, session
from lib.workbook.explorer import Explorer
from lib.workbook.headless import KILLED
from lib.workbook.session import Session
from lib.workbook.subject import Subject

COMMON = ('preset: str = "auto"  # size\nweights: str = "auto"  # origin\nseed: int = 0  # seed\n'
          'run_dir: str = ""  # place\n')
MEASURE = '''
from lib.evaluation import rows
from lib.models import zoo
from lib.training import recipes
from lib.workbook import parameters
settings = parameters.resolve(globals(), "{stem}")
rows.append(settings.table, [dict(experiment="{stem}", metric="value", value=settings.{own})])
print("value", settings.{own}, settings.preset, settings.weights)
'''
FIGURE = """
import plotly.graph_objects as go
from lib.workbook import live
live.show(go.Figure(go.Scatter(y=[1, 2, 4]), dict(title="<b>A</b> figure </script>")))
"""


def notebook(folder: Path, stem: str, parameters: str, *cells: str, tagged: bool = True) -> Path:
    nb = nbformat.v4.new_notebook(metadata=notebooks.METADATA)
    nb.cells = [nbformat.v4.new_markdown_cell(f"# {stem[:2]} What of {stem[3:]}?"),
                nbformat.v4.new_code_cell(COMMON + parameters, metadata={"tags": ["parameters"] if tagged else []}),
                *(nbformat.v4.new_code_cell(cell, metadata={"tags": ["headline"]}) for cell in cells)]
    nbformat.write(nb, folder / f"{stem}.ipynb")
    return folder / f"{stem}.ipynb"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three notebooks, the second of which fails, in a workbook of their own."""
    folder, steps = tmp_path / "notebooks", "steps: int = 3  # steps"
    folder.mkdir()
    notebook(folder, "01_first", "epsilon: float = 0.3  # budget", MEASURE.format(stem="01_first", own="epsilon"),
             FIGURE)
    notebook(folder, "02_broken", steps, "print('so far')", "raise ValueError('<no> such thing')")
    notebook(folder, "03_last", steps, MEASURE.format(stem="03_last", own="steps"))
    monkeypatch.setattr(runs, "NOTEBOOKS", folder)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path


def test_a_run_says_what_it_costs_before_it_starts(monkeypatch, capsys):
    """By hand: SmallCNN goes 13,100 steps of 256 images; a step is 3 passes clean, 3 attacked, 2 x 40 of the attack."""
    monkeypatch.setattr("lib.training.timing.pass_seconds", lambda recipe, device: 1e-3)
    monkeypatch.setattr(runs, "execute", lambda *asked: pytest.fail("it began"))
    once = arguments(preset="paper", only=("10",), dry_run=True)
    assert runs.run(once) == 0
    said = capsys.readouterr().out
    trainings, hours, record = map(float, said.splitlines()[1].replace(",", "").split()[1:4])
    small = 13_100 * 256 * (3 + 3 + 2 * 40)
    resnet, mobile = (steps * 128 * (3 + 3 + 2 * 10) for steps in (55_000, 76_000))
    assert trainings == 3 and hours == pytest.approx((small + resnet + mobile) * 1e-3 / 3600, abs=0.1)
    assert record == pytest.approx(((2 + 2 * 40) + 2 * (2 + 2 * 20)) * 10_000 * 1e-3 / 3600, abs=0.1)
    runs.run(arguments(preset="paper", only=("12", "15"), dry_run=True))
    both = capsys.readouterr().out.splitlines()
    assert [line.split()[-4] for line in both[1:4]] == ["5.0", "0.0", "5.0"]  # the networks of 12 are those of 15


def test_the_table_of_trainings_names_notebooks_and_recipes_that_there_are():
    needs = pandas.read_csv(runs.NEEDS)
    assert set(needs.notebook) <= {path.stem for path in notebooks.paths()}
    for line in needs.itertuples():
        for method in line.methods.split():
            assert recipes.compose(line.network, line.dataset, method, "paper").name


def arguments(**changes) -> Namespace:
    usual = dict(preset="quick", weights="train", only=None, list=False, dry_run=False, name="mine", seed=4,
                 parameters=[], dataset=None, jobs=1, allow_cpu=False, patience=10.0)
    return Namespace(**usual | changes)


@pytest.mark.parametrize("changes, message", [
    (dict(parameters=[["epsilom", "0.1"]]), "no chosen notebook has a parameter 'epsilom' .did you mean epsilon"),
    (dict(parameters=[["epsilon", "large"]]), "parameter epsilon is 'large'"),
    (dict(parameters=[["steps", "1.5"]]), "parameter steps is '1.5'"),
    (dict(parameters=[["seed", "1"]]), "seed is not set with -p; use --seed"),
    (dict(only=("03",), parameters=[["epsilon", "0.1"]]), "no chosen notebook has a parameter 'epsilon'"),
    (dict(dataset="mnist"), "no chosen notebook has a parameter 'dataset'"),
    (dict(dataset="mnist", parameters=[["dataset", "digits"]]), "dataset is given twice"),
    (dict(parameters=[["steps", "1"], ["steps", "2"]]), "steps is given twice"),
    (dict(name=""), "cannot name a run"),
    (dict(only=("04",)), "there is no notebook '04'"),
    (dict(only=("01_frist",)), "did you mean 01_first"),
    (dict(name="../elsewhere"), "cannot name a run"),
    (dict(name="x" * 300), "cannot name a run"),
])
def test_what_cannot_work_is_refused_before_anything_starts(place, changes, message):
    with pytest.raises(WorkbookError, match=message):
        runs.run(arguments(**changes))
    assert not (place / "runs").exists()


def test_a_notebook_without_the_tag_is_refused(place):
    notebook(place / "notebooks", "05_untagged", "", tagged=False)
    with pytest.raises(WorkbookError, match="05_untagged.ipynb has no cell tagged parameters"):
        runs.run(arguments())


def test_paper_size_is_refused_without_a_gpu(place, monkeypatch):
    monkeypatch.delenv("WORKBOOK_ALLOW_CPU", raising=False)
    monkeypatch.setattr(runs.checks, "pick_device", lambda: "cpu")
    with pytest.raises(WorkbookError, match="needs a CUDA device"):
        runs.run(arguments(preset="paper"))


def test_listing_says_what_each_notebook_asks(place, capsys):
    assert runs.run(arguments(list=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["01_first", "What of first?"], ["02_broken", "What of broken?"], ["03_last", "What of last?"]]
    assert not (place / "runs").exists()


def test_the_index_opens_with_the_page_of_each_explorer(place, ended):
    """And a run whose notebook lost its explorer's page makes it again."""
    folder, asked = place / "runs" / "mine", arguments(only=("01",))
    ended(0, 0)
    assert runs.run(asked) == 0
    index = (folder / "index.html").read_text()
    assert "<iframe" not in index
    lone = Explorer(Subject(Record.load(ATLASES / "rdi_smallcnn-digits-max_average-laptop.safetensors")),
                    folder / "01_first")
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panel, "display", lambda what: shown.append(getattr(what, "data", "")))
        panel.still(lone)
    assert '<p><a href="explorer.html">' in "".join(map(str, shown))
    assert (folder / "01_first" / "explorer.html").stat().st_size < 4 * 2**20
    [job] = runs.plan(runs.choose(("01",)), folder, "quick", "train", 4, {})
    assert not job.kept
    index = runs.index(folder, [job], 1.0).read_text()
    assert index.index("<iframe") < index.index("<table>") and 'src="01_first/explorer.html"' in index


@pytest.mark.slow
def test_a_broken_notebook_fails_the_run_and_stops_no_other(place, capsys):
    """Then the same name goes on: what is done is kept, and no number stands in the table twice."""
    asked = dict(parameters=[["epsilon", "8/255"], ["steps", "5"]])
    assert runs.run(arguments(**asked)) == 1
    said = capsys.readouterr()
    assert "2 of 3 notebooks done" in said.out and "02_broken: cell" in said.err and "<no> such thing" in said.err
    folder = place / "runs" / "mine"
    table = rows.read(folder / "metrics.csv")
    assert dict(zip(table.experiment, table.value, strict=True)) == {"01_first": pytest.approx(8 / 255), "03_last": 5}
    status = json.loads((folder / "02_broken" / "status.json").read_text())
    assert status["outcome"] == "failed" and "ValueError: <no> such thing" in status["message"]
    check_page((folder / "index.html").read_text(), folder)

    mended = nbformat.read(place / "notebooks" / "02_broken.ipynb", as_version=4)
    mended.cells[-1].source = MEASURE.format(stem="02_broken", own="steps")
    nbformat.write(mended, place / "notebooks" / "02_broken.ipynb")
    before = (folder / "01_first" / "01_first.ipynb").stat().st_mtime_ns
    assert runs.run(arguments(**asked)) == 0
    assert capsys.readouterr().out.count("kept") == 2
    assert (folder / "01_first" / "01_first.ipynb").stat().st_mtime_ns == before
    assert sorted(rows.read(folder / "metrics.csv").experiment) == ["01_first", "02_broken", "03_last"]


def check_page(page: str, folder: Path):
    """The index opens without network, escapes what cells said, and links what exists."""
    script = get_plotlyjs()  # it names addresses that it asks only for maps
    assert page.count(script) == 1
    page = page.replace(script, "")
    assert "https://" not in page and "http://" not in page and "<no> such" not in page and "&lt;no&gt; such" in page
    assert page.count('class="plotly-graph-div"') == 1 and (folder / "plotly.min.js").read_text() == script
    assert "value 0.03137254901960784 quick train" in page
    links = re.findall(r'href="([^"]+)"', page)
    assert "metrics.csv" in links and all((folder / link).exists() for link in links)
    executed = (folder / "01_first" / "01_first.html").read_text()
    assert 'src="../plotly.min.js"' in executed and 'class="plotly-graph-div"' in executed
    assert "https://" not in executed and "value 0.03137254901960784" in executed


class Ended:
    """In place of a notebook's process: one that ended with the next of `codes`."""

    codes, seen = [], []

    def __init__(self, module, notebook, output, parameters, *_, env, **options):
        self.process, self.code = self, self.codes.pop(0)
        self.seen.append((json.loads(parameters), env.get("OMP_NUM_THREADS")))
        Path(output).write_text(Path(notebook).read_text())

    def poll(self):
        return self.code

    def end(self):
        pass


@pytest.fixture
def ended(monkeypatch):
    monkeypatch.setattr(headless, "Child", Ended)
    monkeypatch.setattr(Ended, "seen", [])
    return lambda *codes: monkeypatch.setattr(Ended, "codes", list(codes))


@pytest.mark.parametrize("code", [KILLED, -9])
def test_a_killed_kernel_is_tried_once_more(place, ended, code):
    ended(code, 0)
    assert runs.run(arguments(only=("01",))) == 0 and not Ended.codes
    ended(code, code, 0)
    assert runs.run(arguments(only=("03",))) == 1 and Ended.codes == [0]


def test_a_report_begins_when_the_others_have_ended_and_is_made_anew_each_time(place, ended, monkeypatch):
    going, begun = [], []

    class Slow(Ended):
        def __init__(self, module, notebook, *rest, **options):
            super().__init__(module, notebook, *rest, **options)
            self.name, self.looks = Path(notebook).stem, iter([None] * 3)
            begun.append((self.name, list(going)))
            going.append(self.name)

        def poll(self):
            return next(self.looks, self.code)

        def idle(self):
            return 0

        def end(self):
            if self.name in going:
                going.remove(self.name)

    notebook(place / "notebooks", "90_report", "")
    monkeypatch.setattr(headless, "Child", Slow)
    monkeypatch.setattr(headless, "LOOK", 0.001)
    ended(0, 0, 0, 0)
    for _ in range(2):
        assert runs.run(arguments(only=("01", "03", "90"), jobs=2)) == 0
    assert begun == [("01_first", []), ("03_last", ["01_first"]), ("90_report", []), ("90_report", [])]


def test_a_failed_cell_is_tried_only_once(place, ended):
    ended(1, 0)
    assert runs.run(arguments(only=("01",))) == 1 and Ended.codes == [0]


def test_changed_parameters_make_a_finished_notebook_run_again(place, ended):
    ended(0, 0)
    for value in ("0.1", "0.1", "0.2"):
        assert runs.run(arguments(only=("01",), parameters=[["epsilon", value]], jobs=2)) == 0
    assert [told["epsilon"] for told, _ in Ended.seen] == [0.1, 0.2] and all(int(n) >= 1 for _, n in Ended.seen)


def test_changed_code_makes_a_finished_notebook_run_again(place, ended, monkeypatch):
    ended(0, 0)
    for code in ("before", "before", "after"):
        monkeypatch.setattr(runs, "code", lambda code=code: code)
        assert runs.run(arguments(only=("01",))) == 0
    assert len(Ended.seen) == 2


def test_what_the_code_is_changes_with_every_module_and_record(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(runs, "ATLASES", tmp_path / "atlases")
    seen = set()
    for name in ("lib/a.py", "lib/b/c.py", "checkpoints/x.safetensors", "atlases/y.safetensors", "lib/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name + str(len(seen)))
        seen.add(runs.code.__wrapped__())
    assert len(seen) == 5


@pytest.mark.parametrize("broken", ["01_first/status.json", "01_first/01_first.ipynb", "01_first/01_first.html",
                                    "metrics.csv", "run.json", "index.html", "plotly.min.js"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_broken_files_of_a_finished_run_are_made_again(place, ended, broken, content):
    ended(0, 0)
    assert runs.run(arguments(only=("01",))) == 0
    folder = place / "runs" / "mine"
    lasting = ("01_first.ipynb", "01_first.html", "metrics.csv", "run.json", "plotly.min.js")
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.name in lasting}
    (folder / broken).write_bytes(content)
    assert runs.run(arguments(only=("01",))) == 0
    assert len(Ended.seen) == 1 + broken.startswith("01_first")
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*") if path.name in lasting}
    assert b"What of first" in (folder / "index.html").read_bytes()


def test_a_broken_notebook_file_is_refused(place):
    (place / "notebooks" / "02_broken.ipynb").write_bytes(b'{"cells": [')
    with pytest.raises(WorkbookError, match="02_broken.ipynb is not a whole notebook"):
        runs.run(arguments())


@pytest.mark.parametrize("changes, told", [(dict(seed=5), "seed 4"), (dict(weights="shipped"), "weights train"),
                                           (dict(preset="laptop"), "preset quick")])
def test_a_run_of_other_settings_does_not_overwrite_one_of_that_name(place, ended, changes, told):
    ended(0)
    assert runs.run(arguments(only=("01",))) == 0
    with pytest.raises(WorkbookError, match=f"name of a run with .*{told}"):
        runs.run(arguments(only=("01",), **changes))


def test_each_dataset_has_a_run_of_its_own(place, ended):
    notebook(place / "notebooks", "04_chosen", 'dataset: str = "digits"  # images')
    ended(0, 0, 0)
    for dataset in (None, "mnist", "/some/where"):
        assert runs.run(arguments(only=("04",), name=None, dataset=dataset)) == 0
    assert {path.name for path in (place / "runs").iterdir()} == {
        "quick-train-4", "quick-train-4-mnist", "quick-train-4-_some_where"}


def test_another_number_of_threads_is_said(place, ended, capsys, monkeypatch):
    monkeypatch.setattr(runs, "cores", lambda: 8)
    ended(0)
    assert runs.run(arguments(only=("01",), jobs=4)) == 0 and "threads a notebook" not in capsys.readouterr().out
    assert runs.run(arguments(only=("01",), jobs=2)) == 0
    assert "began with 2 threads a notebook and goes on with 4" in capsys.readouterr().out


def test_a_page_of_an_executed_notebook_shows_pictures_and_no_code(place):
    path = notebook(place, "07_shown", "", "secret = 1")
    nb = nbformat.read(path, as_version=4)
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "[figure]"}
    nb.cells[-1].outputs = [nbformat.v4.new_output("display_data", data)]
    nbformat.write(nb, path)
    page = notebooks.page(path).read_text()
    assert "data:image/png;base64,iVBORw0KGgo=" in page and "secret" not in page
    assert "data:image/png;base64,iVBORw0KGgo=" in notebooks.headline(path)


def test_what_a_run_kept_and_lost_to_a_broken_disk_is_made_again(tmp_path, monkeypatch, capsys):
    wb = Session(preset="quick", weights="train", seed=0, run_dir=tmp_path / "x", device="cpu")
    trained = []

    def train(recipe, folder, **options):
        if not (Path(folder) / "last.safetensors").exists():
            trained.append(recipe)
            checkpoints.save(Path(folder) / "last.safetensors", zoo.build(**recipe.network))

    monkeypatch.setattr(session.loop, "load_or_fit", train)
    first = wb.load("rdi_smallcnn", "main", "digits")
    file, = wb.networks.glob("*/last.safetensors")
    whole = file.read_bytes()
    for broken in (b"", whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(broken)
        assert wb.load("rdi_smallcnn", "main", "digits").digest == first.digest
        assert capsys.readouterr().out == f"{file} is damaged: it is put aside and made again\n"
    wb.load("rdi_smallcnn", "main", "digits")
    assert len(trained) == 4 and capsys.readouterr().out == ""
