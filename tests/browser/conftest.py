"""A web server for the built book and a headless Chromium to read it with."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from tools.extras import BROWSERS

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"

#: No start-up traffic of the browser's own, no sandbox (containers), no GPU.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MISSING = "NOT TESTED: no Chromium that starts; `make setup-test` says how to get one"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, format: str, *args: object) -> None:
        """Drop the line."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Address of the built book on this machine, with a slash at its end."""
    if not (HTML / "index.html").is_file():
        pytest.fail("the book is not built: run `make html` first")
    handler = functools.partial(QuietHandler, directory=str(HTML))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium: the system's, else Playwright's own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        except Error as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{MISSING}\n{error}")
        yield browser
        browser.close()
