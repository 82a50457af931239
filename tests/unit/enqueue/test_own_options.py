"""What a task says for its messages holds for each call that does not say otherwise; None says nothing."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery._state import pop_current_task, push_current_task

from proj import config, worker
from proj.celeryconfig import configuration
from proj.enqueue.app import App
from proj.enqueue.composing import Composed, Composer, Recorder
from proj.errors import BadInput

#: What `celery call` gives for each of its options that it was not given.
NONE = dict.fromkeys(("countdown", "eta", "expires", "queue", "exchange", "routing_key"))


def application(**given: Any) -> App:
    app = App("own", set_as_current=False)
    settings = config.Settings(proj_queues="slow", **given)
    app.config_from_object(configuration(settings))
    worker.install(app, settings)

    @app.task(shared=False, name="owner", queue="slow", priority=7, expires=60, compression="gzip")
    def owner() -> None: ...

    @app.task(shared=False, name="silent", ignore_result=True)
    def silent() -> None: ...

    return app


@pytest.fixture(scope="module")
def app() -> App:
    return application()


def _by_name(app: App, **options: Any) -> Recorder:
    recorder = Recorder(app.connection_for_write())
    app.send_task("owner", producer=recorder, **options)
    return recorder


def _by_task(app: App, **options: Any) -> Recorder:
    recorder = Recorder(app.connection_for_write())
    app.tasks["owner"].apply_async(producer=recorder, declare=[], **options)
    return recorder


CALLERS = pytest.mark.parametrize("call", [_by_name, _by_task])


def _said(recorder: Recorder) -> tuple[Any, ...]:
    """The queue of the one message, its priority, its lifetime in ms, and its compression."""
    [(message, address)] = recorder.recorded
    properties = message.properties
    compression = properties["application_headers"].get("compression")
    return address["routing_key"], properties.get("priority"), properties.get("expiration"), compression


@CALLERS
@pytest.mark.parametrize("options", [{}, {"priority": None, "compression": None, "queue": None}], ids=str)
def test_call_that_says_nothing(call: Callable[..., Recorder], app: App, options: dict[str, Any]) -> None:
    """By the name of the task as by the task itself."""
    assert _said(call(app, **options)) == ("slow", 7, "60000", "application/x-gzip")


def test_celery_call_says_nothing(app: App) -> None:
    """The command sends by name, with None for each option that it was not given."""
    assert _said(_by_name(app, serializer="json", **NONE)) == ("slow", 7, "60000", "application/x-gzip")


@CALLERS
def test_call_that_says_otherwise(call: Callable[..., Recorder], app: App) -> None:
    """The call comes before the task."""
    options = {"queue": "proj.tasks", "priority": 0, "expires": 5, "compression": "bzip2"}
    assert _said(call(app, **options)) == ("proj.tasks", 0, "5000", "application/x-bz2")


@CALLERS
def test_call_that_expires_before_it_may_start(call: Callable[..., Recorder], app: App) -> None:
    """By the lifetime of the call or of the task: it would be a dead letter for certain."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    too_late: list[dict[str, Any]] = [
        {"countdown": 3, "expires": 1},
        {"countdown": 2.5, "expires": 3},
        {"countdown": 60},
        {"eta": soon, "expires": soon},
        {"countdown": 1, "expires": datetime(2020, 1, 1)},
    ]
    for options in too_late:
        with pytest.raises(BadInput, match="owner: it expires before it may start"):
            call(app, **options)
    in_time: list[dict[str, Any]] = [
        {"countdown": 3, "expires": 3.5},
        {"countdown": 59},
        {"eta": soon, "expires": 9},
    ]
    for options in in_time:
        assert call(app, **options).recorded


def test_call_that_never_expires_may_start_at_any_time(app: App) -> None:
    """For a task with a lifetime of its own, which None takes away."""
    assert _said(_by_task(app, countdown=90, expires=None))[2] is None


@CALLERS
def test_retry_and_next_step_may_expire_before_they_start(call: Callable[..., Recorder], app: App) -> None:
    """A refusal would fail the task that publishes them."""
    assert call(app, countdown=90, retries=1).recorded
    done = app.tasks["silent"]
    done.push_request(returned=True)
    push_current_task(done)
    try:
        assert call(app, countdown=90).recorded
    finally:
        pop_current_task()
        done.pop_request()


@pytest.mark.parametrize("more", [{}, {"headers": {"x": 1}}], ids=["template", "celery"])
def test_signature_that_says_nothing(app: App, more: dict[str, Any]) -> None:
    """Whether its message is made of a template or by Celery."""
    request = app.tasks["owner"].signature((), {}, queue=None, priority=None, **more)
    composed: Composed = Composer(app).compose(request)
    assert (composed.routing_key, composed.priority) == ("slow", 7)


@pytest.mark.parametrize(("url", "is_told"), [("rpc://", True), ("db+sqlite:///results.sqlite3", False)])
@pytest.mark.parametrize("later", ["rpc://", "db+sqlite:///others.sqlite3"])
def test_store_is_told_of_each_message_if_it_prepares_for_it(url: str, is_told: bool, later: str) -> None:
    """As the settings say: Celery's own setting does not change the store of an application."""
    app = application(celery_result_backend=url)
    app.conf.result_backend = later
    template = app.templates.find(app.tasks["silent"], ignore_result=False)
    assert template
    assert template.tells_store == is_told


@pytest.mark.parametrize("more", [{}, {"headers": {"x": 1}}], ids=["template", "celery"])
def test_batch_over_rpc_takes_what_has_no_result(more: dict[str, Any]) -> None:
    """Whether the task says so or the call; the results of others would be received by nobody."""
    app = application(celery_result_backend="rpc://")
    owner, silent = app.tasks["owner"], app.tasks["silent"]
    composer = Composer(app)

    for request in (silent.s(), silent.s().set(ignore_result=None), owner.s().set(ignore_result=True)):
        composer.compose(request.set(**more))
    for request in (owner.s(), silent.s().set(ignore_result=False), app.signature("other.program")):
        with pytest.raises(BadInput, match="many messages at once have no results over rpc://"):
            composer.compose(request.set(**more))
