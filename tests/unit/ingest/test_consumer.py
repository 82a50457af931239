"""How `proj ingest` serves its queues in turn, and sends again what the broker did not answer."""

import json
from types import SimpleNamespace

import amqp
import pytest
from amqp import spec
from amqp.exceptions import PreconditionFailed

from proj import config, queues, worker
from proj.celeryconfig import configuration
from proj.enqueue.app import App
from proj.ingest import routes
from proj.ingest.consumer import WRITE, Consumer
from proj.ingest.source import PREFETCH
from proj.rabbitmq.publishing import Sent

#: Bytes of a message, of which the buffer takes fewer than are fetched of a queue.
LARGE = WRITE // 10


class _Window:
    """As much of a window as a consumer needs; all messages are confirmed when they are waited for."""

    def __init__(self, channel: object) -> None:
        self.channel = channel
        self.sent: list[Sent] = []
        self.unwritten = 0

    def put(self, sent: Sent) -> None:
        self.sent.append(sent)
        self.unwritten += len(sent.message.body)

    def wait(self, _deadline: float) -> None:
        for each in self.sent:
            each.answered = True


def _consumer(*queues: str) -> Consumer:
    """Consumes these queues, over no connection."""
    app = App("consuming", set_as_current=False)
    settings = config.Settings()
    app.config_from_object(configuration(settings))
    worker.install(app, settings)

    @app.task(shared=False, name="print")
    def print_(text: str) -> None: ...

    table = [{"queue": queue, "decoder": "text", "task": "print"} for queue in queues]
    consumer = Consumer(app, routes.parse(app, {"route": table}))
    consumer._broker = SimpleNamespace(channel=lambda: SimpleNamespace(close=lambda: None))
    consumer._window = _Window(consumer._broker.channel())
    return consumer


def _deliver(consumer: Consumer, queue: str, *bodies: bytes) -> None:
    [source] = [each for each in consumer._sources if each.queue == queue]
    for body in bodies:
        message = amqp.Message(body)
        message.delivery_info = {"delivery_tag": len(source.deliveries) + 1}
        source._on_message(message)


def _texts(consumer: Consumer) -> list[str]:
    """The arguments of the tasks that were sent, in their order."""
    return [json.loads(each.message.body)[0][0] for each in consumer._window.sent]


def test_a_backlog_of_large_messages_does_not_hold_up_the_other_queues() -> None:
    """As many as fill the buffer are written of one queue, then it is the next queue's turn."""
    consumer = _consumer("backlog", "another", "last")
    large = [b"x" * LARGE] * PREFETCH
    _deliver(consumer, "backlog", *large)
    _deliver(consumer, "another", *large)
    _deliver(consumer, "last", b"last")

    for _ in range(3):
        assert consumer._forward()
        consumer._window.unwritten = 0
        _deliver(consumer, "backlog", *large)

    assert "last" in _texts(consumer)


def test_what_is_sent_again_after_a_message_that_is_too_large_is_marked_as_a_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker may have routed it before it closed the channel; rubbish is no task, and has no mark."""
    monkeypatch.setattr("proj.ingest.consumer.Window", _Window)
    consumer = _consumer("q")
    _deliver(consumer, "q", b"task", b"\xff")
    consumer._forward()
    assert not any(map(_is_marked, consumer._window.sent))

    consumer._isolate(PreconditionFailed(method_sig=spec.Basic.Publish))

    task, rubbish = consumer._window.sent
    assert (task.exchange, _is_marked(task)) == ("proj.direct", True)
    assert (rubbish.exchange, _is_marked(rubbish)) == ("proj.dead", False)


def _is_marked(sent: Sent) -> bool:
    headers = sent.message.properties["application_headers"]
    mark = queues.REPEAT_HEADER
    return mark.encode() in headers if isinstance(headers, bytes) else mark in headers
