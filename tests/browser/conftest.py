"""A real browser for the pages: `make test-browser` asks for it; in `make test` these tests are skipped."""

import os
import shutil

import pytest


class Skipped(pytest.Module):
    """A file of tests that is one line of the summary, as there is no browser to be asked."""

    def collect(self):
        pytest.skip("needs a browser: make test-browser", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if os.environ.get("BROWSER") else Skipped.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, driven by Selenium; its console must stay empty (`quiet`)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(programs.values()), "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", *root):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def look(browser):
    """look(width, scheme): the size of the screen, and "light" or "dark"."""

    def emulate(width, scheme="light", media=""):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    yield emulate
    emulate(1400)


@pytest.fixture(autouse=True)
def quiet(browser):
    """No page may complain: an error of a script, a file that is missing."""
    browser.get_log("browser")
    yield
    assert browser.get_log("browser") == []
