"""Whatever one message leads to becomes a task, or a dead letter with its reason."""

from typing import Any

import amqp

from proj import config, worker
from proj.celeryconfig import configuration
from proj.dead_letters.reasons import Reason
from proj.enqueue.app import App
from proj.ingest import routes
from proj.ingest.composing import Composer


def test_an_error_of_others_makes_a_dead_letter_of_the_message() -> None:
    """Such as one of a router, which Celery asks about each message."""

    def router(_name: str, args: tuple[Any, ...], *_: Any, **__: Any) -> None:
        if args:
            raise RuntimeError("no way")

    app = App("composing", set_as_current=False)
    settings = config.Settings()
    app.config_from_object(configuration(settings))
    worker.install(app, settings)
    app.conf.task_routes = (router,)

    @app.task(shared=False, name="print")
    def print_(text: str) -> None: ...

    [route] = routes.parse(app, {"route": [{"queue": "q", "decoder": "text", "task": "print"}]})
    message = amqp.Message(b"First message.")
    message.delivery_info = {}
    composed = Composer(app, route).compose(message)
    assert composed.rubbish
    assert composed.rubbish.reason == Reason.INVALID
    assert "RuntimeError('no way')" in composed.rubbish.problem
    assert (composed.exchange, composed.routing_key) == ("proj.dead", "q")
    assert composed.message.body == b"First message."
