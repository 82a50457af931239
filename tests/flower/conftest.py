"""A real browser for these tests, and a Flower for each test that asks for one."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from proj.private_node.node import BrokerNode
from tests.lib.bundle import GATED_TASK, Bundle, shared_vhost
from tests.lib.erlang import count_often
from tests.lib.flower import LOGIN, PASSWORD, Flower
from tests.lib.missing import missing
from tests.lib.waiting import PATIENCE
from tests.lib.worker import Worker

#: Names of the browser on PATH, and its place on macOS.
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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


@pytest.fixture(scope="package")
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


@dataclass(frozen=True)
class Site:
    """A worker named `w@site`, and a Flower that asks for a login; all of it with passwords to keep."""

    bundle: Bundle
    worker: Worker
    flower: Flower


FAILING_TASK = """
    @app.task(name="proj.tasks.fail")
    def fail() -> None:
        raise ValueError("the coffee is cold")
"""


@pytest.fixture(scope="package")
def site(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For the tests that only look: to start it takes seconds."""
    with Bundle(node, vhost=shared_vhost("site"), folder=tmp_path_factory.mktemp("site")) as bundle:
        bundle.management("PUT", "users/anna", {"password": PASSWORD, "tags": "monitoring"})
        rights = dict.fromkeys(("configure", "write", "read"), ".*")
        bundle.management("PUT", f"permissions/{bundle.vhost}/anna", rights)
        bundle.env["CELERY_BROKER_URL"] = bundle.url.replace("guest:guest", LOGIN)
        count_often(bundle)
        bundle.add_task(FAILING_TASK)
        bundle.add_task(GATED_TASK)
        flower = Flower(bundle, env={"FLOWER_BASIC_AUTH": LOGIN})
        try:
            worker = bundle.worker("-n", "w@site")
            flower.ready().hears_events()
            worker.watched()
            yield Site(bundle, worker, flower)
        finally:
            flower.kill()


@pytest.fixture
def flower(bundle: Bundle) -> Iterator[Callable[..., Flower]]:
    """Starts a Flower with the options that are given, and waits until it listens."""
    with ExitStack() as started:

        def start(*options: str, env: dict[str, str] | None = None, app: str = "proj") -> Flower:
            flower = Flower(bundle, *options, env=env, app=app)
            started.callback(flower.kill)
            return flower.ready()

        yield start
