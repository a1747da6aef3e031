"""Where a verb runs: in the environment it was started in if that has the packages, otherwise in `.venv`, made once.

Standard library only. A set-up that was killed continues at the next call; a checkout that was copied together with
its `.venv` is noticed and mended. Every failure is a WorkbookError: one sentence with the remedy.
"""

import contextlib
import hashlib
import importlib.util
import locale
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lib import ROOT, WorkbookError
from lib.packages import LOCK, REQUIREMENTS, distribution, missing, release, requirements

VENV = Path(os.path.realpath(ROOT / ".venv"))  # it may be a link to a larger disk
PYTHON = VENV / "bin" / "python"
NEEDED_BYTES = 10e9
DAMAGED = "DO NOT MATCH THE HASHES|IncompleteRead|not enough bytes|Read timed out"
REASONS = {  # why pip failed, by what it said
    "No space left on device": f"the disk that holds {VENV} is full; free {NEEDED_BYTES / 1e9:.0f} GB",
    DAMAGED: "a package arrived incomplete or changed; check the network or the index that pip uses",
    "connection broken|ConnectionError|name resolution|ProxyError|SSLError|ConnectTimeout|timed out":
        "no package index could be reached; check the network or name a mirror in PIP_INDEX_URL",
}
OLDEST_DRIVER = {12: 525, 13: 580}  # NVIDIA driver that wheels of a CUDA major version need at least (Linux)
CUDA_12 = "https://download.pytorch.org/whl/cu126"  # torch's own index of wheels for drivers below 580


def output_of(command: list) -> str | None:
    """What `command` prints; None where it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def driver() -> str | None:
    """The version of the NVIDIA driver, None without one that answers."""
    answer = output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    number = re.match(r"\d[\d.]*", answer or "")
    return number and number[0]


def venv_version() -> str | None:
    """'3.12' of the Python that .venv runs on; None where it does not run."""
    return output_of([PYTHON, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) or None


def site_packages(version: str) -> Path:
    return VENV / "lib" / f"python{version}" / "site-packages"


def fingerprint(version: str) -> str:
    """What a finished .venv was made for: these requirements, these places, this Python."""
    lists = [file.read_bytes() for file in (REQUIREMENTS, LOCK) if file.is_file()]
    return hashlib.sha256(b"\n".join((*lists, bytes(ROOT), bytes(VENV), version.encode()))).hexdigest()


def ready() -> bool:
    """Whether .venv is finished, for this checkout, and still holds what was installed; not while pip works there."""
    marker = VENV / "ready"
    version = venv_version() if marker.is_file() and not (VENV / "tmp").exists() else None
    return bool(version) and marker.read_text("utf-8") == fingerprint(version) and not missing(
        path=[str(site_packages(version))])


def obstacle() -> str | None:
    """Why .venv cannot be made here, as one sentence with the remedy; None if it can."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip", "fcntl"))):
        return (f"Python {version} at {sys.executable} cannot make virtual environments; on Debian or Ubuntu run "
                f"'apt-get install python{version}-venv', elsewhere use environment.yml, and repeat the command")
    place = next(folder for folder in (VENV, *VENV.parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        return (f"{place} is not writable, so .venv cannot be made there; copy {ROOT} to a folder that you own, or use "
                "a Python that has the packages (environment.yml)")
    present = sum(f.lstat().st_size for f in VENV.rglob("*") if not f.is_dir())
    free = shutil.disk_usage(place).free
    if free + present < NEEDED_BYTES:
        return (f"{place} has {free / 1e9:.1f} GB free and setting up takes {(NEEDED_BYTES - present) / 1e9:.0f} GB; "
                "free some, or make .venv a link to a folder on a larger disk, and repeat the command")
    return None


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Hold the set-up's lock, waiting for whoever has it; yields the file descriptor, for pip to hold it as well."""
    import fcntl

    VENV.parent.mkdir(parents=True, exist_ok=True)
    with open(VENV.with_name(f"{VENV.name}.lock"), "wb") as file:
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
            make_venv(lock)
            site = site_packages(version := venv_version())
            forget_unfinished(site)
            run_pip(lock, site)
            if problems := missing(path=[str(site)]):
                raise WorkbookError(f"the packages do not fit together ({problems[0]}); delete {VENV}, check what "
                                    "pip's own configuration asks for, and repeat the command")
            rebase_scripts()
            (VENV / "ready.part").write_text(fingerprint(version), "utf-8")
            os.replace(VENV / "ready.part", VENV / "ready")  # the marker of what was finished before stays until here
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkbookError(f"setting up {VENV} failed ({error}); mend that, or delete the folder, and repeat the "
                            "command") from None


def make_venv(lock: int):
    """A virtual environment whose pip runs; one that is there and works is kept, with its packages."""
    works = venv_version() and subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0
    if works and release(venv_version()) >= (3, 11):  # its activation scripts may still name another checkout
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", VENV], check=True)
        return
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True,
                          pass_fds=(lock,))
    if done.returncode or not venv_version():
        message = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise WorkbookError(f"{sys.executable} could not make {VENV} ({message}); on Debian or Ubuntu install the "
                            "package python3-venv, elsewhere use environment.yml, and repeat the command")


def forget_unfinished(site: Path):
    """Let pip see as absent what it was killed in the middle of installing; it lists INSTALLER in RECORD at the end."""
    for info in site.glob("*.dist-info"):
        record = info / "RECORD"
        if not record.is_file() or f"{info.name}/INSTALLER" not in record.read_text("utf-8"):
            shutil.rmtree(info)


def run_pip(lock: int, site: Path):
    """Install what requirements.lock pins; where that does not fit, what requirements.txt allows.

    Another build of torch than the index's own (2.14.0+cu126) is kept, and chosen where the driver asks for it.
    """
    too_old = (version := driver()) and OLDEST_DRIVER[12] <= release(version)[0] < OLDEST_DRIVER[13]
    torch = [one.name + one.bounds for one in requirements() if one.name in ("torch", "torchvision")]
    if too_old and torch and not distribution("torch", [str(site)]):
        print(f"driver {version} is too old for CUDA 13, so torch is taken for CUDA 12", file=sys.stderr)
        pip_install(["--index-url", CUDA_12, *torch], lock)
    built = distribution("torch", [str(site)])
    if LOCK.is_file() and not (built and "+" in built.version):
        try:
            pip_install(["--require-hashes", "-r", LOCK], lock)
            if not missing(path=[str(site)]):
                return
        except WorkbookError as error:
            if not re.search("No matching distribution|require-hashes", str(error)):
                raise
        print(f"{LOCK.name} does not fit here; installing what {REQUIREMENTS.name} allows", file=sys.stderr)
    pip_install(["-r", REQUIREMENTS], lock)


def pip_install(wanted: list, lock: int):
    """Let pip install into .venv; what it says goes to the terminal. Raises WorkbookError where it fails."""
    scratch = VENV / "tmp"  # on the disk that was found large enough; it stays where pip is killed in the middle
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    outside = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH")
    variables = {name: value for name, value in os.environ.items() if name not in outside} | {
        "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(scratch)}
    command = [PYTHON, "-m", "pip", "install", "--no-input", *wanted]
    for left in (2, 1, 0):  # a download that breaks off is begun again; what arrived before it is in pip's cache
        code, output = tell(command, variables, lock)
        if not (code and left and re.search(DAMAGED, output)):
            break
        print("a download broke off; trying again", file=sys.stderr)
    if code >= 0:
        shutil.rmtree(scratch, ignore_errors=True)
    if code:
        raise WorkbookError(pip_sentence(code, output))


def tell(command: list, variables: dict[str, str], lock: int) -> tuple[int, str]:
    """Run pip for all to see; returns its exit code and what it wrote to stderr.

    pip holds the lock as well: when only this process is killed, the next call waits for pip and then continues.
    """
    output = ""
    with subprocess.Popen(command, env=variables, stdout=sys.stderr, stderr=subprocess.PIPE, text=True,
                          errors="replace", pass_fds=(lock,)) as pip:
        for line in pip.stderr:
            sys.stderr.write(line)
            output += line
    return pip.returncode, output


def pip_sentence(code: int, output: str) -> str:
    """Why pip failed and what to do, from its exit code and what it wrote to stderr."""
    errors = re.findall(r"ERROR: (.+)", output) or [f"exit code {code} and no message"]
    other = f"pip could not install the packages ({errors[-1].strip()}); mend that"
    why = next((why for words, why in REASONS.items() if re.search(words, output)), other)
    why = f"{why} and" if code > 0 else f"installing the packages was stopped by signal {-code};"
    return f"{why} repeat the command: it continues where it stopped"


def rebase_scripts():
    """Programs in a copied .venv name the interpreter of the checkout they were copied from; give them this one's."""
    for script in PYTHON.parent.iterdir():
        if script.is_file() and not script.is_symlink():
            first, newline, rest = script.read_bytes().partition(b"\n")
            ours = b"#!" + bytes(PYTHON)
            if re.fullmatch(rb"#!.*/bin/python[\d.]*", first) and not first.startswith(ours):
                script.write_bytes(ours + newline + rest)


def refresh():
    """`lib` of this checkout for every program of .venv."""
    file, text = site_packages(venv_version()) / "workbook.pth", f"{ROOT}\n"
    if not file.is_file() or file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")


# ---- what the front door calls

def ensure(need: str | None, argv: list[str]):
    """Return once this process has the packages ("core", "all" or None); where .venv has them, restart the verb there.

    Raises WorkbookError where they cannot be had.
    """
    if locale.getencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # every file here is UTF-8, whatever the locale says; children inherit it
        become(sys.executable, "lib", argv)
    inside = Path(sys.prefix).resolve() == VENV
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
    os.environ |= {"PYTHONPATH": str(ROOT), "VIRTUAL_ENV": str(VENV)}  # packages from elsewhere stay outside
    if not inside:
        os.environ["PATH"] = os.pathsep.join((str(PYTHON.parent), os.environ.get("PATH", os.defpath)))
    if fresh or not inside:
        become(PYTHON, "lib", argv)


def become(python: Path | str, module: str, arguments: list[str]):
    """Replace this process by `python -m module arguments`; signals and the exit code are then its own."""
    sys.stdout.flush()
    os.execv(python, [str(python), "-m", module, *arguments])


def test(args):
    """Unit tests and, unless `fast` or told which, every notebook as a test."""
    chosen = [a for a in args.arguments if not a.startswith("-") and Path(a.split("::")[0]).exists()]
    targets = [] if chosen else [str(ROOT / "tests")] + ([] if args.fast else [str(ROOT / "notebooks")])
    few = ["-m", "not slow and not browser"] if args.fast else []
    beside = min(4, len(os.sched_getaffinity(0)))  # each worker holds torch, and a file of tests, notebooks too
    several = [f"-n{beside}", "--dist=loadfile", "--no-loadscope-reorder"] if targets and beside > 1 else []
    become(sys.executable, "pytest", ["--nbval-lax", "--nbval-current-env", *several, *few, *args.arguments, *targets])


def lab(args):
    """JupyterLab, with settings of our own, on a notebook: a file or what `run --only` takes, by default the first."""
    from lib.workbook import runs

    named = (args.notebook,) if args.notebook else None
    chosen = named if named and Path(args.notebook).is_file() else runs.choose(named)
    if not chosen:
        raise WorkbookError(f"there is no notebook in {ROOT / 'notebooks'}; fetch the repository again")
    file = Path(chosen[0]).resolve()
    folder = ROOT if file.is_relative_to(ROOT) else file.parent
    settings = (str(ROOT / "lib" / "workbook"), os.environ.get("JUPYTER_CONFIG_PATH"))  # labconfig/ there: no autosave
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, settings))
    become(sys.executable, "jupyterlab", [
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{quote(file.relative_to(folder).as_posix())}",
        *([f"--port={args.port}"] if args.port else []), *(["--no-browser"] if args.no_browser else []),
        *(["--allow-root"] if os.geteuid() == 0 else [])])
