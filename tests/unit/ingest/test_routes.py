"""Routes are checked when they are read, and each says what it makes of a body."""

import json
from pathlib import Path
from typing import Any

import pytest

from proj import config, worker
from proj.celeryconfig import configuration
from proj.dead_letters.reasons import Reason
from proj.enqueue.app import App
from proj.errors import ConfigError, ExitCode
from proj.ingest import routes
from proj.ingest.routes import MAX_BODY, Route
from proj.ingest.rubbish import Rubbish

TOML = """
[[route]]
queue = "orders"
decoder = "json"
task = "sum"
work_queue = "slow"
arguments = {Number1 = "x", Number2 = "y"}
"""


def application(**settings: Any) -> App:
    app = App("routes", set_as_current=False)
    given = config.Settings(proj_queues="slow", **settings)
    app.config_from_object(configuration(given))
    worker.install(app, given)

    @app.task(shared=False, name="sum", pydantic=True)
    def sum_(x: int, y: int = 0) -> int:
        return x + y

    @app.task(shared=False, name="print")
    def print_(text: str, *, times: int = 1) -> None: ...

    @app.task(shared=False, name="named")
    def named(*, x: int) -> None: ...

    app.conf.task_routes = {"placed": {"queue": "slow"}}

    @app.task(shared=False, name="placed")
    def placed(x: int, /, *rest: int, **more: int) -> None: ...

    return app


def route(**keys: Any) -> Route:
    (one,) = routes.parse(application(), {"route": [{"queue": "q", "decoder": "json", "task": "sum"} | keys]})
    return one


def problem(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        route(**keys)
    return str(caught.value)


def test_routes_are_read_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "routes.toml").write_text(TOML)
    table = {"queue": "orders", "decoder": "json", "task": "sum", "work_queue": "slow"}
    table["arguments"] = {"Number1": "x", "Number2": "y"}  # type: ignore[assignment]
    (tmp_path / "routes.json").write_text(json.dumps({"route": [table]}))

    for name in ("routes.toml", "routes.json"):
        (one,) = routes.load(application(proj_ingest_routes=tmp_path / name))
        assert (one.queue, one.task.name, one.work_queue) == ("orders", "sum", "slow")
        assert one.arguments(b'{"Number1": 1, "Number2": 2}') == ((), {"x": 1, "y": 2})


def test_default_routes_are_those_of_the_classic_programs() -> None:
    from proj import app

    text, sums = routes.parse(app, routes.DEFAULT)
    assert (text.queue, text.arguments(b"First message.")) == ("task_queue", (("First message.",), {}))
    assert (sums.queue, sums.work_queue) == ("add", "proj.tasks")
    assert sums.arguments(b'{"Number1": 221, "Number2": 345}') == ((), {"x": 221, "y": 345})


def test_messages_go_to_the_queue_of_their_task() -> None:
    """Unless the route names another."""
    assert route().work_queue == "proj.tasks"
    assert route(task="placed", decoder="json-args").work_queue == "slow"
    assert route(task="placed", decoder="json-args", work_queue="proj.tasks").work_queue == "proj.tasks"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"queu": "x"}, "unknown key 'queu' (did you mean queue?)"),
        ({"queue": 5}, "queue must be a text, got 5"),
        ({"arguments": "x"}, "arguments must be a table, got 'x'"),
        ({"arguments": {"a": 1}}, "arguments maps keys to names of arguments, got {'a': 1}"),
        ({"task": "som"}, "there is no task 'som' (did you mean sum?)"),
        ({"decoder": "jason"}, "there is no decoder 'jason' (did you mean json?)"),
        ({"arguments": {"Number1": "z"}}, "sum has no argument 'z' (usage: sum(x, y))"),
        ({"arguments": {"a": "x", "b": "x"}}, "two keys stand for the argument 'x'"),
        ({"decoder": "text", "task": "named"}, "named does not take one text: too many positional arguments"),
        ({"decoder": "json-args", "task": "named"}, "named takes its arguments only by name"),
        ({"task": "placed"}, "placed takes x only by its position"),
        ({"work_queue": ""}, "there is no work queue ''"),
        ({"work_queue": "slo"}, "there is no work queue 'slo' (did you mean slow?)"),
        ({"queue": ""}, "queue '' is longer than 255 bytes, or empty"),
        ({"queue": "proj.tasks"}, "queue 'proj.tasks' is no foreign queue and would come back to it"),
        ({"queue": "slow"}, "queue 'slow' is no foreign queue (name the queue that programs fill)"),
        ({"queue": "proj.dead"}, "queue 'proj.dead' is no foreign queue"),
        ({"queue": "amq.gen-x"}, "queue 'amq.gen-x' is no foreign queue"),
    ],
)
def test_a_wrong_route_is_refused_with_its_number(keys: dict[str, Any], words: str) -> None:
    assert problem(**keys).startswith(f"route 1: {words}")


def test_arguments_of_any_name_are_taken_where_the_task_does() -> None:
    app = application()

    @app.task(shared=False, name="any")
    def any_(**more: int) -> None: ...

    data = {"queue": "q", "decoder": "json", "task": "any", "arguments": {"A": "a"}}
    (one,) = routes.parse(app, {"route": [data]})
    assert one.arguments(b'{"A": 1, "b": 2}') == ((), {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the file must be a table, got []"),
        ({}, "there is no route (write one with [[route]], queue, decoder and task)"),
        ({"route": {}}, "there is no route"),
        ({"routes": []}, "unknown key 'routes' (did you mean route?)"),
        ({"route": [5]}, "route 1: a route must be a table, got 5"),
        ({"route": [{"queue": "q", "task": "sum"}]}, "route 1: it has no decoder"),
        (
            {"route": [{"queue": "q", "decoder": "json", "task": "sum"}] * 2},
            "route 2: queue 'q' has a route already",
        ),
    ],
)
def test_a_wrong_file_is_refused(data: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        routes.parse(application(), data)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.toml", None, "the file cannot be read: No such file or directory"),
        ("wrong.toml", b"[[route", "it is not TOML: "),
        ("wrong.json", b"{", "it is not JSON: "),
        ("latin.toml", b"\xe9", "it is not TOML: "),
        ("deep.json", b"[" * 100_000, "it is not JSON: "),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, text: bytes | None, words: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        routes.load(application(proj_ingest_routes=path))
    assert str(caught.value).startswith(f"PROJ_INGEST_ROUTES ({path}): {words}")
    assert caught.value.exit_code == ExitCode.USAGE


def test_default_routes_that_do_not_fit_the_tasks_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as when somebody has removed the tasks that the project comes with."""
    gone = {"queue": "q", "decoder": "text", "task": "gone"}
    monkeypatch.setattr(routes, "DEFAULT", {"route": [gone]})
    with pytest.raises(ConfigError) as caught:
        routes.load(application())
    assert "the default routes: route 1: there is no task 'gone'" in str(caught.value)
    assert str(caught.value).endswith("set PROJ_INGEST_ROUTES to a file with routes of yours)")


def crash(_: bytes) -> None:
    raise KeyError("oh")


@pytest.mark.parametrize(
    ("keys", "body", "reason", "words"),
    [
        ({}, b"no json", Reason.UNREADABLE, "the body is not JSON"),
        ({}, b" " * (MAX_BODY + 1), Reason.UNREADABLE, "the body has 2,097,153 bytes, more than 2,097,152"),
        ({}, b'{"x": "one"}', Reason.INVALID, "sum: argument x: Input should be a valid integer"),
        ({}, b'{"y": 1}', Reason.INVALID, "sum: argument x is missing"),
        ({}, b'{"x": 1, "z": 1}', Reason.INVALID, "sum: there is no argument z"),
        ({}, b'{"x": {"__type__": "uuid", "__value__": "0"}}', Reason.INVALID, "sum: "),
        ({"decoder": "json-args"}, b"[1, 2, 3]", Reason.INVALID, "sum: too many arguments, 3 is left over"),
        ({"decoder": "json-args"}, b"[" * 200 + b"]" * 200, Reason.INVALID, "sum: "),
        (
            {"decoder": f"{__name__}:crash"},
            b"x",
            Reason.UNREADABLE,
            f"the decoder {__name__}:crash failed: KeyError",
        ),
        ({"decoder": "json:loads"}, b'{"x": 1}', Reason.UNREADABLE, "the decoder json:loads failed: "),
    ],
)
def test_rubbish_has_a_reason(keys: dict[str, Any], body: bytes, reason: Reason, words: str) -> None:
    with pytest.raises(Rubbish) as caught:
        route(**keys).arguments(body)
    assert (caught.value.reason, caught.value.problem[: len(words)]) == (reason, words)


def test_a_lone_surrogate_is_no_text_that_a_message_can_carry() -> None:
    with pytest.raises(Rubbish, match="JSON cannot carry"):
        route(task="print").arguments(rb'{"text": "\ud800"}')
