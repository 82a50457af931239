"""A real browser, one for each test process, and an empty page of it for each test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.lib.missing import missing
from tests.lib.waiting import PATIENCE

#: Names of the browser on PATH, and its place on macOS. The first has no window: for the same pages it takes
#: a third of the processor's time, and none between them.
CHROMIUM = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
CHROMIUM_ON_MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")

#: It talks to nobody by itself.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)

INSTALL_HINT = "Chromium was not found: install it with `sudo apt-get install chromium` (Debian)"


def _find_chromium() -> Path:
    for name in CHROMIUM:
        if found := shutil.which(name):
            return Path(found)
    if not CHROMIUM_ON_MACOS.exists():
        missing(INSTALL_HINT)
    return CHROMIUM_ON_MACOS


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = _find_chromium()
    with sync_playwright() as playwright:
        # Its sandbox refuses root.
        browser = playwright.chromium.launch(
            executable_path=path, args=QUIET, chromium_sandbox=os.geteuid() != 0
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of an empty browser; the test fails when it asks another machine for anything."""
    asked: list[str] = []
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    expect.set_options(timeout=PATIENCE * 1000)
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert [url for url in asked if urlsplit(url).hostname not in {"127.0.0.1", "localhost"}] == []
