"""What all browser tests share: one browser, and reading as soon as what is read is there, however busy the machine."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240  # seconds for one step on a busy machine


@pytest.fixture(scope="module")  # an open one keeps asyncio from all that comes after it
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def awaited():
    """awaited(page, expression, old=None): the first value of a JavaScript expression that is neither false nor an
    error; what a page does not show yet, or not while it redraws, is waited for. `old` may stand in the expression."""

    def awaited(page, expression, old=None):
        found = f"old => {{ try {{ return {expression}; }} catch {{ return null; }} }}"
        return page.wait_for_function(found, arg=old, polling=50, timeout=1000 * PATIENCE).json_value()  # not by frames

    return awaited
