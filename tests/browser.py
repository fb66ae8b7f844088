"""A real browser, for the tests of pages: the system's Chromium, driven by Selenium. `make test-browser` runs them."""

import os
import shutil
from contextlib import contextmanager

import pytest

PROGRAMS = "chromium", "chromedriver"
needs_browser = pytest.mark.skipif(
    "BROWSER" not in os.environ, reason="needs Chromium and its driver: make test-browser runs it"
)


@contextmanager
def chromium(width=1200, height=800):
    """A Selenium driver of a headless Chromium with one empty window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location, driver = map(shutil.which, PROGRAMS)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def until(browser, condition, *arguments):
    """Wait until a condition, of JavaScript, is true; returns its value."""
    from selenium.webdriver.support.ui import WebDriverWait

    said = f"not true within 20 seconds: {condition}"
    return WebDriverWait(browser, 20, 0.02).until(lambda b: b.execute_script(f"return {condition}", *arguments), said)
