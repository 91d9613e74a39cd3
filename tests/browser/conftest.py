"""The browser that looks at pages as a reader does."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'latentdiff[browser]'")
    with api.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch()
        except api.Error:
            found = next(filter(None, map(shutil.which, NAMES)), None)
            if found is None:
                pytest.skip("there is no Chromium: playwright install chromium, or one of the system")
            opened = driver.chromium.launch(executable_path=found)
        yield opened
        opened.close()
