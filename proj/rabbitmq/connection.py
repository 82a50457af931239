"""The connection between a program and its broker, bounded in time."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from celery import Celery
from kombu import Connection, pools

from proj.config import CONNECT_TIMEOUT
from proj.deadline import cut_after, within
from proj.rabbitmq import failures, transport

#: Why a broker that `is_blocked` confirms nothing.
ALARM: Final = "for it takes no messages while its memory or its disk is short"

#: Connections whose broker is in alarm.
_blocked: Final = WeakSet[Connection]()


def connect(connection: Connection, deadline: float) -> None:
    """Connect to the first of the nodes that answers, before the deadline (of `time.monotonic`).

    The last node may take all the time that is left. One before it may take `CONNECT_TIMEOUT` seconds to find
    its address, and as long to connect. Raises what the last node raised, or `TimeoutError`.
    """
    nodes = max(1, len(connection.alt))
    for node in range(1, nodes + 1):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.connect_timeout = left if node == nodes else min(CONNECT_TIMEOUT, left)
        connection.transport.Connection = _Shown  # each node has a transport of its own
        try:
            _resolve(connection.hostname, connection.connect_timeout)
            until = min(deadline, time.monotonic() + connection.connect_timeout)
            with cut_at(until, connection):
                connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            if time.monotonic() >= until:
                raise TimeoutError
        except connection.recoverable_connection_errors as error:
            abandon(connection)
            if time.monotonic() >= deadline:
                raise TimeoutError from error
            if node == nodes:
                raise
            connection.maybe_switch_next()
        else:
            _listen_for_alarms(connection)
            return


def is_blocked(connection: Connection) -> bool:
    """True when the broker has said that it reads nothing from who publishes, for an alarm is on.

    Known of connections that `connect` has made. RabbitMQ says so at the first publish in an alarm.
    """
    return connection in _blocked


def is_alive(connection: Connection) -> bool:
    """False when the connection is known to be of no use: closed by the broker since it was used last."""
    try:
        while connection.connected:
            connection.drain_events(timeout=0)
    except TimeoutError as error:
        # With an error number, it is not that there is nothing to read, but the system that gave up.
        return error.errno is None
    except failures.ERRORS:
        pass
    return False


def cut_at(deadline: float, connection: Connection) -> AbstractContextManager[None]:
    """Cut the connection when the block has not ended before the deadline (of `time.monotonic`).

    Whatever waits on the connection then fails with an `OSError`.
    """
    return cut_after(deadline - time.monotonic(), partial(_shut, connection))


@contextmanager
def bounded(connection: Connection, timeout: float) -> Iterator[None]:
    """Connect, unless connected, and cut the connection when the block has not ended in `timeout` seconds.

    Raises `BrokerUnreachable` and `BrokerRefused`, for what is no publish; the connection is gone then.
    """
    deadline = time.monotonic() + timeout
    try:
        with cut_at(deadline, connection):
            if not is_alive(connection):
                abandon(connection)
                connect(connection, deadline)
            yield
    except failures.ERRORS as error:
        abandon(connection)
        late = time.monotonic() >= deadline
        raise failures.explain(TimeoutError() if late else error, connection) from error


def abandon(connection: Connection) -> None:
    """Drop the connection without a word to the broker, who may not be listening."""
    if connection.connected:
        # First of all, or TLS would wait for the broker's farewell.
        _shut(connection)
        connection.collect()


def keep_from_children(app: Celery) -> None:
    """Let each process that is forked from this one open connections of its own.

    On one that two processes share, each reads answers to the other, and takes its confirms for its own.
    Celery does the same for processes of billiard, and not for those of `os.fork` and `multiprocessing`.
    """

    def forget() -> None:
        # Without closing them: that would end them for the parent too.
        pools.connections.clear()
        pools.producers.clear()
        app._after_fork()

    os.register_at_fork(after_in_child=forget)


class _Shown(transport.Connection):
    """A connection that can be cut while it is being made."""

    def connect(self, callback: Any = None) -> Any:
        # Kombu does the same, after the handshake.
        self.client._connection = self
        try:
            return super().connect(callback)
        except BaseException:
            # Py-amqp closes it after an `OSError` only, and kombu would take it for connected.
            abandon(self.client)
            self.client._connection = None
            raise


def _listen_for_alarms(connection: Connection) -> None:
    live = connection.connection
    _blocked.discard(connection)
    # The broker's reason, which of its alarms is on, does not get through py-amqp 5.4.
    live.on_blocked = lambda _reason: _blocked.add(connection)
    live.on_unblocked = lambda: _blocked.discard(connection)


def _resolve(host: str, patience: float) -> None:
    """Raise `TimeoutError` when the address of the host is not found in time, before py-amqp looks for it."""
    within(patience, partial(_look_up, host))


def _look_up(host: str) -> None:
    with suppress(OSError, UnicodeError):  # which py-amqp will meet again
        socket.getaddrinfo(host, None)


def _shut(connection: Connection) -> None:
    # As Celery finds it (celery.utils.threads): what is public would connect anew.
    wire = getattr(connection._connection, "_transport", None)
    sock = getattr(wire, "sock", None)
    if sock is not None:
        with suppress(OSError):
            # Of the plain socket: that of TLS is not made for two threads.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
