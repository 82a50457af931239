"""The delivery that is being delayed when its connection is lost, or when the worker ends."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from proj.enqueue import publish
from proj.errors import BrokerUnreachable
from proj.worker import delaying
from proj.worker.delaying import Delays
from tests.lib.waiting import PATIENCE, eventually


class _Broker:
    """One whose confirms come when its gate is open."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.gate = threading.Event()
        self.error: Exception | None = None

    def send(self, *_: Any, task_id: str, **__: Any) -> None:
        self.published.append(task_id)
        if self.error:
            raise self.error
        assert self.gate.wait(PATIENCE)


class _Request(SimpleNamespace):
    """A delivery, which notes how it is settled."""

    id: str
    name = "proj.tasks.add"
    message = None

    def say(self, *_: Any, **__: Any) -> None: ...

    def end_as_copy(self) -> None:
        self.settled.append(self.id)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> _Broker:
    broker = _Broker()
    monkeypatch.setattr(publish, "send", broker.send)
    monkeypatch.setattr(delaying, "_copy", lambda *_: None)
    monkeypatch.setattr(delaying, "_queue_of", lambda _: "proj.tasks")
    return broker


def _delays(broker: _Broker) -> tuple[Delays, list[str]]:
    """Two deliveries that wait, the first of which is published, and what is settled."""
    app = SimpleNamespace(settings=SimpleNamespace(proj_consumer_timeout=1800))
    settled: list[str] = []

    def give_back(*_: Any) -> None:
        settled.append("given back")

    delays = Delays(app, SimpleNamespace(call_soon_ack=give_back))
    for task_id in ("first", "second"):
        request: Any = _Request(id=task_id, settled=settled, give_back=give_back)
        delays.send(request, 60, "eta")
    eventually("the first is published", lambda: broker.published)
    return delays, settled


def _idle(delays: Delays) -> None:
    eventually("nothing waits", lambda: delays._waiting.empty() and not delays._settling.locked())


def test_copy_that_is_on_its_way_at_the_end_is_settled(broker: _Broker) -> None:
    """No other one is published: their originals are delivered again."""
    delays, settled = _delays(broker)
    ending = threading.Thread(target=delays.finish)
    ending.start()
    eventually("the worker ends", delays._is_ending.is_set)
    assert settled == []
    broker.gate.set()
    ending.join(PATIENCE)

    delays.forget()

    assert settled == ["first"]
    _idle(delays)
    assert broker.published == ["first"]


def test_end_waits_for_a_confirm_within_bounds(broker: _Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delaying, "LAST_CONFIRM", 0.01)
    delays, settled = _delays(broker)

    delays.finish()

    assert settled == []
    delays.forget()
    broker.gate.set()
    _idle(delays)
    assert settled == []


def test_end_waits_for_no_retry(broker: _Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's connection ends soon, and the broker delivers the message again."""
    monkeypatch.setattr(delaying, "FIRST_BACKOFF", PATIENCE)
    monkeypatch.setattr(delaying, "LAST_CONFIRM", PATIENCE)
    broker.error = BrokerUnreachable("not now")
    delays, settled = _delays(broker)
    began = time.monotonic()

    delays.finish()

    assert time.monotonic() - began < PATIENCE
    _idle(delays)
    assert (broker.published, settled) == (["first"], [])


def test_lost_connection_waits_for_no_confirm(broker: _Broker) -> None:
    """What came on it cannot be acknowledged, and is delivered again."""
    delays, settled = _delays(broker)

    delays.forget()

    assert not broker.gate.is_set()
    broker.gate.set()
    _idle(delays)
    assert (broker.published, settled) == (["first"], [])
