"""A real browser opens notebooks in JupyterLab, runs them, moves their controls, and sees numbers and figure change."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from platform import python_version

import nbformat
import numpy as np
import pytest

from lib import ROOT
from lib.attacks.steps import Threat
from lib.workbook import notebooks
from tests.browser.conftest import PATIENCE
from tests.helpers.made_record import every_knob, made
from tests.helpers.networks import small

TOKEN = secrets.token_hex(16)  # without one any user of this machine could start kernels while the test runs
FIGURE = "document.querySelector('.jupyter-widgets .js-plotly-plot')"
TRACE = f"{FIGURE}.data.find(trace => trace.name === '%s')"
CODE = "document.querySelector('.widget-html-content code').textContent"  # explorer.set(…), which leads where it stands
KERNEL = "window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel"
NUMBERS = "[...document.querySelectorAll('.widget-html-content')].map(html => html.textContent).join()"
SCRIPT = "<img src=x onerror='window.stolen = 1'>"  # what a record's author may call a view, a dataset, a network
HERE = f"(({{x, y}}) => [...x, ...y].join())({TRACE % 'here'})"  # where the λ explorer's point is drawn

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a free port of this machine, serving a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*", "lib"))
    for path in (folder / "notebooks").glob("*.ipynb"):  # as the Python that opens them would write them
        written, mine = (f'"version": "{version}"' for version in ("3.11.7", python_version()))
        path.write_text(path.read_text("utf-8").replace(written, mine), "utf-8")
    shutil.copy(folder / "notebooks" / "00_start_here.ipynb", folder / "notebooks" / "kept.ipynb")
    hostile(folder / "notebooks")
    all_knobs(folder / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / "config"),
                   "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "WORKBOOK_PRESET": "quick",
                   "WORKBOOK_WEIGHTS": "shipped", "JUPYTER_TOKEN": TOKEN}
    for said in ("WORKBOOK_LIVE", "CI"):  # without a word from them a kernel is live by itself
        environment.pop(said, None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
               "--LabApp.news_url=None"]
    with open(folder / "log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as lab:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address, lab)
            yield address
        finally:
            lab.terminate()


def hostile(folder):
    """A record whose every word is script, and a notebook that explores it."""
    forms = ("clean", "main", SCRIPT)
    record = made(forms, np.zeros((3, 3, 20)), np.ones((3, 3, 20)), np.arange(20) % 10, dataset=SCRIPT,
                  data_variant=SCRIPT, paper_thresholds=[0.1, 0.1], classes=[SCRIPT] * 10)
    record.save(folder / "hostile.safetensors")
    code = f"""from lib.evaluation.record import Record
from lib.workbook import panel
from lib.workbook.explorer import Explorer
from lib.workbook.subject import Subject
panel.show(Explorer({{{SCRIPT!r}: Subject(Record.load("hostile.safetensors"))}}, {SCRIPT!r}))"""
    write(folder / "hostile.ipynb", code)


def all_knobs(folder):
    """A record of a network with every knob, and a notebook that explores it."""
    network = small("resnet38", exits="cheap", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))
    every_knob(network, Threat(0.03, 0.01, 2), (1.0,) * 6).save(folder / "every_knob.safetensors")
    write(folder / "every_knob.ipynb", """from lib import data
from lib.evaluation.record import Record
from lib.workbook import panel
from lib.workbook.explorer import Explorer
from lib.workbook.subject import Subject
images = data.load("digits", shape=(3, 8, 8)).test
panel.show(Explorer(Subject(Record.load("every_knob.safetensors"), images), "."))""")


def write(path, code):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3"}}), path)


def wait_for(address: str, lab: subprocess.Popen):
    for _ in range(2 * PATIENCE):
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5)
            return
        except (urllib.error.URLError, TimeoutError):
            assert lab.poll() is None, "JupyterLab ended by itself"
            time.sleep(0.5)
    raise AssertionError("JupyterLab did not answer")


def opened(browser, server, notebook, run=True):
    """The notebook; all its cells run and its live figure drawn, unless told."""
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{server}/lab/tree/notebooks/{notebook}.ipynb?reset&token={TOKEN}")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.sessionContext")
    page.evaluate("""async () => {
        const app = window.jupyterapp; await app.restored;
        const context = app.shell.currentWidget.context;
        await context.ready; await context.sessionContext.ready; }""")
    if not run:
        return page
    page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_selector(".widget-slider .noUi-handle", state="attached")
    page.wait_for_function(f"{FIGURE}?.data?.length > 0 && {FIGURE}.querySelector('.main-svg') !== null")
    page.locator(".jupyter-widgets .js-plotly-plot").first.scroll_into_view_if_needed()
    return page


@pytest.fixture(scope="module")
def notebook(browser, server, awaited):
    """notebook(name): its page, run, and opened once; put back where it was at first, whatever a test did there."""
    pages = {}

    def notebook(name):
        if name not in pages:
            page = opened(browser, server, name)
            pages[name] = page, awaited(page, CODE)
        page, start = pages[name]
        page.bring_to_front()
        page.evaluate(f"async code => {{ await {KERNEL}.requestExecute({{code}}).done; }}", start)
        awaited(page, f"{CODE} === old", start)
        return page

    yield notebook
    for page, _ in pages.values():
        page.close()


@pytest.fixture
def page(notebook):
    """The first notebook, with the sliders of a network's exits."""
    return notebook("00_start_here")


@pytest.fixture
def knobs(notebook):
    """The slim networks: λ_n, λ_th, noise, batch norm and width on one page."""
    return notebook("22_slim")


def press(page, slider, key, times=1):
    """Keys on the slider of this name."""
    page.locator(".widget-slider", has_text=slider).locator(".noUi-handle").first.focus()
    for _ in range(times):
        page.keyboard.press(key)


def field(page, slider):
    """The number beside the slider of this name."""
    return page.locator(".widget-hbox", has=page.locator(".widget-slider", has_text=slider)).last.locator("input")


@pytest.fixture(scope="module")
def moves(awaited):
    """moves(page, act, said=""): act, and wait until the numbers and the λ figure's point are others, the line of code
    says this, and so nothing moves any more."""

    def moves(page, act, said=""):
        before = [awaited(page, what) for what in (NUMBERS, HERE)]
        act()
        awaited(page, f"{NUMBERS} !== old[0] && {HERE} !== old[1] && {CODE}.includes(old[2])", [*before, said])

    return moves


def test_a_slider_moves_the_figure(page, awaited):
    """Several steps of the first exit's threshold: the image shares, the drawn bars and the numbers above follow."""
    shares = f"{TRACE % 'clean'}.text.join()"
    bars = f"[...{FIGURE}.querySelectorAll('.bars .point path')].map(path => path.getAttribute('d')).join()"
    before = [awaited(page, what) for what in (shares, bars, NUMBERS)]
    awaited(page, f"window.drawn = {FIGURE}.querySelector('.main-svg')")
    press(page, "exit 1 below", "ArrowRight", 40)
    awaited(page, f"{shares} !== old[0] && {bars} !== old[1] && {NUMBERS} !== old[2]", before)
    assert page.evaluate(f"{FIGURE}.querySelector('.main-svg') === window.drawn"), "the figure flickered"


def test_a_click_on_a_picture_puts_it_under_the_microscope(page, awaited):
    """The pictures follow the sliders, so the image is the one that was under the pointer when it was clicked."""
    where = awaited(page, f"""(() => {{
        const plot = {FIGURE}, {{x, y, xaxis, yaxis}} = {TRACE % "pictures"};
        const axis = name => plot._fullLayout[name[0] + 'axis' + name.slice(1)];
        plot.on('plotly_click', click => {{ window.clicked = click.points[0].customdata; }});
        return {{x: axis(xaxis)._offset + axis(xaxis).d2p(x[0]),
                 y: axis(yaxis)._offset + axis(yaxis).d2p(y[0])}}; }})()""")
    plot = page.locator(".jupyter-widgets .js-plotly-plot").first
    plot.hover(position=where)
    awaited(page, f"{FIGURE}._hoverdata.length")
    plot.click(position=where)
    awaited(page, """[...document.querySelectorAll('.widget-html-content svg')]
        .some(svg => svg.textContent.includes(`Image ${window.clicked}:`))""")


def test_opening_a_notebook_changes_nothing(browser, server):
    page = opened(browser, server, "10_baselines", run=False)
    said = page.evaluate(f"async () => (await {KERNEL}.info).language_info")
    page.wait_for_timeout(3000)
    assert not page.evaluate("window.jupyterapp.shell.currentWidget.context.model.dirty")
    assert said.keys() == notebooks.METADATA["language_info"].keys()
    page.close()


def test_strangers_are_kept_out_of_the_server(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{server}/api/kernels", timeout=30)


def test_the_lambda_sliders_move_the_point_and_its_numbers(knobs, moves, awaited):
    """λ_n and λ_th each move what is drawn and said, the knobs that they turn follow, and nothing flickers."""
    awaited(knobs, f"window.drawn = {FIGURE}.querySelector('.main-svg')")
    scale = field(knobs, "noise s")
    before = [scale.element_handle(), scale.input_value()]
    moves(knobs, lambda: press(knobs, "λ_n", "ArrowLeft", 8), "lambda_n=0.92")
    awaited(knobs, "old[0].value !== old[1]", before)
    along = f"{TRACE % 'attacked along'}.y.join()"
    before = awaited(knobs, along)
    moves(knobs, lambda: press(knobs, "λ_th", "ArrowRight", 10), "lambda_th=0.1,")
    awaited(knobs, f"{along} !== old", before)
    assert knobs.evaluate(f"{FIGURE}.querySelector('.main-svg') === window.drawn"), "the figure flickered"


def test_the_width_switch_moves_the_point_and_its_cost(knobs, moves, awaited):
    cost = f"Number({NUMBERS}.match(/true cost\\s+([\\d.]+) M MACs/)[1])"
    full = awaited(knobs, cost)
    moves(knobs, lambda: knobs.locator(".widget-toggle-button", has_text="0.5").click(), "width=0.5")
    assert awaited(knobs, cost) < 0.5 * full
    moves(knobs, lambda: knobs.locator(".widget-toggle-button", has_text=re.compile("^1$")).click(), "width=1.0")
    assert awaited(knobs, cost) == full


def test_another_attack_and_another_method_move_the_numbers(knobs, moves):
    moves(knobs, lambda: knobs.get_by_label("attack", exact=True).select_option("PGD"))
    moves(knobs, lambda: knobs.get_by_label("network").select_option(index=1))
    moves(knobs, lambda: knobs.get_by_label("network").select_option(index=0))


def test_sliders_answer_during_a_computation_and_after_it(knobs, moves, awaited):
    """What a slider says while the kernel computes is heard at once, the computation can be cancelled, and the next
    hand on the slider is heard too. The computation begins anew until it is cancelled, however long the hand takes."""
    moves(knobs, lambda: press(knobs, "λ_n", "ArrowLeft", 3), "lambda_n=0.97")
    knobs.evaluate(f"async code => {{ await {KERNEL}.requestExecute({{code}}).done; }}",
                   "explorer.compute = lambda show, once=explorer.compute: [once(show) for _ in iter(int, 1)]")
    knobs.get_by_role("button", name="compute exactly").click()
    for _ in range(10):
        press(knobs, "λ_n", "ArrowLeft")
        knobs.wait_for_timeout(100)
    awaited(knobs, f"{CODE}.includes('lambda_n=0.87')")
    knobs.get_by_role("button", name="cancel").click()
    awaited(knobs, "document.body.textContent.includes('the computation was cancelled')")
    moves(knobs, lambda: press(knobs, "λ_n", "ArrowRight", 3), "lambda_n=0.9,")
    moves(knobs, lambda: press(knobs, "λ_th", "ArrowRight", 3), "lambda_th=0.03")


def test_a_slider_moved_while_an_image_is_attacked_goes_on_working(page, awaited):
    shares = f"{TRACE % 'clean'}.text.join()"
    stands = """document.querySelectorAll('.widget-slider .noUi-target')[old].noUiSlider.get()"""
    gates = page.locator(".widget-slider").all_inner_texts()
    first = next(k for k, name in enumerate(gates) if "exit 1 below" in name)
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
        before = awaited(page, shares)
        page.get_by_role("button", name="look at it").click()
        press(page, "exit 1 below", key, 40)
        awaited(page, f"Math.abs(Math.log10({CODE}.match(/thresholds=.([\\d.e-]+)/)[1]) - {stands}) < 0.01", first)
        awaited(page, f"{shares} !== old", before)


def test_a_record_runs_no_script(browser, server, awaited):
    page = opened(browser, server, "hostile")
    page.get_by_role("button", name="export").click()
    page.get_by_role("button", name="look at it").click()
    for shown in ("written to", "Pictures need the images", SCRIPT):  # the name as what it is
        awaited(page, f"{NUMBERS}.includes(old)", shown)
    assert page.evaluate("window.stolen") is None and page.locator("img[src='x']").count() == 0
    page.close()


def test_a_saved_notebook_keeps_its_figures_and_tables(browser, server, awaited):
    """Saved after a run and opened with a new kernel, it shows in place of the controls what they showed at first."""
    page = opened(browser, server, "kept")
    faces = """(cell => [...cell.querySelectorAll('.jp-OutputArea-child')].filter(
        child => child.querySelector('.jp-RenderedPlotly, table.dataframe')).map(face => face.checkVisibility()))"""
    live = "document.querySelector('.jupyter-widgets .js-plotly-plot').closest('.jp-Cell')"
    awaited(page, f"(shown => shown.length > 1 && !shown.some(Boolean))({faces}({live}))")  # hidden behind the live one
    page.evaluate("""async () => { const context = window.jupyterapp.shell.currentWidget.context;
        await context.save(); await context.sessionContext.shutdown(); }""")
    page.close()
    again = opened(browser, server, "kept", run=False)
    again.evaluate("""async () => { const {content} = window.jupyterapp.shell.currentWidget;
        await content.scrollToItem(content.widgets.length - 1); }""")
    gone = "[...document.querySelectorAll('.jp-Cell')].find(cell => cell.textContent.includes('model not found'))"
    awaited(again, f"{gone}.querySelector('.jp-RenderedPlotly .main-svg')")
    awaited(again, f"(shown => shown.length > 1 && shown.every(Boolean))({faces}({gone}))")
    awaited(again, f"!{gone}.innerText.includes('model not found')")
    again.close()


def test_every_knob_of_one_network_on_one_page(browser, server, awaited):
    """λ_n, λ_th, one threshold, the width and the attack each move numbers, figure and pictures; nothing is cut."""
    page = opened(browser, server, "every_knob")
    shown = [NUMBERS, f"(now => JSON.stringify([now.x, now.marker.size]))({TRACE % 'now'})",
             f"{FIGURE}.layout.images[0].source", f"{FIGURE}.querySelector('.imagelayer image').href.baseVal"]
    for width in (1280, 1440):
        page.set_viewport_size({"width": width, "height": 1000})
        awaited(page, """window.innerWidth === old && [...document.querySelectorAll('.jp-OutputArea-output')].every(
            output => output.scrollWidth <= output.clientWidth + 1)""", width)  # without a scroll bar
    hands = {"lambda_n=0.4,": lambda: press(page, "λ_n", "ArrowLeft", 60),
             "lambda_th=0.5,": lambda: press(page, "λ_th", "ArrowRight", 50),
             "thresholds=(": lambda: press(page, "exit 1 below", "Home"),
             "width=0.5": lambda: page.locator(".widget-toggle-button", has_text="0.5").click(),
             "attack='gate": lambda: page.get_by_label("attack", exact=True).select_option("gate-aware")}
    for said, hand in hands.items():
        before, begun = [awaited(page, what) for what in shown], time.perf_counter()
        hand()
        awaited(page, f"""{CODE}.includes(old[0]) && [{', '.join(shown)}].every((now, k) => now !== old[k + 1])""",
                [said, *before])
        print(f"{said}: {time.perf_counter() - begun:.2f} s")
    field(page, "λ_n").fill("0.35")
    page.keyboard.press("Enter")
    awaited(page, f"{CODE}.includes('lambda_n=0.35')")
    page.get_by_label("leaves by").select_option("patience")
    awaited(page, f"{CODE}.includes(old) && {NUMBERS}.includes('how many exits in a row agree')", "decision='patience'")
    page.get_by_label("leaves by").select_option("entropy")
    awaited(page, f"!{CODE}.includes('decision')")
    page.get_by_label("at most").fill("60")
    page.get_by_label("per-image worst case at least").fill("20")
    page.get_by_role("button", name="choose").click()  # the bounds are read when the work begins
    awaited(page, f"{CODE}.includes(old) && {NUMBERS}.includes('at most 60 M MACs and at least 20 % robust')", "union")
    assert awaited(page, f"{NUMBERS}.includes('images that did not choose: clean ')")
    page.close()
