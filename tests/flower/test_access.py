"""Who may see and do what through Flower, asked by a client that is no browser."""

import re
from collections.abc import Callable, Iterator

import pytest
from flower.urls import handlers
from tornado.web import RequestHandler

from tests.flower.conftest import Site
from tests.lib.bundle import Bundle
from tests.lib.flower import LOGIN, PASSWORD, Answer, Flower
from tests.lib.waiting import eventually

Start = Callable[..., Flower]

#: What is open to all: it tells nothing about workers and tasks.
OPEN = ("/healthcheck", "/login", "/logout", "/static/")

#: What is asked with POST because it is long, and changes nothing.
READS_BY_POST = ("/tasks/datatable", "/login")


def routes(method: str) -> Iterator[str]:
    """A path for each of Flower's pages that take the method."""
    for rule in handlers:
        pattern, handler = (
            (rule.regex.pattern, rule.handler_class) if hasattr(rule, "regex") else (rule[0], rule[1])
        )
        if getattr(handler, method.lower()) is not getattr(RequestHandler, method.lower()):
            path = re.sub(r"\(\.[+*]\)", "x", pattern.rstrip("$")).replace("/?", "")
            if path != ".*":
                yield path


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_page_asks_for_the_login(site: Site, method: str) -> None:
    """Metrics, and the pages of the HTTP API, too."""
    paths = [path for path in routes(method) if not path.startswith(OPEN)]
    assert ("/metrics" if method == "GET" else "/api/worker/shutdown/x") in paths

    for login in ("", "anna:wrong", f"{LOGIN}x"):
        assert {path: site.flower.ask(method, path, login).status for path in paths} == dict.fromkeys(
            paths, 401
        )


def test_what_is_open_tells_nothing(site: Site) -> None:
    """Neither of workers nor of tasks."""
    for path in ("/healthcheck", "/logout", "/no/such/page"):
        answer = site.flower.get(path)
        assert answer.status in {200, 404}
        assert "w@site" not in answer.text
        assert "proj.tasks" not in answer.text


def test_read_only_refuses_everything_that_does_something(site: Site) -> None:
    """Whoever has the login, and whatever is asked for."""
    paths = [path for path in routes("POST") if not path.startswith(READS_BY_POST)]
    assert len(paths) > 10

    answers = {path: site.flower.ask("POST", path, LOGIN) for path in paths}
    assert {path: (answer.status, answer.text) for path, answer in answers.items()} == dict.fromkeys(
        paths, (403, "Read only mode is enabled")
    )


def test_metrics_are_read_with_the_login(site: Site) -> None:
    """As Prometheus does, with its `basic_auth`."""
    online = 'flower_worker_online{worker="w@site"} 1.0'
    eventually("it has heard of the worker", lambda: online in site.flower.get("/metrics", LOGIN).text)


def shown(site: Site, path: str) -> str:
    """A page; Flower waits but a second for workers and broker, and answers with an error then."""
    answers: list[Answer] = []

    def is_shown() -> bool:
        answers.append(site.flower.get(path, LOGIN))
        return answers[-1].status == 200

    eventually(f"{path} is shown", is_shown, seen=lambda: answers[-1].text)
    return answers[-1].text


def test_no_password_is_told(site: Site) -> None:
    """Neither the broker's nor Flower's own, in no page and no line of the log."""
    for path in (
        *("/", "/workers?json=1", "/tasks", "/broker", "/worker/w@site", "/metrics"),
        *("/api/workers?refresh=1&workername=w@site", "/api/queues/length", "/api/tasks"),
    ):
        assert PASSWORD not in shown(site, path), path
    assert "Broker: amqp://anna:**@" in site.flower.text()
    assert PASSWORD not in site.flower.text()


def test_pages_are_neither_framed_nor_kept(site: Site) -> None:
    """A page around it cannot borrow its buttons, and no cache keeps arguments of tasks."""
    headers = site.flower.get("/tasks", LOGIN).headers
    assert (headers["X-Frame-Options"], headers["Cache-Control"]) == ("DENY", "no-store")
    assert "max-age" in site.flower.get("/static/js/flower.js?v=1").headers["Cache-Control"]


def test_without_a_login_only_names_of_this_machine_are_answered(bundle: Bundle, flower: Start) -> None:
    """So that a foreign page, which has its own name resolve to 127.0.0.1, reads nothing."""
    monitor = flower()
    assert monitor.get("/tasks").status == 200
    assert monitor.get("/tasks", Host="localhost:5555").status == 200
    assert monitor.get("/tasks", Host="[::1]:5555").status == 200
    assert monitor.get("/tasks", Host="flower.example").status == 403
    assert monitor.get("/static/js/flower.js", Host="localhost.example").status == 403
    assert monitor.get("/api/workers").status == 401


def test_a_foreign_page_cannot_send_a_form(bundle: Bundle, flower: Start) -> None:
    """Though the browser adds the login; and any name of the server is answered to those who have it."""
    monitor = flower(f"--basic-auth={LOGIN}", "--read-only=false", "--persistent=false")
    path = "/api/worker/shutdown/nobody"

    assert monitor.ask("POST", path, LOGIN, Sec_Fetch_Site="cross-site").status == 403
    assert monitor.ask("POST", path, LOGIN, Origin="http://evil.example").status == 403
    assert monitor.ask("POST", path, LOGIN).status == 404  # it would have been done: there is no such worker
    assert monitor.get("/tasks", LOGIN, Host="flower.example").status == 200


# upstream: not reported; remove when Flower has a setting for its application, and exits in one line
def test_flower_alone(bundle: Bundle, flower: Start) -> None:
    """What we add is needed still: Flower by itself shows metrics to all, and passes over slips."""
    (bundle.folder / "plain.py").write_text(
        f'from celery import Celery\napp = Celery(broker="{bundle.url}")\n'
    )
    monitor = flower(f"--basic-auth={LOGIN}", "--adress=typo", app="plain")

    assert monitor.get("/metrics").status == 200
    assert "X-Frame-Options" not in monitor.get("/tasks", LOGIN).headers
