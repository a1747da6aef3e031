"""Where a verb runs: in the environment it was started in if that has the packages, otherwise in `.venv`, made once.

Standard library only. A set-up that was killed continues at the next call; a checkout that was copied together with
its `.venv` is noticed and mended. Every failure is a WorkbookError: one sentence with the remedy.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lib import ROOT, WorkbookError
from lib.packages import REQUIREMENTS, missing, release

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
NEEDED_BYTES = 10e9
DAMAGED = "DO NOT MATCH THE HASHES|IncompleteRead|not enough bytes|Read timed out"
UNREACHABLE = "connection broken|ConnectionError|name resolution|ProxyError|SSLError|ConnectTimeout|timed out"
OVERRIDES = '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}\n'


def venv_version() -> str | None:
    """'3.12' of the Python that .venv runs on; None where it does not run."""
    try:
        answer = subprocess.run([PYTHON, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                                capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def site_packages(version: str) -> Path:
    return VENV / "lib" / f"python{version}" / "site-packages"


def fingerprint(version: str) -> str:
    """What a finished .venv was made for: these requirements, this place, this Python."""
    return hashlib.sha256(f"{REQUIREMENTS.read_text()}\n{ROOT}\n{version}".encode()).hexdigest()


def ready() -> bool:
    """Whether .venv is finished, for this checkout, and still holds what was installed."""
    marker = VENV / "ready"
    version = venv_version() if marker.is_file() else None
    return bool(version) and marker.read_text() == fingerprint(version) and not missing(
        path=[str(site_packages(version))])


def obstacle() -> str | None:
    """Why .venv cannot be made here, as one sentence with the remedy; None if it can."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip", "fcntl"))):
        return (f"Python {version} at {sys.executable} cannot make virtual environments; on Debian or Ubuntu run "
                f"'apt-get install python{version}-venv', elsewhere use environment.yml, and repeat the command")
    if not os.access(ROOT, os.W_OK):
        return f"{ROOT} is not writable, so .venv cannot be made there; copy the folder to one that you own"
    present = sum(f.lstat().st_size for f in VENV.rglob("*") if not f.is_dir()) if VENV.is_dir() else 0
    free = shutil.disk_usage(VENV if VENV.is_dir() else ROOT).free
    if free + present < NEEDED_BYTES:
        return (f"{ROOT} has {free / 1e9:.1f} GB free and setting up takes {(NEEDED_BYTES - present) / 1e9:.0f} GB; "
                "free some, or move the folder to a larger disk, and repeat the command")
    return None


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Hold the set-up's lock, waiting for whoever has it; yields the file descriptor, for pip to hold it as well."""
    import fcntl

    with open(ROOT / ".venv.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another set-up of {VENV} to finish", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def install():
    """Make, continue or mend .venv. Raises WorkbookError, one sentence with the remedy, where that fails."""
    if sentence := obstacle():
        raise WorkbookError(sentence)
    try:
        with locked() as lock:
            if ready():
                return
            print(f"setting up {VENV} once: about 6 GB and 3 minutes on a fast network", file=sys.stderr)
            (VENV / "ready").unlink(missing_ok=True)
            make_venv(lock)
            version = venv_version()
            forget_unfinished(site_packages(version))
            run_pip(lock)
            if problems := missing(path=[str(site_packages(version))]):
                raise WorkbookError(f"the packages do not fit together ({problems[0]}); delete {VENV}, check what "
                                    "pip's own configuration asks for, and repeat the command")
            rebase_scripts()
            partial = VENV / "ready.part"
            partial.write_text(fingerprint(version))
            os.replace(partial, VENV / "ready")
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkbookError(f"setting up {VENV} failed ({error}); mend that, or delete the folder, and repeat the "
                            "command") from None


def make_venv(lock: int):
    """A virtual environment whose pip runs; one that is there and works is kept, with its packages."""
    works = venv_version() and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0
    if works and release(venv_version()) >= (3, 11):  # its activation scripts may still name another checkout
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", VENV], check=True)
        return
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True,
                          pass_fds=(lock,))
    if made.returncode or not venv_version():
        said = (made.stderr.strip() or made.stdout.strip() or "no message").splitlines()[-1]
        raise WorkbookError(f"{sys.executable} could not make {VENV} ({said}); on Debian or Ubuntu install the package "
                            "python3-venv, elsewhere use environment.yml, and repeat the command")


def forget_unfinished(site: Path):
    """Let pip see as absent what it was killed in the middle of installing; it lists INSTALLER in RECORD at the end."""
    for info in site.glob("*.dist-info"):
        record = info / "RECORD"
        if not record.is_file() or f"{info.name}/INSTALLER" not in record.read_text():
            shutil.rmtree(info)


def run_pip(lock: int):
    """Install the requirements into .venv; what pip says goes to the terminal."""
    scratch = VENV / "tmp"  # on the disk that was found large enough; /tmp often is not
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    outside = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH")
    variables = {name: value for name, value in os.environ.items() if name not in outside}
    variables |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(scratch)}
    command = [PYTHON, "-m", "pip", "install", "--no-input", "-r", REQUIREMENTS]
    for left in (2, 1, 0):  # a download that breaks off is begun again; what arrived before it is in pip's cache
        code, said = tell(command, variables, lock)
        if not code:
            break
        if not (left and re.search(DAMAGED, said)):
            raise WorkbookError(pip_sentence(code, said))
        print("a download broke off; trying again", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)


def tell(command: list, variables: dict[str, str], lock: int) -> tuple[int, str]:
    """Run pip for all to see; returns its exit code and what it wrote to stderr.

    pip holds the lock as well: when only this process is killed, the next call waits for pip and then continues.
    """
    messages = []
    with subprocess.Popen(command, env=variables, stdout=sys.stderr, stderr=subprocess.PIPE, text=True,
                          errors="replace", pass_fds=(lock,)) as pip:
        for line in pip.stderr:
            sys.stderr.write(line)
            messages.append(line)
    return pip.returncode, "".join(messages)


def pip_sentence(code: int, said: str) -> str:
    """Why pip failed and what to do, from its exit code and what it wrote to stderr."""
    again = "repeat the command: it continues where it stopped"
    if "No space left on device" in said:
        return f"the disk that holds {ROOT} is full; free {NEEDED_BYTES / 1e9:.0f} GB and {again}"
    if re.search(DAMAGED, said):
        return f"a package arrived incomplete or changed; check the network or the index that pip uses, and {again}"
    if re.search(UNREACHABLE, said):
        return f"no package index could be reached; check the network or name a mirror in PIP_INDEX_URL, and {again}"
    if code < 0:
        return f"installing the packages was stopped by signal {-code}; {again}"
    errors = re.findall(r"ERROR: (.+)", said) or [f"exit code {code} and no message"]
    return f"pip could not install the packages ({errors[-1].strip()}); mend that and {again}"


def rebase_scripts():
    """Programs in a copied .venv name the interpreter of the checkout they were copied from; give them this one's."""
    for script in PYTHON.parent.iterdir():
        if script.is_file() and not script.is_symlink():
            first, newline, rest = script.read_bytes().partition(b"\n")
            ours = b"#!" + bytes(PYTHON)
            if re.fullmatch(rb"#!.*/\.venv/bin/python[\d.]*", first) and not first.startswith(ours):
                script.write_bytes(ours + newline + rest)


def refresh():
    """`lib` of this checkout for every program of .venv, and a JupyterLab that does not ask for attention."""
    site = site_packages(venv_version())
    settings = VENV / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((site / "workbook.pth", f"{ROOT}\n"), (settings, OVERRIDES)):
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)


# ---- what the front door calls

def ensure(need: str | None, argv: list[str]):
    """Return once this process has the packages ("core", "all" or None); where .venv has them, restart the verb there.

    Raises WorkbookError where they cannot be had.
    """
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    if need is None:
        return
    if not inside and not missing(need):
        others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != ROOT]
        os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), *others))
        return
    fresh = not ready()
    if fresh:
        install()
    refresh()
    os.environ.pop("PYTHONHOME", None)
    os.environ["PYTHONPATH"] = str(ROOT)  # packages of another environment stay outside
    os.environ["VIRTUAL_ENV"] = str(VENV)
    if not inside:
        os.environ["PATH"] = os.pathsep.join((str(PYTHON.parent), os.environ.get("PATH", os.defpath)))
    if fresh or not inside:
        become(PYTHON, "lib", argv)


def become(python: Path | str, module: str, arguments: list[str]):
    """Replace this process by `python -m module arguments`; signals and the exit code are then its own."""
    sys.stdout.flush()
    os.execv(python, [str(python), "-m", module, *arguments])


def pytest(arguments: list[str], fast: bool):
    """The tests: unit tests and, unless `fast` or told which, every notebook as a test."""
    chosen = [a for a in arguments if not a.startswith("-") and Path(a.split("::")[0]).exists()]
    targets = [] if chosen else [str(ROOT / "tests")] + ([] if fast else [str(ROOT / "notebooks")])
    few = ["-m", "not slow and not browser"] if fast else []
    become(sys.executable, "pytest", ["--nbval-lax", "--nbval-current-env", *few, *arguments, *targets])


def lab(notebook: str | None, port: int | None, no_browser: bool):
    """JupyterLab on `notebook`, by default the first. Raises WorkbookError where there is none."""
    file = Path(notebook) if notebook else min((ROOT / "notebooks").glob("*.ipynb"), default=None)
    if file is None or not file.is_file():
        raise WorkbookError(f"there is no notebook {file or 'in ' + str(ROOT / 'notebooks')}; name one that exists")
    file = file.resolve()
    folder = ROOT if file.is_relative_to(ROOT) else file.parent
    address = "/lab/tree/" + quote(file.relative_to(folder).as_posix())
    arguments = [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url={address}",
                 *([f"--port={port}"] if port else []), *(["--no-browser"] if no_browser else []),
                 *(["--allow-root"] if os.geteuid() == 0 else [])]
    become(sys.executable, "jupyterlab", arguments)
