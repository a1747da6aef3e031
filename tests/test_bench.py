"""The benchmark: what it prints and writes, that it checks before it times, and the floors of steps on a GPU."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import lib
from lib import WorkbookError
from lib.models import zoo
from tests.bench import cuda, reference, run, work


def arguments(**flags):
    return SimpleNamespace(**{"only": None, "rounds": 2, "json": None, "record": False, "device": None} | flags)


def test_one_row_from_the_command_line_to_the_file(tmp_path):
    told = subprocess.run([sys.executable, "-m", "lib", "bench", "--only", "augment", "--rounds", "2", "--json",
                           str(tmp_path / "f.json")], cwd=lib.ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "augment" in told.stdout and "import lib takes" in told.stdout
    found = json.loads((tmp_path / "f.json").read_text())
    row, = found["rows"]
    assert row["name"] == "augment" and 0 < row["q25"] <= row["ratio"] <= row["q75"]
    assert found["rounds"] == 2 and found["threads"] == 1 and found["version"] == lib.__version__ and not found["cuda"]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(WorkbookError, match="there is no measurement warp_drive; choose from attack_exact"):
        run.main(arguments(only=("augment", "warp_drive")))
    if not torch.cuda.is_available():
        with pytest.raises(WorkbookError, match="no device 'cuda'"):
            run.main(arguments(device="cuda"))
        with pytest.raises(WorkbookError, match="cuda_main: only a GPU can measure that"):
            run.main(arguments(only=("augment", "cuda_main")))


def made(*ratios):
    """A piece of work whose plain form takes as many units as told, its engine one."""
    times = iter([spent for ratio in (99, *ratios) for spent in (ratio, 1.0)])  # the first round is not counted
    return work.Work(lambda: None, {"made": work.Engine(lambda: None, "a note")}), lambda _: next(times)


def test_a_row_holds_the_quartiles_of_the_rounds_behind_the_first(monkeypatch):
    piece, spent = made(2, 4, 1, 3, 5, 7, 6)
    monkeypatch.setattr(run, "spent", spent)
    assert run.measure(piece, 7) == [{"name": "made", "ratio": 4, "q25": 2, "q75": 6, "note": "a note"}]
    piece, spent = made(3)
    monkeypatch.setattr(run, "spent", spent)
    assert run.measure(piece, 1)[0]["ratio"] == 3


def test_time_is_that_of_the_process_and_its_children():
    busy = "sum(i * i for i in range(3_000_000))"
    waiting = run.spent(lambda: time.sleep(0.2))
    working = run.spent(lambda: subprocess.run([sys.executable, "-c", busy], check=True))
    assert waiting < 0.1 < working


def test_recording_adds_a_line_with_device_and_version(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HISTORY", tmp_path / "history.jsonl")
    monkeypatch.setattr(run, "GROUPS", {("quick",): lambda rows: made(2, 2)[0]})
    monkeypatch.setattr(run, "ROWS", ("quick",))
    for _ in range(2):
        run.main(arguments(only=("quick",), record=True))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["device"] == run.processor() and line["version"] == lib.__version__ and line["date"]
        assert [row["name"] for row in line["rows"]] == ["made"] and line["torch"] == torch.__version__


def test_every_recorded_line_is_of_known_rows():
    for line in run.HISTORY.read_text().splitlines() if run.HISTORY.exists() else ():
        told = json.loads(line)
        assert {row["name"] for row in told["rows"]} <= set(work.ROWS) and told["device"] and told["version"]


def test_nothing_is_timed_where_both_sides_differ(monkeypatch):
    monkeypatch.setattr(work, "SHORT", work.ONE)
    monkeypatch.setattr(work, "BATCH", 2)
    monkeypatch.setattr(work.batch, "__defaults__", (2,))
    assert set(work.attacks(["attack_exact", "attack_folded"]).engines) == {"attack_exact", "attack_folded"}
    weaker = reference.max_average
    monkeypatch.setattr(reference, "max_average", lambda *a, **o: weaker(*a, **o).add(1e-6))
    with pytest.raises(WorkbookError, match="nothing is timed, because the attack is not bit-equal"):
        work.attacks(["attack_exact"])


def test_the_plain_form_agrees_with_the_engine_s_network_bit_for_bit():
    plain, ours = reference.twins()
    x, _ = work.batch(3)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(plain(x), ours(x), strict=True))


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row, gflops, gigabytes, ms, bound", [  # the fact sheet's counts for batches of 128
    ("cuda_main", 582, 5.2, 1.2, "memory"), ("cuda_average", 673, 5.5, 1.3, "memory"),
    ("cuda_max_average", 2213, 22.6, 5.3, "memory"), ("cuda_max_average_batch", 2213, 22.6, 5.3, "memory"),
    ("cuda_float", 2968, 5.4, 3.8, "arithmetic"), ("cuda_oat", 4723, 8.5, 6.0, "arithmetic")])
def test_the_floor_of_a_step(row, gflops, gigabytes, ms, bound):
    recipe = cuda.recipe(row)
    found = cuda.floor(recipe, zoo.build(**recipe.network))
    assert recipe.batch_size == 128 and found.bound == bound
    assert found.flops / 1e9 == pytest.approx(gflops, rel=0.005)
    assert found.bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert 1e3 * found.seconds == pytest.approx(ms, abs=0.06)


def test_kernels_are_counted_without_copies():
    device, host = cuda.DeviceType.CUDA, cuda.DeviceType.CPU
    events = [SimpleNamespace(device_type=d, name=n) for d, n in (
        (device, "sm90_gemm"), (host, "aten::conv2d"), (device, "Memcpy HtoD"), (device, "Memset"),
        (device, "elementwise"))]
    assert cuda.kernels(events) == 2


def test_a_step_is_told_in_one_line():
    row = {"name": "cuda_main", "ms": 9.2, "kernels": 2280, "floor_ms": 1.196, "percent_of_floor": 13.0,
           "bound": "memory", "captured": True}
    assert cuda.line(row).split() == ["cuda_main", "9.20", "2280", "1.20", "13.0", "memory"]
    assert "not captured" in cuda.line(row | {"captured": False})
    ends = [cuda.HEAD.index(name) + len(name) for name in ("ms", "kernels", "floor ms", "% of it")]
    assert [cuda.line(row)[end - 1] for end in ends] == ["0", "0", "0", "0"] and cuda.line(row)[ends[-1]] == " "


@pytest.mark.gpu
@pytest.mark.parametrize("row", cuda.ROWS)
def test_a_step_on_a_gpu_is_slower_than_its_floor(row):
    found = cuda.measure(row, torch.device("cuda"))
    assert 0 < found["floor_ms"] < found["ms"] and 0 < found["percent_of_floor"] < 100
    assert found["captured"] and found["kernels"] > 500
