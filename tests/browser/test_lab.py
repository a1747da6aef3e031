"""A real browser opens a notebook in JupyterLab, runs it, moves a slider, and sees the figure change."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from lib import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240  # seconds for one step on a busy machine
FIGURE = "document.querySelector('.js-plotly-plot')"
TRACE = f"{FIGURE}.data.find(trace => trace.name === '%s')"

pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a free port of this machine, serving a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*", "lib"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / "config"),
                   "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "WORKBOOK_PRESET": "quick",
                   "WORKBOOK_WEIGHTS": "shipped"}
    for said in ("WORKBOOK_LIVE", "CI"):  # without a word from them a kernel is live by itself
        environment.pop(said, None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
               "--LabApp.news_url=None"]
    with open(folder / "log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as lab:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(address, lab)
            yield address
        finally:
            lab.terminate()


def wait_for(address: str, lab: subprocess.Popen):
    for _ in range(2 * PATIENCE):
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5)
            return
        except (urllib.error.URLError, TimeoutError):
            assert lab.poll() is None, "JupyterLab ended by itself"
            time.sleep(0.5)
    raise AssertionError("JupyterLab did not answer")


@pytest.fixture(scope="module")
def page(server):
    """The first notebook, open in the browser, all its cells run and its figure drawn."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{server}/lab/tree/notebooks/00_start_here.ipynb?reset")
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.sessionContext")
        page.evaluate("""async () => {
            const app = window.jupyterapp; await app.restored;
            const context = app.shell.currentWidget.context;
            await context.ready; await context.sessionContext.ready; }""")
        page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        page.wait_for_selector(".widget-slider .noUi-handle", state="attached")
        page.wait_for_function(f"{FIGURE}?.data?.length > 0")
        page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
        yield page
        browser.close()


def test_a_slider_moves_the_figure(page):
    """Several steps of the first exit's threshold: the image shares, the drawn bars and the numbers above follow."""
    shares = f"{TRACE % 'clean'}.text.join()"
    bars = f"[...{FIGURE}.querySelectorAll('.bars .point path')].map(path => path.getAttribute('d')).join()"
    numbers = "[...document.querySelectorAll('.widget-html-content')].map(html => html.textContent).join()"
    before = [page.evaluate(what) for what in (shares, bars, numbers)]
    nodes = page.evaluate(f"(window.drawn = {FIGURE}.querySelector('.main-svg')) !== null")
    page.locator(".widget-slider .noUi-handle").nth(1).focus()  # the first slider is the budget
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"old => {shares} !== old[0] && {bars} !== old[1] && {numbers} !== old[2]", arg=before)
    assert nodes and page.evaluate(f"{FIGURE}.querySelector('.main-svg') === window.drawn"), "the figure flickered"


def test_a_click_on_a_picture_puts_it_under_the_microscope(page):
    """The pictures follow the sliders, so the image is the one that was under the pointer when it was clicked."""
    where = page.evaluate(f"""() => {{
        const plot = {FIGURE}, {{x, y}} = {TRACE % "pictures"}, layout = plot._fullLayout;
        plot.on('plotly_click', click => {{ window.clicked = click.points[0].customdata; }});
        return [layout.xaxis4._offset + layout.xaxis4.d2p(x[0]),
                layout.yaxis4._offset + layout.yaxis4.d2p(y[0])]; }}""")
    page.locator(".js-plotly-plot").first.click(position={"x": where[0], "y": where[1]})
    page.wait_for_function("""() => [...document.querySelectorAll('.widget-html-content svg')]
        .some(svg => svg.textContent.includes(`Image ${window.clicked}:`))""")
