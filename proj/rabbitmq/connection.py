"""Connections to the broker, each operation of which ends before a deadline."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from celery import Celery
from kombu import Connection, pools

from proj.config import CONNECT_TIMEOUT
from proj.deadline import CutAfter, within
from proj.errors import BrokerUnreachable
from proj.rabbitmq import failures, transport


class _ThisThread(threading.local):
    """Whether the current thread is in the pool of connections, whose lock cannot be taken twice."""

    is_in_pool = False


_this_thread: Final = _ThisThread()

#: Why a broker that `is_blocked` confirms nothing.
ALARM: Final = "since its memory or disk alarm is on"

#: Connections that the broker has blocked because of an alarm.
_blocked: Final = WeakSet[Connection]()


def acquire(app: Celery, deadline: float) -> Connection:
    """A connection of the application's pool, before the deadline (of `time.monotonic`).

    Raises `BrokerUnreachable` when all are in use until then.
    """
    # Not Celery's pool of producers: in kombu 5.7 it has more producers than connections, and a producer
    # waits for a connection without a timeout.
    pool = app.pool
    try:
        if not _this_thread.is_in_pool:
            return _acquire(pool, deadline)
        # A signal handler or a finalizer has interrupted this thread there, which may hold the pool's lock.
        # Another thread can wait for that with a timeout.
        return within(max(0, deadline - time.monotonic()), partial(_acquire_in_time, pool, deadline))
    except pool.LimitExceeded as error:
        raise BrokerUnreachable(
            f"all {pool.limit} connections to the broker are in use", "publish from fewer threads"
        ) from error
    except TimeoutError as error:
        raise BrokerUnreachable(
            "no connection to the broker can be had while another publish of this thread takes one",
            "do not publish in signal handlers and finalizers",
        ) from error


def release(connection: Connection) -> None:
    """Give a connection back to its pool."""
    if _this_thread.is_in_pool:
        with suppress(OSError):
            within(0, connection.release)  # nobody waits for it
        return
    try:
        _this_thread.is_in_pool = True
        connection.release()
    finally:
        _this_thread.is_in_pool = False


def _acquire(pool: Any, deadline: float) -> Connection:
    try:
        _this_thread.is_in_pool = True
        acquired: Connection = pool.acquire(block=True, timeout=max(0, deadline - time.monotonic()))
    finally:
        _this_thread.is_in_pool = False
    return acquired


def _acquire_in_time(pool: Any, deadline: float) -> Connection:
    acquired = _acquire(pool, deadline)
    if time.monotonic() >= deadline:
        release(acquired)  # nobody waits for it any more
        raise TimeoutError
    return acquired


def connect(connection: Connection, deadline: float) -> None:
    """Connect to the first node that answers, before the deadline (of `time.monotonic`).

    The last node has all the time that is left. Each node before it has `CONNECT_TIMEOUT` seconds for the
    look-up of its address, and as many to connect. Raises the error of the last node, or `TimeoutError`.
    """
    nodes = max(1, len(connection.alt))
    for node in range(1, nodes + 1):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.connect_timeout = left if node == nodes else min(CONNECT_TIMEOUT, left)
        # upstream: not reported; remove when kombu shows a connection, and its socket, before the handshake
        connection.transport.Connection = _CuttableConnection  # each node has its own transport
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
            listen_for_alarms(connection)
            return


def is_blocked(connection: Connection) -> bool:
    """Whether an alarm of the broker blocks this connection, so that nothing published is read.

    Known only for connections made by `connect`, or passed to `listen_for_alarms`. RabbitMQ reports it at the
    first publish during an alarm.
    """
    return connection in _blocked


def opened(connection: Connection) -> transport.Connection | None:
    """Py-amqp's connection, as far as is known to be open; kombu's `connection` would connect."""
    # upstream: not reported; remove when kombu shows a connection, and its socket, before the handshake
    live: transport.Connection | None = connection._connection
    return live if live is not None and live.connected else None


def alive(connection: Connection) -> transport.Connection | None:
    """What is `opened`, after a look at what the broker has sent meanwhile, such as that it closes it."""
    try:
        while (live := opened(connection)) and live.has_input:
            live.drain_events(0)
    except TimeoutError as error:
        if error.errno is not None:  # the system has given up the connection; else there was nothing to read
            return None
    except failures.ERRORS:
        return None
    return live


def cut_at(deadline: float, connection: Connection) -> CutAfter:
    """Shut the connection's socket at the deadline (of `time.monotonic`) if the block is still running.

    Whatever waits on the connection then fails with an `OSError`.
    """
    return CutAfter(deadline - time.monotonic(), partial(_shut, connection))


@contextmanager
def bounded(connection: Connection, timeout: float) -> Iterator[None]:
    """Connect if necessary, and cut the connection if the block runs longer than `timeout` seconds.

    Raises `BrokerUnreachable` or `BrokerRefused` and drops the connection. Not for publishes, whose outcome
    may be unknown.
    """
    deadline = time.monotonic() + timeout
    try:
        with cut_at(deadline, connection):
            if not alive(connection):
                abandon(connection)
                connect(connection, deadline)
            yield
    except failures.ERRORS as error:
        abandon(connection)
        late = time.monotonic() >= deadline
        raise failures.explain(TimeoutError() if late else error, connection) from error


def abandon(connection: Connection) -> None:
    """Drop the connection without AMQP's closing handshake: the broker may not answer any more."""
    if connection.connected:
        # First, since TLS would wait for the broker's part of its own closing handshake.
        _shut(connection)
        connection.collect()


def drop(live: Any) -> None:
    """Drop py-amqp's connection, and the channels on it, as `abandon` does with that of kombu."""
    _shut_socket(live)
    live.collect()


def keep_from_children(app: Celery) -> None:
    """Let each process that is forked from this one open its own connections.

    Two processes that share a connection read each other's answers and confirms. Celery handles the processes
    of billiard, but not those of `os.fork` and `multiprocessing`.
    """

    def forget() -> None:
        # Not closed, since that would close them for the parent too.
        pools.connections.clear()
        pools.producers.clear()
        # upstream: not reported; remove when Celery forgets its connections after os.fork too
        app._after_fork()

    os.register_at_fork(after_in_child=forget)


class _CuttableConnection(transport.Connection):
    """A connection that can be cut during its handshake."""

    def connect(self, callback: Any = None) -> Any:
        # Kombu does the same, after the handshake.
        # upstream: not reported; remove when kombu shows a connection, and its socket, before the handshake
        self.client._connection = self
        try:
            return super().connect(callback)
        except BaseException:
            # Py-amqp closes it only after an `OSError`; after others, kombu would take it for connected.
            abandon(self.client)
            self.client._connection = None
            raise


def listen_for_alarms(connection: Connection) -> None:
    """Let `is_blocked` know of this connection, which is open."""
    live = connection.connection
    _blocked.discard(connection)
    # Py-amqp 5.4 does not pass on the broker's reason, which alarm is on.
    live.on_blocked = lambda _reason: _blocked.add(connection)
    live.on_unblocked = lambda: _blocked.discard(connection)


def _resolve(host: str, patience: float) -> None:
    """Raise `TimeoutError` when the look-up of the host takes too long; py-amqp's own has no timeout."""
    within(patience, partial(_look_up, host))


def _look_up(host: str) -> None:
    with suppress(OSError, UnicodeError):  # py-amqp looks it up again and reports the error
        socket.getaddrinfo(host, None)


def _shut(connection: Connection) -> None:
    # As Celery does (celery.utils.threads): the public attributes would connect again.
    # upstream: not reported; remove when kombu shows a connection, and its socket, before the handshake
    _shut_socket(connection._connection)


def _shut_socket(live: Any) -> None:
    # upstream: not reported; remove when kombu shows a connection, and its socket, before the handshake
    sock = getattr(getattr(live, "_transport", None), "sock", None)
    if sock is not None:
        with suppress(OSError):
            # The plain socket's method: that of a TLS socket is not thread-safe.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
