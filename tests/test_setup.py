"""Setting up: version ranges against pip's own rules, and .venv made, killed, copied and mended with small packages."""

import ast
import base64
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

import lib
from lib import ROOT, WorkbookError, environment, packages

# ---- the one list of versions

# used without being imported; and imported without a line of its own, as a listed package always brings it
TOOLS = {"torchvision", "anywidget", "kaleido", "nbval", "playwright", "pytest-xdist", "ruff"}
IMPORTED_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "IPython": "ipython",
               "jupyterlab_server": "jupyterlab-server"}
COME_ALONG = {"packaging": "pytest", "pillow": "torchvision", "ipython": "ipywidgets", "scipy": "scikit-learn",
              "nbclient": "papermill", "filelock": "torch", "traitlets": "ipywidgets",
              "jupyterlab-server": "jupyterlab", "jinja2": "jupyterlab"}
EXTRAS = {"onnxruntime"}  # which `export` uses where it is there


def imported() -> set[str]:
    """The packages that modules and tests import, the standard library and our own left out."""
    texts = [p.read_text() for d in ("lib", "tests") for p in (ROOT / d).rglob("*.py")]
    tops = {name.split(".")[0] for text in texts for node in ast.walk(ast.parse(text))
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else
                         [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])}
    local = {p.stem for d in ("lib", "tests") for p in (ROOT / d).iterdir()} | {"lib", "tests"}
    return {IMPORTED_AS.get(top, top) for top in tops - sys.stdlib_module_names - local}


def test_versions_stand_in_one_place():
    """conda installs requirements.txt and states no version but Python's, the same that the front door asks for."""
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    entries = [line[2:] for line in lines if line.startswith("- ")]
    assert entries == ["conda-forge", "nodefaults", "python>=3.11", "pip", "pip:", "-r requirements.txt"]
    assert "sys.version_info < (3, 11)" in (ROOT / "lib/__main__.py").read_text()
    assert "dependencies" not in (ROOT / "pyproject.toml").read_text()
    named = [need.name for need in packages.requirements()]
    assert len(named) == len(set(named)) and {"torch", "jupyterlab", "pytest"} < set(named)


def test_every_requirement_is_a_range_with_its_reason():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r"[a-z-]+[>=]=[\d.]+ +# (core: )?\w.{5,}", line), line


def test_core_is_what_a_bare_gpu_machine_gets():
    core = {need.name for need in packages.requirements() if need.core}
    assert core == {"torch", "torchvision", "numpy", "pandas", "safetensors", "tqdm"}


def test_what_is_imported_is_listed():
    listed = {need.name for need in packages.requirements()}
    assert imported() - listed <= {*COME_ALONG, *EXTRAS}
    assert listed - imported() <= TOOLS
    for name, parent in COME_ALONG.items():
        needs = map(packages.Requirement.parse, metadata.requires(parent))
        assert parent in listed and name in {need.name for need in needs if need}


def test_core_verbs_work_with_the_core_packages_alone():
    """train, evaluate, cost and bench load without what only notebooks and tests need."""
    others = {"scikit-learn": "sklearn"}
    refused = [others.get(need.name, need.name) for need in packages.requirements() if not need.core]
    code = ("import sys\n"
            f"sys.modules.update(dict.fromkeys({[*refused, 'IPython', 'scipy']!r}))\n"  # None: importing it fails
            "from lib import __main__\n"
            "sys.exit(__main__.start(__main__.parse(['train', '--list'])))")
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "rdi_smallcnn" in answer.stdout


def test_modules_tests_and_notebooks_are_in_the_house_style():
    answer = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", ROOT],
                            capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_citation_names_this_version():
    assert f"\nversion: {lib.__version__}\n" in (ROOT / "CITATION.cff").read_text()


# ---- ranges

@pytest.mark.parametrize("version, bounds, expected", [
    ("2.15.0+cu132", ">=2.11", True),
    ("2.9.1", ">=2.11", False),  # not as text
    ("2.11", ">=2.11.0", True),
    ("3.0", ">=2.11,<3", False),
    ("2.12.0a0+git1b2c3d4.nv26.1", ">=2.12", True),  # a vendor's build counts as its release
    ("2.11.1", "==2.11.*", True),
    ("2.12", "==2.11.*", False),
    ("2.11.0+cu130", "==2.11.0", True),
    ("2.11.0", "!=2.11.0", False),
    ("1.4.9", "~=1.4.2", True),
    ("1.5", "~=1.4.2", False),
    ("1.9", "~=1.4", True),
    ("2.0", "", True),
])
def test_ranges_by_hand(version, bounds, expected):
    assert packages.fits(version, bounds) is expected


NUMBERS = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
CLAUSES = st.one_of(st.tuples(st.sampled_from(["==", "!=", ">=", "<=", ">", "<"]), NUMBERS).map("".join),
                    st.tuples(st.sampled_from(["==", "!="]), NUMBERS, st.just(".*")).map("".join),
                    st.tuples(st.just("~="), NUMBERS.filter(lambda text: "." in text)).map("".join))


@given(NUMBERS, st.lists(CLAUSES, max_size=3).map(",".join))
def test_ranges_agree_with_pips_own(version, bounds):
    assert packages.fits(version, bounds) == (version in SpecifierSet(bounds))


@pytest.mark.parametrize("line, expected", [
    ("torch>=2.11          # core: networks", ("torch", ">=2.11", True)),
    ("scikit_learn >= 1.4, <2  # digits", ("scikit-learn", ">= 1.4, <2", False)),
    ("torch (>=2.14.0)", ("torch", ">=2.14.0", False)),
    ("jupyter-server[test]>=2", ("jupyter-server", ">=2", False)),
    ("scipy ; extra == 'scipy'", None),
    ("# a comment", None),
    ("", None),
])
def test_lines_by_hand(line, expected):
    need = packages.Requirement.parse(line)
    assert (need and (need.name, need.bounds, need.core)) == expected


def put(site: Path, name: str, version: str, *needs: str):
    """An installed package, as far as its metadata goes."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("torch, torchvision, asked, problem", [
    ("2.15.0", "0.30.0", "torch==2.15.0", None),
    ("2.13.0+cpu", "0.30.0", "torch (>=2.14.0)", "torchvision 0.30.0 asks for torch >=2.14.0, not 2.13.0+cpu"),
    ("2.10.0", "0.30.0", "torch", "torch 2.10.0 is not >=2.11"),
    (None, "0.30.0", "torch==2.15.0", "torch is missing"),
    ("2.15.0", "0.30.0", "torch==2.9 ; extra == 'old'", None),
])
def test_torch_and_torchvision_have_to_match(torch, torchvision, asked, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "REQUIREMENTS", tmp_path / "requirements.txt")
    packages.REQUIREMENTS.write_text("torch>=2.11  # core\ntorchvision>=0.26  # core\njupyterlab>=4  # all\n")
    if torch:
        put(tmp_path / "site", "torch", torch)
    put(tmp_path / "site", "torchvision", torchvision, asked)
    assert packages.missing("core", [str(tmp_path / "site")]) == ([problem] if problem else [])
    assert "jupyterlab is missing" in packages.missing("all", [str(tmp_path / "site")])


def test_broken_metadata_counts_as_missing(tmp_path):
    (tmp_path / "torch-2.15.0.dist-info").mkdir()
    assert packages.distribution("torch", [str(tmp_path)]) is None


# ---- an environment that has the packages is used as it is

def test_environment_with_packages_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "missing", lambda need: {"core": [], "all": ["jupyterlab is missing"]}[need])
    monkeypatch.setattr(environment, "install", lambda: pytest.fail("set-up began"))
    monkeypatch.setenv("PYTHONPATH", "/opt/site")
    environment.ensure("core", ["cost", "smallcnn"])
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}/opt/site" and not environment.VENV.exists()
    environment.ensure("core", ["cost", "smallcnn"])
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}/opt/site"
    with pytest.raises(pytest.fail.Exception, match="set-up began"):
        environment.ensure("all", ["run"])


# ---- why .venv cannot be made

def test_no_venv_module(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    assert f"apt-get install python3.{sys.version_info.minor}-venv" in environment.obstacle()


def test_no_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: disk._replace(free=int(9.9e9)))
    assert "9.9 GB free and setting up takes 10 GB; free some" in environment.obstacle()
    (tmp_path / ".venv").mkdir()
    with open(tmp_path / ".venv" / "half", "wb") as file:
        file.truncate(int(0.2e9))  # what an earlier call has installed counts
    assert environment.obstacle() is None


def test_no_permission(monkeypatch):
    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    assert "not writable" in environment.obstacle()


@pytest.mark.parametrize("code, said, sentence", [
    (1, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "is full; free"),
    (1, "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'\n"
        "ERROR: No matching distribution found for torch>=2.11\n", "no package index could be reached"),
    (1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n", "incomplete or changed; check"),
    (1, "ERROR: No matching distribution found for torch>=2.11\n", "(No matching distribution found for torch>=2.11)"),
    (-9, "", "stopped by signal 9; repeat the command: it continues"),
    (2, "", "exit code 2 and no message"),
])
def test_pip_failures_are_sentences_with_the_remedy(code, said, sentence):
    answer = environment.pip_sentence(code, said)
    assert sentence in answer and "repeat the command" in answer and "\n" not in answer


def test_a_download_that_breaks_off_is_begun_again(monkeypatch, tmp_path):
    broken = (1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n")
    monkeypatch.setattr(environment, "VENV", tmp_path)
    for answers, raised in (([broken, broken, (0, "")], None), ([broken] * 3, "incomplete or changed"),
                            ([(1, "ERROR: No matching distribution found for x\n")], "No matching distribution")):
        left = list(answers)
        monkeypatch.setattr(environment, "tell", lambda *arguments, left=left: left.pop(0))
        with pytest.raises(WorkbookError, match=raised) if raised else contextlib.nullcontext():
            environment.pip_install(["tinycore"], 0)
        assert left == [] and not (tmp_path / "tmp").exists()


# ---- the whole thing, for real, with two small packages and no network

PAGES = {"tinycore": "1.5", "tinyrest": "2.0"}
COMMANDS = """
import json, os, sys
import lib, tinycore

def cost(args):
    print(json.dumps({"lib": str(lib.ROOT), "tinycore": tinycore.__file__, "python": sys.executable,
                      "path": os.environ["PYTHONPATH"], "model": args.model}))
"""


def wheel(folder: Path, name: str, version: str):
    """A wheel with one module and one program."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"__version__ = '{version}'\ndef main(): print(__file__)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    rows = [f"{path},sha256={digest(text)},{len(text)}" for path, text in files.items()]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,", ""])}.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Checkout:
    """A small checkout with the real front door."""

    def __init__(self, root: Path):
        self.root, self.venv = root, (root / ".venv").resolve()
        self.site = self.venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        self.variables = {n: v for n, v in os.environ.items() if not n.startswith("PIP_") and n != "PYTHONPATH"}
        self.variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_USER": "1",
                           "PIP_FIND_LINKS": str(root.parent / "wheels")}

    def start(self, **more):
        return subprocess.Popen([sys.executable, "-m", "lib", "cost", "smallcnn"], cwd=self.root, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.variables | more)

    def call(self, **more) -> subprocess.CompletedProcess:
        process = self.start(**more)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def is_sound(self, answer):
        """The verb ran in this checkout's .venv, with this checkout's lib."""
        assert answer.returncode == 0, answer.stderr
        assert f'"lib": "{self.root}"' in answer.stdout and f'"python": "{self.venv}/bin/python' in answer.stdout
        assert f'"tinycore": "{self.site}/' in answer.stdout and f'"path": "{self.root}"' in answer.stdout
        elsewhere = subprocess.run([self.venv / "bin" / "python", "-c", "import lib; print(lib.ROOT)"], cwd="/",
                                   env={}, capture_output=True, text=True)
        assert elsewhere.stdout.strip() == str(self.root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Checkout, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("checkouts").resolve()
    (folder / "wheels").mkdir()
    for name, version in PAGES.items():
        wheel(folder / "wheels", name, version)
    root = folder / "first"
    (root / "lib").mkdir(parents=True)
    for file in ("__init__", "__main__", "environment", "packages", "flags"):
        shutil.copy(ROOT / "lib" / f"{file}.py", root / "lib")
    (root / "lib" / "commands.py").write_text(COMMANDS)
    (root / "requirements.txt").write_text("tinycore>=1  # core: for all\ntinyrest>=2  # the rest\n")
    first = Checkout(root)
    return first, first.call()


@pytest.fixture
def copied(finished, request) -> Checkout:
    """The finished checkout copied, .venv and all."""
    first = finished[0]
    root = first.root.parent / re.sub(r"\W", "_", request.node.name)
    shutil.copytree(first.root, root, symlinks=True)
    return Checkout(root)


def test_fresh_set_up_then_the_verb(finished):
    first, answer = finished
    first.is_sound(answer)
    assert "setting up" in answer.stderr
    second = first.call()
    first.is_sound(second)
    assert second.stderr == ""  # nothing is set up twice


def test_copied_checkout_is_mended(copied, finished):
    answer = copied.call()
    copied.is_sound(answer)
    program = subprocess.run([copied.venv / "bin" / "tinycore"], capture_output=True, text=True)
    assert program.stdout.strip() == str(copied.site / "tinycore" / "__init__.py")
    assert f"{copied.venv}" in (copied.venv / "bin" / "activate").read_text()
    finished[0].is_sound(finished[0].call())


def test_foreign_path_line_is_rewritten(copied, finished):
    """Also where .venv looks finished, and where its own Python is called."""
    copied.call()
    (copied.site / "workbook.pth").write_text(f"{finished[0].root}\n")
    direct = subprocess.run([copied.venv / "bin" / "python", "-m", "lib", "cost", "x"], cwd=copied.root,
                            env=copied.variables, capture_output=True, text=True)
    copied.is_sound(direct)


def test_killed_install_continues(copied):
    """No marker, one package half unpacked (pip never wrote its final RECORD), one absent."""
    (copied.venv / "ready").unlink()
    (copied.site / "tinycore" / "__init__.py").write_text("")
    record = next(copied.site.glob("tinycore-*")) / "RECORD"
    record.write_text("".join(row for row in record.read_text().splitlines(True) if "INSTALLER" not in row))
    shutil.rmtree(copied.site / "tinyrest")
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    copied.is_sound(copied.call())
    assert "1.5" in (copied.site / "tinycore" / "__init__.py").read_text()
    assert (copied.site / "tinyrest" / "__init__.py").is_file()


def test_dead_interpreter_is_replaced(copied):
    """Copied from another machine, or Python was upgraded underneath."""
    for link in (copied.venv / "bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python")
    copied.is_sound(copied.call())


def test_removed_package_and_changed_list_are_noticed(copied):
    copied.call()
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    copied.is_sound(copied.call())
    wanted = (copied.root / "requirements.txt").read_text()
    (copied.root / "requirements.txt").write_text("tinycore>=1  # core\ntinyrest>=3  # newer\n")
    answer = copied.call()
    assert answer.returncode == 2
    assert "pip could not install the packages (No matching distribution found for tinyrest>=3)" in answer.stderr
    (copied.root / "requirements.txt").write_text(wanted)
    again = copied.call()
    copied.is_sound(again)
    assert again.stderr == ""  # a set-up that failed has not undone the finished one


def test_a_set_up_in_which_pip_was_killed_is_not_finished(copied):
    """Nobody knows what pip had taken out of a finished .venv by then."""
    copied.call()
    (copied.venv / "tmp").mkdir()
    answer = copied.call()
    copied.is_sound(answer)
    assert "setting up" in answer.stderr and not (copied.venv / "tmp").exists()
    assert copied.call().stderr == ""


@pytest.mark.parametrize("there", [True, False])
def test_venv_may_be_a_link_to_another_disk(finished, tmp_path, there):
    root, disk = tmp_path / "checkout", tmp_path / "disk" / "environment"
    shutil.copytree(finished[0].root, root, ignore=shutil.ignore_patterns(".venv*"))
    (root / ".venv").symlink_to(disk)
    if there:
        disk.mkdir(parents=True)
    linked = Checkout(root)
    linked.variables = finished[0].variables
    linked.is_sound(linked.call())
    assert (root / ".venv").is_symlink() and linked.venv == disk
    assert linked.call().stderr == ""


# ---- requirements.lock

def lock(checkout: Checkout, **versions: str):
    """Pins of the two small packages, each with the hash of its wheel."""
    wheels = checkout.root.parent / "wheels"
    lines = [f"{name}=={version} --hash=sha256:{hashlib.sha256(found[0].read_bytes()).hexdigest()}\n"
             for name, version in versions.items() if (found := sorted(wheels.glob(f"{name}-*")))]
    (checkout.root / "requirements.lock").write_text("".join(lines))


def test_the_lock_is_what_gets_installed(copied):
    wheel(copied.root.parent / "wheels", "tinyrest", "2.1")  # newer, and not the one that is pinned
    lock(copied, tinycore="1.5", tinyrest="2.0")
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    try:
        copied.is_sound(copied.call())
        assert next(copied.site.glob("tinyrest-*")).name == "tinyrest-2.0.dist-info"
        assert copied.call().stderr == ""
    finally:
        (copied.root.parent / "wheels" / "tinyrest-2.1-py3-none-any.whl").unlink()


def test_a_package_that_is_not_the_pinned_one_is_refused(copied):
    lock(copied, tinycore="1.5", tinyrest="2.0")
    text = (copied.root / "requirements.lock").read_text()
    (copied.root / "requirements.lock").write_text(re.sub("[0-9a-f]{64}$", "0" * 64, text.strip()) + "\n")
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    answer = copied.call()
    assert answer.returncode == 2 and "a package arrived incomplete or changed" in answer.stderr


def test_a_lock_that_does_not_fit_gives_way_to_the_ranges_and_says_so(copied):
    lock(copied, tinycore="9.9", tinyrest="2.0")
    answer = copied.call()
    copied.is_sound(answer)
    assert "requirements.lock does not fit here; installing what requirements.txt allows" in answer.stderr
    assert copied.call().stderr == ""


def test_a_lock_for_other_systems_gives_way_to_the_ranges(copied):
    """Its markers leave nothing to install: pip says nothing about that."""
    (copied.root / "requirements.lock").write_text(
        "tinyrest==2.0 ; sys_platform == 'amiga' --hash=sha256:" + "0" * 64 + "\n")
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    answer = copied.call()
    copied.is_sound(answer)
    assert "requirements.lock does not fit here" in answer.stderr


def test_the_lock_pins_every_requirement_within_its_range():
    """Its first lines hold the command that makes it; every pin has hashes, so that pip accepts no other file."""
    text = packages.LOCK.read_text()
    assert "uv pip compile requirements.txt" in text[:400]
    entries = re.split(r"\n(?=\w)", re.sub(r"(?m)^ *#.*\n", "", text))
    pinned = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)==([\w.+-]+)", entry).groups()
        assert "--hash=sha256:" in entry, name
        pinned.setdefault(name, []).append(version)
    for need in packages.requirements():
        assert all(packages.fits(version, need.bounds) for version in pinned[need.name]), need


@pytest.mark.parametrize("driver, present, expected", [
    ("550.54.15", None, ["cuda 12", "ranges"]),  # below CUDA 13's oldest
    ("580.95", None, ["lock"]), ("470.82", None, ["lock"]), (None, None, ["lock"]),
    ("550.54.15", "2.14.0+cu126", ["ranges"]),  # chosen at the first try, or by hand: kept
    (None, "2.14.0+cpu", ["ranges"]), (None, "2.15.0", ["lock"]),
])
def test_wheels_that_the_driver_can_use(driver, present, expected, monkeypatch, tmp_path):
    asked, site = [], tmp_path / "site"
    if present:
        put(site, "torch", present)

    def tell(command, variables, lock):
        wanted = list(map(str, command[5:]))
        kinds = {environment.CUDA_12: "cuda 12", "--require-hashes": "lock", "-r": "ranges"}
        asked.append(next(kind for word, kind in kinds.items() if word in wanted))
        if asked[-1] == "cuda 12":
            assert wanted[2:] == ["torch>=2.11", "torchvision>=0.26"]
            put(site, "torch", "2.14.0+cu126")
        return 0, ""

    monkeypatch.setattr(environment, "VENV", tmp_path)
    monkeypatch.setattr(environment, "tell", tell)
    monkeypatch.setattr(environment, "driver", lambda: driver)
    monkeypatch.setattr(environment, "missing", lambda path: [])
    environment.run_pip(0, site)
    assert asked == expected


def test_no_index_is_a_sentence(copied):
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    nowhere = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
               "PIP_RETRIES": "1", "PIP_NO_CACHE_DIR": "1", "NO_PROXY": "*"}
    answer = copied.call(**nowhere)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.strip().splitlines()[-1].startswith("error: no package index could be reached")


def test_kill_leaves_pip_in_charge_and_the_next_call_waits(copied):
    """Only the front door is killed: its pip still holds the lock, so that two never write into one .venv."""
    (copied.venv / "ready").unlink()
    shutil.rmtree(next(copied.site.glob("tinyrest-*")))
    note = copied.root / "pip.pid"
    (copied.site / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if os.environ.get('SLOW') and 'install' in sys.orig_argv:\n"
        f"    open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(100)\n")
    first = copied.start(SLOW="1")
    deadline = time.monotonic() + 300
    while not (note.is_file() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pip = int(note.read_text())
    first.kill()
    second = copied.start()
    assert "waiting for another set-up" in second.stderr.readline()
    os.kill(pip, signal.SIGKILL)
    out, err = second.communicate(timeout=600)
    first.communicate()
    copied.is_sound(subprocess.CompletedProcess([], second.returncode, out, err))


def test_venv_that_cannot_be_made_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "VENV", tmp_path / "file")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / "file" / "bin" / "python")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkbookError, match="could not make"):
        environment.make_venv(os.open(os.devnull, os.O_RDONLY))
