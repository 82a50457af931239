"""What people see of workers, tasks and queues in Flower's pages, in a real browser."""

import base64
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Error, Page, expect

from tests.flower.conftest import Site
from tests.lib.bundle import Bundle
from tests.lib.erlang import count_often
from tests.lib.flower import LOGIN, PASSWORD, SAVE_INTERVAL, Flower
from tests.lib.waiting import eventually

Start = Callable[..., Flower]


def browse_as(page: Page, login: str) -> None:
    token = base64.b64encode(login.encode()).decode()
    page.context.set_extra_http_headers({"Authorization": f"Basic {token}"})


def _seen(page: Page, url: str) -> str:
    """The status of the answer; a browser with a window has an error instead, for it asks for a login."""
    try:
        answer = page.goto(url)
    except Error as error:
        return error.message
    assert answer is not None
    return str(answer.status)


def show_worker(page: Page, url: str) -> None:
    """Open the page of a worker, once that has answered Flower within the second that it waits."""

    def is_known() -> bool:
        answer = page.goto(url)
        return answer is not None and answer.ok

    eventually("the worker's page is there", is_known)


@pytest.mark.celery_docs("Monitoring: Flower")
def test_a_task_is_seen_from_its_start_to_its_end(site: Site, page: Page) -> None:
    """The page of the workers follows by itself; that of the task tells its arguments and how it ended."""
    browse_as(page, LOGIN)
    page.goto(site.flower.url)
    expect(page.locator("#workers-online")).to_have_text("1")
    expect(page.locator("#workers-table tbody tr")).to_contain_text("w@site")
    before = int(page.locator("#workers-succeeded").inner_text())
    site.bundle.enqueue("task", "proj.tasks.gated", '"a gate"', "--id", "gated")
    expect(page.locator("#workers-active")).to_have_text("1")
    task = page.context.new_page()
    task.goto(f"{site.flower.url}/task/gated")
    expect(task.locator(".badge")).to_have_text("STARTED")
    expect(task.locator("#task-page")).to_contain_text("a gate")

    (site.bundle.folder / "a gate").touch()
    expect(page.locator("#workers-succeeded")).to_have_text(str(before + 1))
    task.reload()
    expect(task.locator(".badge")).to_have_text("SUCCESS")


def test_a_failed_task_shows_its_traceback(site: Site, page: Page, request: pytest.FixtureRequest) -> None:
    """With the line that raised."""
    site.bundle.enqueue("add", "221", "345", "--count", "3")
    site.bundle.enqueue("task", "proj.tasks.fail", "--id", "cold")

    eventually("the failure is known", lambda: "FAILURE" in site.flower.get("/task/cold", LOGIN).text)
    browse_as(page, LOGIN)
    page.goto(f"{site.flower.url}/tasks")
    cold = page.get_by_role("link", name="cold")
    expect(cold).to_be_visible()
    if folder := request.config.getoption("--screenshots"):
        page.screenshot(path=f"{folder}/flower.png", clip={"x": 0, "y": 0, "width": 1280, "height": 620})
    cold.click()
    expect(page.locator("#task-page")).to_contain_text("Traceback (most recent call last)")
    expect(page.locator("#task-page")).to_contain_text('raise ValueError("the coffee is cold")')


def test_no_page_without_the_login(site: Site, page: Page) -> None:
    """The browser is refused, and let in with it."""
    seen = _seen(page, site.flower.url)
    assert seen == "401" or "ERR_INVALID_AUTH_CREDENTIALS" in seen
    expect(page.locator("#workers-table")).to_have_count(0)

    browse_as(page, LOGIN)
    page.goto(site.flower.url)
    expect(page.locator("#workers-table")).to_be_visible()


@pytest.mark.used_vhost
def test_read_only_has_no_button_that_stops_a_worker(
    site: Site, bundle: Bundle, flower: Start, page: Page
) -> None:
    """It is the default. The control: when it is asked for, the button is there and works."""
    browse_as(page, LOGIN)
    show_worker(page, f"{site.flower.url}/worker/w@site")
    expect(page.locator("#worker-shutdown")).to_have_count(0)

    monitor = flower(f"--basic-auth={LOGIN}", "--read-only=false")
    worker = bundle.worker("-n", "w@host").ready()
    show_worker(page, f"{monitor.url}/worker/w@host")
    page.locator("#worker-group").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#worker-shutdown").click()
    assert worker.ends() == 0
    assert site.worker.process.poll() is None


def test_the_broker_page_shows_how_much_waits(bundle: Bundle, flower: Start, page: Page) -> None:
    """Each work queue and the dead letters, also while no worker runs."""
    bundle.env["PROJ_QUEUES"] = "slow"
    count_often(bundle, "slow")
    monitor = flower()
    bundle.enqueue("add", "1", "2", "--count", "3")
    bundle.enqueue("add", "1", "2", "--queue", "slow")

    def waiting() -> list[str]:
        page.goto(f"{monitor.url}/broker")
        rows = [page.locator(f"#queue-table tr[id='{name}'] td") for name in ("proj.tasks", "slow")]
        return [row.nth(3).inner_text() if row.count() else "" for row in rows]

    # The management API is late.
    eventually("three messages are ready, and one", lambda: waiting() == ["3", "1"])
    expect(page.locator("#queue-table tr[id='proj.dead']")).to_be_visible()


def test_a_management_api_that_cannot_be_asked_is_told_on_the_page(
    bundle: Bundle, flower: Start, page: Page
) -> None:
    """With the way out, one line of the log for each look, no password, and all other pages as they were."""
    monitor = flower(env={"PROJ_MANAGEMENT_URL": "http://127.0.0.1:1"})
    response = page.goto(f"{monitor.url}/broker")
    assert response is not None
    assert response.status == 503
    expect(page.locator("main")).to_contain_text("rabbitmq-plugins enable rabbitmq_management")
    page.get_by_role("link", name="Tasks", exact=True).click()
    expect(page.locator("#tasks-table")).to_be_visible()
    assert monitor.text().count("no management API answers") == 1

    wrong = bundle.node.management_url.replace("://", f"://guest:{PASSWORD}@") + "/api/"
    monitor = flower(f"--broker-api={wrong}", "--persistent=false")
    page.goto(f"{monitor.url}/broker")
    expect(page.locator("main")).to_contain_text("refused user 'guest'")
    assert PASSWORD not in page.content() + monitor.text()


@pytest.mark.used_vhost
def test_only_the_newest_tasks_are_kept(bundle: Bundle, flower: Start) -> None:
    """Which bounds Flower's memory."""
    monitor = flower("--max-tasks=2").hears_events()
    bundle.worker().ready().watched()
    for number in range(3):
        bundle.enqueue("add", "1", "2", "--id", f"task-{number}", "--wait")

    eventually("the last is known", lambda: "SUCCESS" in monitor.get("/task/task-2").text)
    assert [monitor.get(f"/task/task-{number}").status for number in range(3)] == [404, 200, 200]


@pytest.mark.used_vhost
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_flower_knows_outlives_it(
    how: signal.Signals, bundle: Bundle, flower: Start, page: Page
) -> None:
    """SIGTERM loses nothing, SIGKILL what came since the last saving."""
    # With no saving between, only that at the end is left to SIGTERM.
    interval = SAVE_INTERVAL if how is signal.SIGKILL else 600_000
    first = flower(f"--state-save-interval={interval}").hears_events()
    worker = bundle.worker().ready().watched()
    bundle.enqueue("add", "1", "2", "--id", "kept", "--wait")
    eventually("the task is known", lambda: "SUCCESS" in first.get("/task/kept").text)
    worker.kill()
    if how is signal.SIGTERM:
        assert first.stop() == 0
    else:
        seen = saved_at(bundle)
        eventually("it is saved since", lambda: saved_at(bundle) > seen)
        first.kill()

    page.goto(f"{flower().url}/tasks")
    expect(page.locator("#tasks-table tbody tr")).to_contain_text("kept")
    expect(page.locator("#tasks-table tbody tr")).to_contain_text("SUCCESS")


def saved_at(bundle: Bundle) -> float:
    """When the state was saved last, whichever way Python's `shelve` stores it here: the oldest of its files,
    since a save that was killed before the last of them is in place is none."""
    files = (bundle.folder / "state/flower").glob("state*")
    return min((path.stat().st_mtime for path in files if ".tmp" not in path.name), default=0.0)
