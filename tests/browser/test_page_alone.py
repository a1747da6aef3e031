"""The page without a kernel: a real browser opens it from file://, cut from any network, and says what Python says."""

import math
from dataclasses import replace
from urllib.parse import parse_qs

import numpy as np
import pytest

from lib import ATLASES
from lib.evaluation.reading import read
from lib.evaluation.record import Record
from lib.operating_point import OperatingPoint
from lib.workbook import page as pages
from tests.helpers.made_record import THREAT, view

SHOWN = """() => ({hash: location.hash.slice(1),
    shares: [...document.querySelectorAll('#exits i')].map(i => i.dataset.said),
    ...Object.fromEntries([...document.querySelectorAll('#tiles [id]')].map(one => [one.id, one.textContent]))})"""
GO = "address => { history.replaceState(null, '', '#' + address); fromAddress(); }"
SETTINGS = 50

pytestmark = pytest.mark.browser


def met_strongly(record: Record) -> Record:
    """With a made strong suite on the first 100 images, at the last exit alone of the first point."""
    closed = (-math.inf,) * (record.num_exits - 1)
    one = view("gate", evaluated_at=record.points[0], thresholds_used=closed, threat=THREAT)
    right = (np.arange(100) % 3 > 0).astype(np.uint8)[None, None]
    return replace(record, strong=Record((one,), right, record.labels[:100], {}))


@pytest.fixture(scope="module", params=["rdi_smallcnn-mnist-max_average-laptop", "resnet20-digits-float_slim-laptop",
                                        "cheap_resnet38-cifar10_jpeg-float_slim-laptop"])
def opened(request, browser, tmp_path_factory):
    """(record, its page, what that knows): exits on 10,000 images; λ and width of one exit; every knob and pictures."""
    record = Record.load(ATLASES / f"{request.param}.safetensors")
    record = record if record.strong else met_strongly(record)
    path = pages.write(record, tmp_path_factory.mktemp("page") / "page.html")
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, errors, asked = context.new_page(), [], []
    page.set_default_timeout(240_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield record, page, pages.contents(record)
    assert not errors and {url.partition(":")[0] for url in asked} <= {"file", "data"}
    context.close()


def random_setting(draw, record: Record, attacks) -> str:
    """An address: any point and attack; gates at some image's entropy, just below it, closed or open to all."""
    gates = []
    for k in range(record.num_exits - 1):
        value = draw.choice(record.entropy[:, k].ravel()) * draw.choice([1.0, 1.0, 0.97])
        gates.append(draw.choice(["closed", "open"] + [repr(float(value))] * 6))
    at, attack = draw.integers(len(record.points)), draw.choice(["union", *attacks])
    return f"at={at}&attack={attack}" + f"&gates={','.join(gates)}" * bool(gates)


def expected(record: Record, told: dict, points: list) -> dict:
    """What the tiles have to say, by lib/evaluation/reading.py."""
    address = {name: values[0] for name, values in parse_qs(told["hash"]).items()}
    gates = address.get("gates", "")
    point = points[int(address["at"])]
    if gates in point["sources"]:
        gates = ",".join(map(str, point["sources"][gates]))
    words = {"closed": -math.inf, "open": math.inf}
    gates = [words[gate] if gate in words else float(gate) for gate in gates.split(",") if gate]
    at = read(record, OperatingPoint.from_json(point["point"]), gates)
    shown = address["attack"] if address["attack"] in at.views else min(at.suite, key=lambda one: at.right(one).sum())
    clean, attacked, worst = (at.measured(what) for what in ("clean", shown, at.robust))
    saved = at.measured("saving").value
    said = {"clean": f"{100 * clean.value:.1f} %", "clean-note": f"{100 * clean.low:.1f} to {100 * clean.high:.1f}",
            "attacked": f"{100 * attacked.value:.1f} %{at.flag(shown)}",
            "attacked-note": f"{100 * attacked.low:.1f} to {100 * attacked.high:.1f}",
            "worst": f"{'' if at.robust == 'strong' else '≤ '}{100 * worst.value:.1f} %{at.flag('union')}",
            "worst-note": f"{100 * worst.low:.1f} to {100 * worst.high:.1f}",
            "macs": f"{at.cost('cumulative_macs') / 1e6:.2f} M MACs",
            "macs-note": f"saves {100 * saved:.1f} %" if saved >= 0 else f"{-100 * saved:.1f} % more"}
    if record.num_exits > 1:
        shares = zip(at.share("clean"), at.share(shown), strict=True)
        said |= {"attacked-macs": f"{at.cost('cumulative_macs', shown) / 1e6:.2f} M MACs",
                 "shares": [f"{100 * share:.1f} %" for pair in shares for share in pair]}
    return said


def test_fifty_settings_are_pythons_to_the_last_digit_shown(opened):
    """Each an address, then one control moved by hand: a slider or a box by the keyboard, a button by the mouse."""
    record, page, knows = opened
    draw = np.random.default_rng(0)
    for _ in range(SETTINGS):
        page.evaluate(GO, random_setting(draw, record, knows["attacks"]))
        movable = page.locator("input[type=range]:enabled, input[type=checkbox], button")
        one = movable.nth(int(draw.integers(movable.count())))
        kind = one.get_attribute("type")
        one.press("Space" if kind == "checkbox" else str(draw.choice(["ArrowLeft", "ArrowRight"]))) if kind in (
            "range", "checkbox") else one.click()
        shown = page.evaluate(SHOWN)
        shown["worst-note"] = shown["worst-note"].partition(", ")[0]
        wanted = expected(record, shown, knows["points"])
        assert {name: shown[name] for name in wanted} == wanted, shown["hash"]


def test_the_strong_suite_is_shown_where_it_was_run_at_this_very_setting(opened, awaited):
    record, page, knows = opened
    index = next(k for k, point in enumerate(knows["points"]) if point["strong"])
    where = next(v for v in record.strong.views if v.point.to_json() == knows["points"][index]["point"])
    gates = ",".join("closed" if t == -math.inf else repr(t) for t in where.thresholds_used or ())
    page.evaluate("hash => { location.hash = hash; }", f"at={index}&gates={gates}")
    awaited(page, "!$('worst').textContent.includes('≤') && $('worst-note').textContent.includes('strong suite')")


def test_a_move_takes_less_than_50_ms(opened):
    """The fastest of many: what other processes take from a busy machine is not the page's."""
    _, page, _ = opened
    spent = page.evaluate("[...Array(40)].map(() => { go({}); return Number(document.documentElement.dataset.ms); })")
    assert min(spent) < 50, sorted(spent)


def test_it_fits_a_phone_and_pictures_are_framed_where_the_answer_is_wrong(opened, awaited):
    _, page, told = opened
    page.set_viewport_size({"width": 390, "height": 844})
    awaited(page, "document.documentElement.scrollWidth === 390")
    cells = page.locator("#strip i")
    assert (cells.count() > 0) == (told["pictures"] is not None)
    for title, kind in cells.evaluate_all("cells => cells.map(cell => [cell.title, cell.className])"):
        truth, answer = title.partition(": ")[2].split("; answer: ")
        assert (truth != answer) == (kind == "wrong")
