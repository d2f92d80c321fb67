"""A web server for the built book and a headless Chromium to read it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from tools.browser import launch, served

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"

MISSING = "NOT TESTED: no Chromium that starts; `make setup-test` says how to get one"


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Address of the built book on this machine, with a slash at its end."""
    if not (HTML / "index.html").is_file():
        pytest.fail("the book is not built: run `make html` first")
    with served(HTML) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium: the system's, else Playwright's own."""
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except Error as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{MISSING}\n{error}")
        yield browser
        browser.close()
