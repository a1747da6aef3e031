"""Commands and flags: what a person may type, what is told to him, and that it is told before anything is set up."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from jupyterlab.commands import get_app_dir
from jupyterlab_server.settings_utils import get_settings

from lib import ROOT, WorkbookError, __main__, doctor, environment

HOME = os.path.expanduser("~")
BARE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def bare(*arguments, **more):
    """The front door in a Python that sees the standard library alone."""
    return subprocess.run([sys.executable, "-S", "-m", "lib", *arguments], cwd=ROOT, env=BARE, capture_output=True,
                          text=True, timeout=600, **more)


@pytest.fixture
def verbs(monkeypatch):
    """Verbs that record their arguments instead of working; setting anything up is a failure."""
    seen = []
    fake = types.ModuleType("lib.commands")
    for name in ("train", "evaluate", "cost", "bench"):
        setattr(fake, name, lambda args: seen.append(args))
    runs = types.ModuleType("lib.workbook.runs")
    runs.run = lambda args: seen.append(args)
    for name, module in (("commands", fake), ("evaluating", fake), ("workbook.runs", runs)):
        monkeypatch.setitem(sys.modules, f"lib.{name}", module)
    monkeypatch.setattr(environment, "ensure", lambda need, argv: None)
    monkeypatch.setattr(environment, "become", lambda python, module, argv: seen.append((module, argv)))
    return seen


# ---- before anything is installed

def test_help_needs_the_standard_library_alone():
    answer = bare("--help")
    assert answer.returncode == 0 and answer.stderr == ""
    assert answer.stdout.startswith("usage: python3 -m lib") and all(verb in answer.stdout for verb in __main__.NEEDS)


@pytest.mark.parametrize("verb", __main__.NEEDS)
def test_every_verb_explains_itself_before_set_up(verb, monkeypatch, capsys):
    monkeypatch.setattr(environment, "ensure", lambda need, argv: pytest.fail("set-up began"))
    with pytest.raises(SystemExit) as end:
        __main__.main([verb, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python3 -m lib {verb} [")


@pytest.mark.parametrize("arguments", [["-S", "-m", "lib", "--help"], ["-m", "lib", "train", "--list"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does after its last line
    answer = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert answer.stderr == "" and answer.returncode in (0, 141)  # 0: argparse itself overlooks it


BAD = [
    ([], "VERB"),
    (["runn"], "invalid choice: 'runn'"),
    (["run", "--present", "quick"], "--present"),
    (["run", "--preset", "huge"], "invalid choice: 'huge'"),
    (["run", "--pre", "quick"], "--pre"),
    (["run", "--weights", "old"], "invalid choice: 'old'"),
    (["run", "-p", "seed"], "expected 2 arguments"),
    (["run", "--only", "10,"], "list of different names"),
    (["run", "--jobs", "0"], "at least 1"),
    (["run", "--seed", "one"], "'one' is not a whole number of at least 0"),
    (["evaluate", "x", "--dataset", "d", "--seed", "-1"], "whole number of at least 0"),
    (["train", "x", "--seed", "9" * 30], "between 0 and"),
    (["run", "--patience", "0"], "at least 0.01"),
    (["train"], "train --list"),
    (["train", "x", "--minutes", "nine"], "'nine' is not a number"),
    (["train", "x", "--minutes", "-1"], "at least 0"),
    (["fleet", "--minutes", "0"], "at least 0.01"),
    (["evaluate", "x"], "--dataset"),
    (["evaluate", "--dataset", "digits"], "CHECKPOINT"),
    (["evaluate", "x", "--dataset", "d", "--epsilon", "8/0"], "write 0.03 or 8/255"),
    (["evaluate", "x", "--dataset", "d", "--epsilon", "8"], "between 0 and 1"),
    (["evaluate", "x", "--dataset", "d", "--step-size", "nan"], "between 0 and 1"),
    (["evaluate", "x", "--dataset", "d", "--steps", "2.5"], "whole number"),
    (["evaluate", "x", "--dataset", "d", "--attack", "main,main"], "different names"),
    (["evaluate", "x", "--dataset", "d", "--images", "7:5"], "holds no image"),
    (["evaluate", "x", "--dataset", "d", "--images", "a:b"], "500:1017"),
    (["evaluate", "x", "--dataset", "d", "--thresholds", "papers"], "neither paper nor calibrated"),
    (["evaluate", "x", "--dataset", "d", "--thresholds", "0.5,nan"], "neither paper nor calibrated"),
    (["evaluate", "x", "--dataset", "d", "--mode", "train"], "invalid choice: 'train'"),
    (["cost"], "MODEL"),
    (["cost", "smallcnn", "--widths", "0.5,0"], "above 0"),
    (["cost", "smallcnn", "--widths", "1.5"], "between 0 and 1"),
    (["cost", "smallcnn", "--input", "32x32"], "such as 3x32x32"),
    (["cost", "smallcnn", "resnet38"], "resnet38"),
    (["bench", "--rounds", "some"], "whole number"),
    (["lab", "--port", "http"], "whole number"),
    (["lab", "--port", "99999"], "'99999' has to be between 1 and 65535"),
    (["cost", "smallcnn", "--json", ""], "name of a file or folder is empty"),
    (["doctor", "--fix"], "--fix"),
]


@pytest.mark.parametrize("argv, sentence", BAD, ids=[" ".join(argv) or "nothing" for argv, _ in BAD])
def test_bad_input_is_answered_before_set_up(argv, sentence, monkeypatch, capsys):
    monkeypatch.setattr(environment, "ensure", lambda need, argv: pytest.fail("set-up began"))
    with pytest.raises(SystemExit) as end:
        __main__.main(argv)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and sentence in last


def test_bad_input_needs_the_standard_library_alone():
    answer = bare("evaluate", "x", "--dataset", "d", "--epsilon", "eight")
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.strip().endswith("'eight' is not a number; write 0.03 or 8/255")


def test_old_python_is_told_so():
    """Both files that it reads first are in its syntax, and it gets one sentence."""
    for file in ("__init__.py", "__main__.py"):
        ast.parse((ROOT / "lib" / file).read_text(), feature_version=(3, 7))
    pretend = "import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_module('lib', run_name='__main__')"
    answer = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.count("\n") == 1 and "needs Python 3.11 or newer and this is 3.9" in answer.stderr


def test_importing_lib_is_cheap():
    timed = "import time; t = time.process_time(); import lib; print(time.process_time() - t)"
    tries = [subprocess.run([sys.executable, "-S", "-c", timed], cwd=ROOT, capture_output=True, text=True)
             for _ in range(3)]
    assert min(float(one.stdout) for one in tries) < 0.1


# ---- what the verbs get

GOOD = [
    (["run"], dict(preset="quick", weights="train", only=None, list=False, name=None, seed=0, parameters=[],
                   dataset=None, jobs=None, allow_cpu=False)),
    (["run", "--preset", "paper", "--only", "10,12", "-p", "epochs", "3", "-p", "lr", "1e-4", "--allow-cpu"],
     dict(preset="paper", only=("10", "12"), parameters=[["epochs", "3"], ["lr", "1e-4"]], allow_cpu=True)),
    (["train", "--list"], dict(recipe=None, list=True)),
    (["train", "r", "--minutes", "0.5", "--seed", "3"], dict(recipe="r", minutes=0.5, seed=3, folder=None)),
    (["evaluate", "c", "--dataset", "cifar10", "--epsilon", "8/255", "--step-size", "2/255", "--images", "500:1017",
      "--attack", "clean,max_average,single1", "--thresholds", "0.5,closed"],
     dict(checkpoint="c", dataset="cifar10", epsilon=8 / 255, step_size=2 / 255, images=(500, 1017), mode=None,
          attack=("clean", "max_average", "single1"), thresholds=(0.5, float("-inf")), steps=None, seed=0)),
    (["evaluate", "c", "--dataset", "d", "--images", "100", "--thresholds", "calibrated"],
     dict(images=(0, 100), thresholds="calibrated")),
    (["evaluate", "c", "--dataset", "d", "--images", "100:", "--thresholds=-inf,-inf"],
     dict(images=(100, None), thresholds=(float("-inf"), float("-inf")))),
    (["cost", "wrn40_2", "--conditioning", "float", "--widths", "0.5,1.0", "--input", "3x64x64"],
     dict(model="wrn40_2", conditioning="float", widths=(0.5, 1.0), input=(3, 64, 64), exits="none", classes=10)),
    (["evaluate", "~/c", "--dataset=~/d", "--json=~/j", "--save-record=~/a",
      "--robustbench-card=~/r"],
     dict(checkpoint=f"{HOME}/c", dataset=f"{HOME}/d", json=f"{HOME}/j", save_record=f"{HOME}/a",
          robustbench_card=f"{HOME}/r")),
    (["bench", "--only", "attack", "--rounds", "2", "--record", "--json", "f"],
     dict(only=("attack",), rounds=2, record=True, json="f")),
]


@pytest.mark.parametrize("argv, expected", GOOD, ids=[" ".join(argv[:3]) for argv, _ in GOOD])
def test_arguments_arrive_checked(argv, expected, verbs):
    assert __main__.main(argv) == 0
    assert expected.items() <= vars(verbs[0]).items()


def test_everything_but_fast_goes_to_pytest_in_order(verbs):
    __main__.main(["test", "-k", "cost", "--fast", "-x", "tests/test_front_door.py"])
    module, argv = verbs[0]
    assert module == "pytest"
    assert argv[-4:] == ["-k", "cost", "-x", "tests/test_front_door.py"]
    assert argv[argv.index("-m") + 1] == "not slow and not browser"


def test_tests_are_units_and_every_notebook(verbs):
    __main__.main(["test"])
    __main__.main(["test", "--fast"])
    (_, everything), (_, fast) = verbs
    assert everything[-2:] == [str(ROOT / "tests"), str(ROOT / "notebooks")] and "--nbval-lax" in everything
    assert str(ROOT / "tests") in fast and str(ROOT / "notebooks") not in fast


def test_lab_opens_the_first_notebook_or_one_by_number_name_or_file(verbs, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "lib.workbook.runs")  # the real one
    monkeypatch.setattr("lib.workbook.runs.NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/somebody's")
    (tmp_path / "notebooks").mkdir()
    assert __main__.main(["lab"]) == 2  # there is none
    for name in ("10_b.ipynb", "00_a.ipynb"):
        shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", tmp_path / "notebooks" / name)
    assert __main__.main(["lab", "--port", "8899"]) == 0
    module, argv = verbs[0]
    assert module == "jupyterlab" and "--LabApp.default_url=/lab/tree/notebooks/00_a.ipynb" in argv
    assert f"--ServerApp.root_dir={tmp_path}" in argv and "--port=8899" in argv
    assert os.environ["JUPYTER_CONFIG_PATH"].endswith(f"/lib/workbook{os.pathsep}/somebody's")
    assert __main__.main(["lab", "missing.ipynb"]) == 2
    shutil.copy(tmp_path / "notebooks" / "10_b.ipynb", tmp_path / "mine.ipynb")
    for asked, file in (("10", "notebooks/10_b"), ("10_b", "notebooks/10_b"), (tmp_path / "mine.ipynb", "mine")):
        assert __main__.main(["lab", str(asked)]) == 0
        assert f"--LabApp.default_url=/lab/tree/{file}.ipynb" in verbs[-1][1]


def test_jupyterlab_begins_with_the_settings_of_lab(monkeypatch, tmp_path):
    """As its own server reads them: no autosave over a notebook that is only read, and no subshells."""
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(ROOT / "lib" / "workbook"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    brought = json.loads((ROOT / "lib/workbook/labconfig/default_setting_overrides.json").read_bytes())
    for plugin, values in brought.items():
        schema = get_settings(tmp_path, Path(get_app_dir()) / "schemas", tmp_path, schema_name=plugin)[0]["schema"]
        for name, value in values.items():
            told = schema["properties"][name]
            assert told["default"] == value and told.get("type") in ("string", "boolean"), (plugin, name)
            assert "oneOf" not in told or value in [one["const"] for one in told["oneOf"]]
    assert brought["@jupyterlab/docmanager-extension:plugin"] == {"autosave": False}


# ---- how they end

@pytest.mark.parametrize("raised, code, sentence", [
    (WorkbookError("no such recipe; see train --list"), 2, "error: no such recipe; see train --list\n"),
    (KeyboardInterrupt(), 130, "\nstopped; what was finished is kept, and the same command goes on from there\n"),
])
def test_failures_are_one_line_and_an_exit_code(raised, code, sentence, verbs, monkeypatch, capsys):
    def fail(args):
        raise raised

    monkeypatch.setattr(sys.modules["lib.commands"], "train", fail)
    assert __main__.main(["train", "x"]) == code
    assert capsys.readouterr().err == sentence


def test_files_are_utf8_whatever_the_locale_says():
    """The titles hold letters that ASCII lacks; reading and printing them is the same as anywhere."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answer = subprocess.run([sys.executable, "-m", "lib", "run", "--list"], cwd=ROOT, env=plain, capture_output=True)
    assert answer.returncode == 0, answer.stderr
    assert "λ" in answer.stdout.decode("utf-8")


def test_a_verb_decides_its_exit_code(verbs, monkeypatch):
    monkeypatch.setattr(sys.modules["lib.workbook.runs"], "run", lambda args: 1)
    assert __main__.main(["run"]) == 1


# ---- doctor

@pytest.mark.parametrize("torch, driver, expected", [
    (None, None, "no torch yet; no NVIDIA driver: CPU"),
    ({"cuda": "13.2", "available": False, "gpus": []}, None, "CPU (no NVIDIA driver)"),
    ({"cuda": None, "available": False, "gpus": []}, "580.95", "install a CUDA build"),
    ({"cuda": "13.2", "available": False, "gpus": []}, "550.54.15",
     f"update it to 580 or newer, or run `pip install --force-reinstall --index-url {environment.CUDA_12} torch"),
    ({"cuda": "12.8", "available": False, "gpus": []}, "550.54.15", "check CUDA_VISIBLE_DEVICES"),
    ({"cuda": "13.2", "available": True, "gpus": ["H200"]}, "580.95", "H200 (CUDA 13.2, driver 580.95)"),
])
def test_doctor_compares_driver_and_wheels(torch, driver, expected):
    assert expected in doctor.device_sentence(torch, driver)


@pytest.mark.parametrize("said, version", [("550.54.15\n550.54.15", "550.54.15"), ("[N/A]", None), ("", None),
                                           (None, None), ("NVIDIA-SMI has failed", None)])
def test_only_a_driver_that_answers_counts(said, version, monkeypatch):
    monkeypatch.setattr(environment, "output_of", lambda command: said)
    assert environment.driver() == version


def test_doctor_has_a_verdict_per_verb(monkeypatch, capsys):
    monkeypatch.setattr(environment, "output_of", lambda command: None)
    monkeypatch.setattr(doctor.packages, "missing", lambda need, path=None: ["torch is missing"])
    monkeypatch.setattr(environment, "ready", lambda: False)
    monkeypatch.setattr(environment, "obstacle", lambda: "the disk is too small; free some")
    assert __main__.main(["doctor"]) == 1
    said = capsys.readouterr().out
    for verb in __main__.NEEDS:
        line, = (line for line in said.splitlines() if line.startswith(f"lib {verb} "))
        assert ("cannot work: the disk is too small" in line) == (verb != "doctor")
    monkeypatch.setattr(environment, "obstacle", lambda: None)
    assert __main__.main(["doctor"]) == 0
    assert "sets up .venv first" in capsys.readouterr().out


def test_doctor_says_that_runs_cannot_be_kept(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "RUNS", tmp_path / "file" / "runs")
    assert __main__.main(["doctor"]) == 1
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    refusal = f"{doctor.RUNS} may not be written; name another place in WORKBOOK_RUNS"
    assert lines["runs"].strip() == refusal and lines["lib run"].strip() == f"cannot work: {refusal}"
    assert "cannot work" not in lines["lib cost"]


def test_doctor_tells_versions():
    answer = subprocess.run([sys.executable, "-m", "lib", "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0 and f"torch {metadata.version('torch')}" in answer.stdout
    assert re.search(r"^lib train +ready in this Python$", answer.stdout, re.MULTILINE)
