"""Where things are: folders named by variable, flag or parameter, files of a command, kernels that anybody started."""

import ast
import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import lib
from lib import ROOT, WorkbookError, __main__, checkpoints, commands, data
from lib.data import official
from lib.workbook import parameters, released_record

PLACES = "import lib; print(lib.DATASETS, lib.RUNS)"


# ---- folders

@pytest.mark.parametrize("named, expected", [("~/x", "{home}/x"), ("rel/x", "{root}/rel/x"), ("/abs/x", "/abs/x"),
                                             ("", None)])
def test_a_variable_means_one_place_from_every_folder(named, expected, tmp_path):
    variables = {**os.environ, "WORKBOOK_DATA": named, "WORKBOOK_RUNS": named, "HOME": str(tmp_path),
                 "PYTHONPATH": str(ROOT)}
    said = {subprocess.run([sys.executable, "-S", "-c", PLACES], cwd=cwd, env=variables, capture_output=True,
                           text=True, check=True).stdout.strip() for cwd in (ROOT, ROOT / "notebooks", tmp_path)}
    where = expected and expected.format(home=tmp_path, root=ROOT)
    assert said == {f"{where} {where}" if where else f"{ROOT}/data/datasets {ROOT}/data/runs"}


def test_runs_are_kept_where_the_flag_says(monkeypatch, tmp_path):
    monkeypatch.setattr(lib, "RUNS", lib.RUNS)
    monkeypatch.setenv("WORKBOOK_RUNS", "elsewhere")
    monkeypatch.setattr(__main__.environment, "ensure", lambda need, argv: None)
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["run", "--list", "--runs", "mine"]) == 0
    assert lib.RUNS == tmp_path / "mine" and os.environ["WORKBOOK_RUNS"] == str(tmp_path / "mine")


def settings(**values):
    namespace = dict(preset="quick", weights="shipped", seed=0, run_dir="") | values
    return parameters.resolve(namespace | {"__annotations__": {k: type(v) for k, v in namespace.items()}}, "00_x")


def test_a_run_folder_in_a_notebook_is_no_folder_below_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings(run_dir="~/r").run_dir == tmp_path / "r"
    assert settings(run_dir="data/runs/x").run_dir == ROOT / "data" / "runs" / "x"


def test_a_checkout_that_may_not_be_written_is_said_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(__main__.environment, "ensure", lambda need, argv: None)
    monkeypatch.setattr(lib.os, "access", lambda path, mode: False)
    assert __main__.main(["run", "--only", "00"]) == 2
    assert "may not be written; name another place with --runs or WORKBOOK_RUNS" in capsys.readouterr().err
    assert __main__.main(["bench", "--record"]) == 2
    assert "history.jsonl may not be written; leave --record out" in capsys.readouterr().err
    with pytest.raises(WorkbookError, match="name another folder with run_dir or WORKBOOK_RUNS"):
        settings()
    with pytest.raises(WorkbookError, match="name another place with WORKBOOK_DATA"), official.one_at_a_time("mnist"):
        pass


def test_files_and_image_folders_are_found_from_a_notebook_as_from_the_checkout(monkeypatch, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "weights.pth.tar").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for here in (ROOT, ROOT / "notebooks"):
        monkeypatch.chdir(here)
        assert data.find_folder("~/pictures") == tmp_path / "pictures"
        assert data.find_folder("tests/bench") == ROOT / "tests" / "bench"
        assert released_record.find("~/weights.pth.tar") == tmp_path / "weights.pth.tar"
        assert released_record.find("README.md").samefile(ROOT / "README.md")


# ---- files that a command writes

def test_no_output_replaces_a_device_or_what_the_command_reads(tmp_path):
    network, images = tmp_path / "network.safetensors", tmp_path / "images"
    images.mkdir()
    network.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(network)
    os.mkfifo(tmp_path / "pipe")
    for outputs, sentence in [
            ([network], "safetensors is used by this command"), ([images / "new"], "lies in .*images, which is"),
            ([images / ".." / network.name], "is used by"), ([tmp_path / "a", tmp_path / "a"], "is used by"),
            (["/dev/null"], "is a device"), ([tmp_path / "pipe"], "a pipe"), ([tmp_path / "link"], "or a link"),
            ([images], "is a folder"), ([network / "x"], "may not be written"),
            *(([place / "x"], "lies in .*data/.*, which is used") for place in (
                lib.ATLASES, lib.CHECKPOINTS, lib.IMAGES))]:  # `choose` reads the record that came with a network
        with pytest.raises(WorkbookError, match=sentence):
            commands.check_output(*outputs, inputs=[network, images])
    commands.check_output(None, tmp_path / "a", tmp_path / "new" / "b", inputs=[network, images, "digits"])
    assert network.read_bytes() == b"weights" and not (tmp_path / "a").exists()


@pytest.mark.parametrize("place", ["/dev/zero", "{tmp}/pipe"])
def test_what_never_ends_is_not_read(place, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WorkbookError, match="is a device or a pipe"):
        checkpoints.load(place.format(tmp=tmp_path))


@pytest.mark.parametrize("error, sentence", [
    (MemoryError(), "not enough memory"), (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough"),
    (RuntimeError("something else"), None)])
def test_too_little_memory_is_one_sentence_and_no_other_fault_is(error, sentence, monkeypatch, capsys):
    monkeypatch.setattr(__main__.environment, "ensure", lambda need, argv: None)
    monkeypatch.setattr(commands, "cost", lambda args: (_ for _ in ()).throw(error))
    if sentence is None:
        with pytest.raises(RuntimeError, match="something else"):
            __main__.main(["cost", "smallcnn"])
    else:
        assert __main__.main(["cost", "smallcnn"]) == 2 and sentence in capsys.readouterr().err


# ---- kernels

@pytest.mark.parametrize("variables, live", [({}, True), ({"WORKBOOK_LIVE": "0"}, False), ({"CI": "true"}, False)])
def test_a_kernel_in_the_notebooks_folder_finds_lib_and_is_live(variables, live, monkeypatch, tmp_path):
    """As VS Code, a hand-started Jupyter or plain nbconvert start it: nothing is set, whatever is installed."""
    for name in ("PYTHONPATH", "WORKBOOK_LIVE", "CI", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "import lib\nfrom lib.progress import is_live\nprint(lib.ROOT, is_live())"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    assert notebook.cells[0].outputs[0].text == f"{ROOT} {live}\n"


def test_text_files_name_their_encoding():
    """A notebook's kernel runs in any locale; JSON is read as bytes."""
    for file in (ROOT / "lib").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call)]
        for call in calls:
            given = [ast.unparse(one) for one in (*call.args, *(word.value for word in call.keywords))]
            text = getattr(call.func, "attr", "") in ("read_text", "write_text") or (
                getattr(call.func, "id", "") == "open" and "b" not in (*given, "")[1])
            assert not text or "'utf-8'" in given, f"{file.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
