import io
import os
import shutil
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from lib.workbook import live, style

FIGURE = '{"data": [{"y": [1, 2]}], "layout": {}}'
BROWSERS = {"exits": "exit 1", "hangs": "exec sleep 98765", "talks": "echo nonsense; exec sleep 98765"}


def test_a_smaller_picture_looks_the_same():
    pixels = np.full((300, 400, 3), 255, np.uint8)
    pixels[50:250, 100:300] = np.arange(200, dtype=np.uint8)[:, None, None] // 4 * np.array([4, 2, 1], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    made = live.small(file.getvalue())
    again = np.asarray(Image.open(io.BytesIO(made)).convert("RGB"))
    assert again.shape == pixels.shape and np.abs(again.astype(int) - pixels).max() <= 12
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    assert len(live.small(file.getvalue())) < len(file.getvalue()) / 2


def test_a_few_marks_keep_their_colours_beside_photographs():
    photographs = np.random.default_rng(0).integers(0, 256, (200, 600, 3)).astype("uint8")
    page = np.concatenate([np.full((200, 600, 3), 255, "uint8"), photographs])
    colours = np.array([[int(c[k:k + 2], 16) for k in (1, 3, 5)] for c in style.CYCLE])
    for place, colour in enumerate(colours):
        page[50:55, 50 * place + 20:50 * place + 25] = colour
    file = io.BytesIO()
    Image.fromarray(page).save(file, "png")
    made = np.asarray(Image.open(io.BytesIO(live.small(file.getvalue()))).convert("RGB")).astype(int)
    kept = np.array([made[52, 50 * place + 22] for place in range(len(colours))])
    away = np.linalg.norm(kept[:, None] - colours, axis=-1)
    assert away.argmin(1).tolist() == list(range(len(colours))) and away.diagonal().max() < 40


@pytest.mark.parametrize("kind", BROWSERS)
def test_a_browser_that_ends_or_never_answers_costs_seconds_once(kind, tmp_path, monkeypatch, capfd):
    """The real helper with a real process for a browser; then no more waiting, and no process left."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{BROWSERS[kind]}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chromium"))
    monkeypatch.setattr(live, "FIRST", 6.0)
    painter, begun = live.Painter(), time.monotonic()
    assert painter.draw(FIGURE) is None and time.monotonic() - begun < 60
    again = time.monotonic()
    assert [painter.draw(FIGURE) for _ in range(20)] == [None] * 20 and time.monotonic() - again < 1
    assert capfd.readouterr().err.count("figures stay without pictures") == 1
    assert not [one for one in psutil.process_iter(["cmdline"]) if "98765" in (one.info["cmdline"] or [])]


@pytest.mark.parametrize("name, value", [("BROWSER_PATH", "/usr/bin/false"), ("TMPDIR", "/nowhere/at/all")])
def test_a_wrong_environment_does_no_more_than_cost_the_picture(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    begun = time.monotonic()
    live.Painter().draw(FIGURE)
    assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium") and not shutil.which("google-chrome"), reason="needs a browser")
def test_a_browser_killed_after_the_first_picture_is_given_up(monkeypatch):
    monkeypatch.setattr(live, "FIRST", 240.0)  # the machine may be busy
    painter = live.Painter()
    made = painter.draw(FIGURE, width=300, height=200, scale=1)
    assert Image.open(io.BytesIO(made)).size == (300, 200)
    helper = psutil.Process(painter.helper.process.pid)
    browser = helper.children(recursive=True)
    assert browser
    for one in browser:
        one.kill()
    begun = time.monotonic()
    assert painter.draw(FIGURE) is None and time.monotonic() - begun < 60
    assert not helper.is_running() and not any(one.is_running() for one in browser)


def test_who_needs_the_pictures_waits_longer_for_each_and_nobody_less():
    assert (live.Painter().patience, live.Painter(1.0).patience) == (live.FIRST, live.FIRST)
    assert (live.Painter(60.0).patience, live.Painter(60.0).later) == (60.0, 60.0)
