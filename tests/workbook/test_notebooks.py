"""Every notebook is fit to be committed, the cleaner makes it so, and two run headlessly and train for real."""

import ast
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from lib import ROOT, WorkbookError, checkpoints
from lib.workbook import notebooks, parameters
from lib.workbook.session import Session
from tests.helpers.notebook_lint import problems

ALL = notebooks.paths()
GOOD = ('preset: str = "auto"  # size\nweights: str = "auto"  # origin\nseed: int = 0  # seed\n'
        'run_dir: str = ""  # place')


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_notebook_is_fit_to_be_committed(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_head_says_what_was_found_in_numbers_of_its_own_outputs(path):
    """A number of the finding with a decimal point stands in a table or line of the page, perhaps with more zeros."""
    cells = notebooks.cells(path)
    outputs = json.dumps([cell.get("outputs", []) for cell in cells], ensure_ascii=False)
    found = re.findall(r"\*\*Found\*\* \(.*?(?=\n\n)", "".join(cells[0]["source"]), re.DOTALL)
    assert len(found) == 1 or "This page makes no claim of\nits own" in "".join(cells[0]["source"])
    said = re.findall(r"\d+\.\d+", "".join(found))
    assert [number for number in said if not re.search(rf"(?<![\d.]){re.escape(number)}0*(?!\d)", outputs)] == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_a_notebook_calls_is_there(path):
    """Every name of the library in its cells, and every method of its session."""
    code = ("".join(cell["source"]) for cell in notebooks.cells(path) if cell["cell_type"] == "code")
    tree, known = ast.parse("\n".join(code)), {"wb": Session}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "lib":
            for alias in node.names:
                with contextlib.suppress(ImportError):
                    importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
    calls = [node.func for node in ast.walk(tree)
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    assert [ast.unparse(call) for call in calls if isinstance(call.value, ast.Name)
            and call.value.id in known.keys() - (bound - {"wb"}) and not hasattr(known[call.value.id], call.attr)] == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_where_no_slider_lives_a_page_says_how_to_get_them(path):
    code, text = ("\n".join("".join(cell["source"]) for cell in notebooks.cells(path) if cell["cell_type"] == kind)
                  for kind in ("code", "markdown"))
    came = [name for name in json.loads(path.read_bytes())["metadata"].get("shows", ())
            if name.startswith("atlases/")]
    if "panel.show(" in code and came:
        (named,) = re.findall(r"`python3 -m lib page data/(\S+) page\.html`", text)
        assert named in came


def test_there_are_notebooks_and_their_numbers_differ():
    numbers = [path.stem[:2] for path in ALL]
    assert numbers and numbers[0] == "00" and len(set(numbers)) == len(numbers)


def test_every_notebook_was_timed_and_ends_within_three_minutes():
    timed = json.loads(notebooks.OPENING.read_bytes())  # and says so in its head, see `problems`
    assert timed.keys() == {path.stem for path in ALL}
    assert all(found["cpu_seconds"] <= 180 for found in timed.values())


def made(folder: Path, stem: str = "01_x") -> Path:
    """A notebook without a fault."""
    nb = nbformat.v4.new_notebook(metadata=notebooks.METADATA)
    nb.cells = [nbformat.v4.new_markdown_cell(f"# {stem[:2]} What?"),
                nbformat.v4.new_code_cell(GOOD, metadata={"tags": ["parameters"]}, execution_count=1),
                nbformat.v4.new_code_cell(f'x = "{stem}"\nx', execution_count=2, outputs=[
                    nbformat.v4.new_output("execute_result", {"text/plain": f"'{stem}'"}, execution_count=2)]),
                nbformat.v4.new_markdown_cell("", metadata={"tags": ["navigation"]})]
    nbformat.write(nb, folder / f"{stem}.ipynb")
    return folder / f"{stem}.ipynb"


def test_the_lint_finds_nothing_in_a_faultless_notebook(tmp_path):
    assert problems(made(tmp_path)) == []


def spoil_size(nb): nb["cells"][0]["source"] += "x" * 400_001
def spoil_heading(nb): nb["cells"][0]["source"] = "# 07 What?"
def spoil_opening(nb): nb["cells"][0]["source"] += "\n\n*Opens in about 5 s on two idle cores, trains nothing.*"
def spoil_kernel(nb): nb["metadata"]["kernelspec"]["name"] = "conda-env-me"
def spoil_widget_state(nb): nb["metadata"]["widgets"] = {}
def spoil_papermill(nb): nb["cells"][1]["metadata"]["papermill"] = {}
def spoil_tag(nb): nb["cells"][1]["metadata"] = {}
def spoil_comment(nb): nb["cells"][1]["source"] = GOOD.replace("  # seed", "")
def spoil_equals(nb): nb["cells"][1]["source"] = GOOD.replace("# seed", "# seed, 0 = none")
def spoil_missing(nb): nb["cells"][1]["source"] = GOOD.replace("seed: int", "sead: int")
def spoil_name(nb): nb["cells"][2]["source"] = 'x = "02_y"'
def spoil_count(nb): nb["cells"][2]["execution_count"] = 7
def spoil_unrun(nb): nb["cells"][2]["execution_count"] = None
def spoil_length(nb): nb["cells"][2]["source"] += "\npass" * 25
def spoil_links(nb): nb["cells"][3]["source"] = "[gone](09_gone.ipynb) →"
def spoil_path(nb): nb["cells"][2]["outputs"][0]["data"]["text/plain"] = str(ROOT / "data")


def spoil_checked(nb):
    nb["cells"][2]["metadata"] = {"tags": ["nbval-check-output"]}
    nb["cells"][2]["outputs"] = []


def spoil_error(nb):
    nb["cells"][2]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]


def spoil_widget(nb):
    nb["cells"][2]["outputs"][0]["data"]["application/vnd.jupyter.widget-view+json"] = {"model_id": "1"}


def spoil_picture(nb):
    nb["cells"][2]["outputs"][0]["data"]["application/vnd.plotly.v1+json"] = {"data": []}


def spoil_svg(nb):
    nb["cells"][2]["outputs"][0]["data"]["image/svg+xml"] = "<svg/>"


def spoil_language(nb): del nb["metadata"]["language_info"]["version"]


@pytest.mark.parametrize("spoil, told", [
    (spoil_svg, "stored SVG"), (spoil_picture, "without its picture"),
    (spoil_opening, "how long it takes"), (spoil_language, "language_info"),
    (spoil_size, "bytes"), (spoil_heading, "does not begin"), (spoil_kernel, "kernelspec"),
    (spoil_widget_state, "metadata"), (spoil_papermill, "metadata papermill"), (spoil_tag, "0 cells tagged parameters"),
    (spoil_comment, "without type, literal and comment"), (spoil_equals, "one = only"),
    (spoil_missing, "without seed"), (spoil_name, "no session is opened"), (spoil_count, "count 7 instead of 2"),
    (spoil_unrun, "count None"), (spoil_length, "27 lines"), (spoil_links, "out of date"), (spoil_path, "absolute"),
    (spoil_checked, "without a stored output"), (spoil_error, "stored error"), (spoil_widget, "stored widget"),
])
def test_the_lint_finds_each_fault(tmp_path, spoil, told):
    path = made(tmp_path)
    nb = json.loads(path.read_text())
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
    spoil(nb)
    path.write_text(json.dumps(nb))
    found = problems(path)
    assert len(found) >= 1 and any(told in problem for problem in found), found


def test_a_page_of_other_records_than_came_along_is_not_fit(tmp_path, monkeypatch):
    """And a page says which it shows: what its kernel read, of the files that are shipped."""
    monkeypatch.setattr(notebooks, "DATA", tmp_path / "data")
    kept, own, log = tmp_path / "data/atlases/a.safetensors", tmp_path / "data/runs/b.safetensors", tmp_path / "read"
    monkeypatch.setenv("WORKBOOK_READ", str(log))
    for place in (kept, own, kept):
        checkpoints.write(place, "record", {"right": torch.zeros(3)}, {"seed": 0})
        checkpoints.read(place, "record")
    shows = notebooks.shown(log)
    assert shows == {"atlases/a.safetensors": checkpoints.seal(kept)} and notebooks.shown(tmp_path / "none") == {}
    path = made(tmp_path)
    nb = nbformat.read(path, as_version=4)
    nb.metadata["shows"] = shows
    nbformat.write(nb, path)
    notebooks.clean(path)
    assert problems(path) == []
    checkpoints.write(kept, "record", {"right": torch.zeros(3)}, {"seed": 1})  # the same numbers, of another seed
    assert "atlases/a.safetensors" in problems(path)[0]
    kept.unlink()
    assert "atlases/a.safetensors" in problems(path)[0]


def test_the_cleaner_mends_what_a_run_leaves_and_links_neighbours(tmp_path):
    path, other = made(tmp_path), made(tmp_path, "02_y")
    nb = nbformat.read(path, as_version=4)
    nb.metadata |= {"widgets": {"state": {}}, "papermill": {"exception": None}, "language_info": {"version": "3"}}
    nb.cells.insert(2, nbformat.v4.new_code_cell("# Parameters\nseed = 3", metadata={"tags": ["injected-parameters"]}))
    nb.cells[3].execution_count = 9
    nb.cells[3].metadata |= {"execution": {"iopub": "12:00"}, "papermill": {"duration": 3}}
    nb.cells[3].outputs += [nbformat.v4.new_output("stream", name="stderr", text="a warning"), nbformat.v4.new_output(
        "display_data", {"image/png": "iVBORw0KGgo=", "application/vnd.plotly.v1+json": {"data": []}}),
        nbformat.v4.new_output("display_data", {"text/html": "<style>", "text/plain": ""}),  # what is shown live
        nbformat.v4.new_output("display_data", {notebooks.WIDGET: {"model_id": "1"}, "text/plain": "[controls]"})]
    nbformat.write(nb, path)
    for one in (path, other):
        notebooks.clean(one)
        assert problems(one) == []
    cleaned = json.loads(path.read_text())
    assert "".join(cleaned["cells"][-1]["source"]) == "[02 What?](02_y.ipynb) →"
    assert "".join(json.loads(other.read_text())["cells"][-1]["source"]) == "← [01 What?](01_x.ipynb)"
    kinds = [list(output.get("data", {})) for output in cleaned["cells"][2]["outputs"]]
    assert kinds == [["text/plain"], ["image/png"]]
    before = path.read_bytes()
    notebooks.clean(path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_cleaner_refuses_a_notebook_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["99"])
    assert "there is no notebook '99'" in capsys.readouterr().err


def test_a_notebook_says_how_long_it_took_and_how_much_it_trained(tmp_path, monkeypatch):
    path, other = made(tmp_path), made(tmp_path, "02_y")
    monkeypatch.setattr(notebooks, "OPENING", tmp_path / "opening.json")
    for name in ("WORKBOOK_LIVE", "WORKBOOK_PNG", "WORKBOOK_PRESET", "WORKBOOK_WEIGHTS", "WORKBOOK_RUNS", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    notebooks.OPENING.write_text('{"02_y": {"cpu_seconds": 31, "trains": 3}}')
    nb = nbformat.read(path, as_version=4)
    nb.cells[2].source = '''x = "01_x"
import time
from lib import RUNS
(RUNS / "interactive/networks/small").mkdir(parents=True)
(RUNS / "interactive/networks/small/last.safetensors").touch()
while time.process_time() < 4:
    pass
print(RUNS)'''
    nbformat.write(nb, path)
    before = os.environ.copy()
    notebooks.run(path)
    assert os.environ == before
    found = json.loads(notebooks.OPENING.read_text())
    assert found["02_y"]["trains"] == 3 and found["01_x"]["trains"] == 1 and 4 <= found["01_x"]["cpu_seconds"] <= 9
    for one in (path, other):
        notebooks.clean(one)
        assert problems(one) == []
    assert nbformat.read(path, as_version=4).cells[2].outputs[0].text == "data/runs\n"
    head = nbformat.read(other, as_version=4).cells[0].source
    assert head == "# 02 What?\n\n*Opens in about 35 s on two idle cores, trains 3 small networks.*"


def test_a_notebook_refuses_the_library_of_another_checkout(tmp_path):
    (tmp_path / "lib" / "workbook").mkdir(parents=True)
    parameters.check_checkout(ROOT / "notebooks")
    with pytest.raises(WorkbookError, match=f"notebook lies in {tmp_path}"):
        parameters.check_checkout(tmp_path / "notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["00_start_here", "11_rdi_smallcnn"])
def test_a_notebook_runs_headlessly_and_trains_for_real(stem, tmp_path):
    settings = dict(preset="quick", weights="train", run_dir=str(tmp_path / stem), images=50)
    made = tmp_path / f"{stem}.ipynb"
    environment = os.environ | {"WORKBOOK_LIVE": "0", "WORKBOOK_PNG": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "lib.workbook.headless", str(notebooks.FOLDER / f"{stem}.ipynb"),
                           str(made), json.dumps(settings)], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [cell for cell in json.loads(made.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    shown = {mime for cell in cells for output in cell["outputs"] for mime in output.get("data", {})}
    assert "application/vnd.plotly.v1+json" in shown and "application/vnd.jupyter.widget-view+json" not in shown
    assert list((tmp_path / "networks").glob("rdi_smallcnn-digits-max_average-glance-*/last.safetensors"))
