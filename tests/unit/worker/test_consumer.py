"""Acknowledgements are written at once where that is safe."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub

from proj.worker.consumer import Consumer


@pytest.fixture
def consumer() -> Iterator[Any]:
    """As much of a consumer as acknowledges, whose event loop is in this thread."""
    made = Consumer.__new__(Consumer)
    made.hub, made._loop_thread = Hub(), threading.get_ident()
    yield made
    made.hub.close()


def _turn(consumer: Any) -> None:
    consumer.hub.call_soon(lambda: None)
    consumer.hub.run_once()


def test_acknowledged_at_once_in_the_thread_of_the_loop(consumer: Any) -> None:
    acknowledged: list[int] = []
    consumer.call_soon_ack(acknowledged.append, 1)
    assert acknowledged == [1]
    _turn(consumer)
    assert acknowledged == [1]


def test_acknowledged_by_the_loop_for_another_thread(consumer: Any) -> None:
    """Two threads must not write to one connection."""
    acknowledged: list[int] = []
    thread = threading.Thread(target=consumer.call_soon_ack, args=(acknowledged.append, 1))
    thread.start()
    thread.join()
    assert acknowledged == []
    _turn(consumer)
    assert acknowledged == [1]


def test_error_reaches_the_loop(consumer: Any) -> None:
    """The caller is the pool, which would drop the error; the loop connects anew after it."""
    consumer.hub.propagate_errors = (BrokenPipeError,)

    def fail() -> None:
        raise BrokenPipeError

    consumer.call_soon_ack(fail)
    with pytest.raises(BrokenPipeError):
        _turn(consumer)
