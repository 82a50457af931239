"""Whatever one message leads to becomes a task, or a dead letter with its reason."""

from typing import Any

import amqp
import pytest

from proj import config, worker
from proj.celeryconfig import configuration
from proj.dead_letters.reasons import Reason
from proj.enqueue.app import App
from proj.ingest import routes
from proj.ingest.composing import Composed, Composer


def application(**settings: Any) -> App:
    app = App("composing", set_as_current=False)
    given = config.Settings(**settings)
    app.config_from_object(configuration(given))
    worker.install(app, given)

    @app.task(shared=False, name="print", priority=7)
    def print_(text: str) -> None: ...

    return app


def composed(app: App, **properties: Any) -> Composed:
    [route] = routes.parse(app, {"route": [{"queue": "q", "decoder": "text", "task": "print"}]})
    message = amqp.Message(b"First message.", **properties)
    message.delivery_info = {}
    return Composer(app, route).compose(message)


def test_an_error_of_others_makes_a_dead_letter_of_the_message() -> None:
    """Such as one of a router, which Celery asks about each message."""

    def router(_name: str, args: tuple[Any, ...], *_: Any, **__: Any) -> None:
        if args:
            raise RuntimeError("no way")

    app = application()
    app.conf.task_routes = (router,)

    found = composed(app)

    assert found.rubbish
    assert found.rubbish.reason == Reason.INVALID
    assert "RuntimeError('no way')" in found.rubbish.problem
    assert (found.exchange, found.routing_key) == ("proj.dead", "q")
    assert found.message.body == b"First message."


def test_results_that_travel_as_messages_are_no_reason_to_refuse() -> None:
    """Over `rpc://` the task has a result all the same: the reply is sent when the worker has stored it."""
    found = composed(application(celery_result_backend="rpc://"), reply_to="theirs")

    assert found.rubbish is None
    assert found.message.properties["application_headers"]["ignore_result"] is False


@pytest.mark.parametrize("reply_to", [None, "theirs"])
@pytest.mark.parametrize(("given", "priority"), [(None, 7), (0, 0), (255, 9)])
def test_priority_of_the_task_holds_unless_the_message_has_one(
    reply_to: str | None, given: int | None, priority: int
) -> None:
    """Also for a message that asks for a reply, which Celery itself composes."""
    found = composed(application(), priority=given, reply_to=reply_to)

    assert found.message.properties["priority"] == priority
