"""One rule for all that takes long: a bar after two seconds where somebody watches, else a line a minute."""

import re
import threading
from dataclasses import replace

import pytest

from lib import data, progress
from lib.attacks.steps import Threat
from lib.evaluation import recording
from lib.training import loop, recipes


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setenv("WORKBOOK_LIVE", "1")


def test_what_is_quick_shows_nothing(watched, capsys):
    with progress.bar(3, "quick", "step") as shown:
        shown.update(3)
    assert capsys.readouterr() == ("", "")


def test_what_is_slow_shows_before_its_first_step_is_done_and_then_the_time_left(watched, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    with progress.bar(4, "slow", "step") as shown:
        shown.timer.join(60)
        assert "slow:   0%" in capsys.readouterr().out
        shown.update(2)
    assert re.search(r"2/4 \[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().out)


def test_a_quick_training_and_a_recording_show_how_far_they_are(watched, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    digits = data.load("digits", shape=(1, 28, 28))
    network = loop.load_or_fit(replace(recipes.find("rdi_smallcnn-digits-standard-quick"), iterations=4), tmp_path)
    said = capsys.readouterr().out
    assert "4/4" in said and "loss=" in said
    views = recording.suite(network, Threat(0.1, 0.1, 1), ("clean", "main"))
    recording.record(network, digits.test[:4], views, batch_size=2)
    assert "attack: 100%" in capsys.readouterr().out


def test_where_nobody_watches_it_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setenv("WORKBOOK_LIVE", "0")
    monkeypatch.setattr(progress, "LINE", 0.0)
    with progress.bar(2, "long", "step") as shown:
        shown.update()
        shown.update()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert any("1/2" in line for line in lines) and "2/2" in lines[-1]


def test_a_thread_beside_shows_nothing(watched, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)

    def work():
        with progress.bar(1, "beside", "step") as shown:
            shown.update()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capsys.readouterr() == ("", "")
