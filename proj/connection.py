"""The connection between a program and its broker: bounded in time, and what goes wrong, in words."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from weakref import WeakSet

from amqp.exceptions import AMQPError, ConnectionForced
from kombu import Connection
from kombu.exceptions import KombuError

from proj import tls, transport
from proj.config import CONNECT_TIMEOUT
from proj.errors import BrokerRefused, BrokerUnreachable, ProjError

#: Everything that talking to a broker can raise; kombu wraps some of it, never all.
ERRORS: Final = (OSError, AMQPError, KombuError)

#: AMQP reply codes that say no to what was asked, whatever is tried again.
_CONTENT_TOO_LARGE: Final = 311
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406
_NOT_ALLOWED: Final = 530


#: Why a broker that `is_blocked` confirms nothing.
ALARM: Final = "for it takes no messages while its memory or its disk is short"

#: Connections whose broker is in alarm.
_blocked: Final = WeakSet[Connection]()


def explain(error: BaseException, connection: Connection) -> ProjError:
    """The error in words, for one that came before a message was sent.

    `BrokerRefused` when the broker answered and said no, `BrokerUnreachable` when it did not answer.
    """
    error = root(error)
    refusal = _refusal(error, connection)
    if refusal:
        return refusal
    where = _where(connection)
    if isinstance(error, transport.Untrusted) and isinstance(error.__cause__, ssl.SSLError):
        return BrokerRefused(*tls.explain(error.__cause__, connection.hostname, f"the broker at {where}"))
    if isinstance(error, ssl.SSLError):
        return BrokerUnreachable(*tls.explain(error, connection.hostname, f"the broker at {where}"))
    if isinstance(error, socket.gaierror):
        return BrokerUnreachable(
            f"the broker's host {connection.hostname!r} cannot be resolved",
            "check AMQP_HOST or CELERY_BROKER_URL",
        )
    if isinstance(error, ConnectionRefusedError):
        return BrokerUnreachable(
            f"no broker answers at {where}",
            "start one with: proj broker start; or check AMQP_HOST, AMQP_PORT or CELERY_BROKER_URL",
        )
    if isinstance(error, TimeoutError):
        return BrokerUnreachable(
            f"the broker at {where} does not answer in time",
            "is it overloaded, or is that not its AMQP port?",
        )
    if isinstance(error, ConnectionForced):
        return BrokerUnreachable(f"the broker at {where} closed the connection: {words(error)}")
    return BrokerUnreachable(
        f"the broker at {where} cannot be used: {words(error)}",
        "does RabbitMQ listen there, and not another program? For TLS, the URL begins with amqps://",
    )


def words(error: BaseException) -> str:
    """What the error says, in one line."""
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def root(error: BaseException) -> BaseException:
    """What kombu's `OperationalError` was raised from."""
    while isinstance(error, KombuError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def connect(connection: Connection, deadline: float, patience: float) -> None:
    """Connect to the first of the nodes that answers, before the deadline (of `time.monotonic`).

    To find its address, TCP, TLS and each step of AMQP's handshake may take `patience` seconds. Raises what
    the last node raised, or `TimeoutError`.
    """
    nodes = max(1, len(connection.alt))
    for node in range(1, nodes + 1):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.connect_timeout = min(patience, left)
        try:
            _resolve(connection.hostname, connection.connect_timeout)
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        except connection.recoverable_connection_errors:
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
    except ERRORS:
        pass
    return False


@contextmanager
def cut_at(deadline: float, connection: Connection) -> Iterator[None]:
    """Cut the connection when the block has not ended before the deadline (of `time.monotonic`).

    Whatever waits on the connection then fails with an `OSError`. The timeouts of a socket do not bound
    a block: each holds for one system call, and a slow broker makes many of them.
    """
    timer = threading.Timer(max(0, deadline - time.monotonic()), _shut, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def bounded(connection: Connection, timeout: float) -> Iterator[None]:
    """Connect, unless connected, and cut the connection when the block has not ended in `timeout` seconds.

    Raises `BrokerUnreachable` and `BrokerRefused`, for what is no publish; the connection is gone then.
    """
    deadline = time.monotonic() + timeout
    try:
        if not is_alive(connection):
            abandon(connection)
            connect(connection, deadline, CONNECT_TIMEOUT)
        with cut_at(deadline, connection):
            yield
    except ERRORS as error:
        abandon(connection)
        late = time.monotonic() >= deadline
        raise explain(TimeoutError() if late else error, connection) from error


def abandon(connection: Connection) -> None:
    """Drop the connection without a word to the broker, who may not be listening."""
    if connection.connected:
        # First of all, or TLS would wait for the broker's farewell.
        _shut(connection)
        connection.collect()


def is_refusal(error: BaseException) -> bool:
    """True when the broker said no, or is not to be trusted, so that trying again changes nothing."""
    error = root(error)
    return isinstance(error, transport.Untrusted) or getattr(error, "reply_code", None) in {
        _CONTENT_TOO_LARGE,
        _ACCESS_REFUSED,
        _NOT_FOUND,
        _PRECONDITION_FAILED,
        _NOT_ALLOWED,
    }


def is_missing(error: BaseException) -> bool:
    """True when the broker lacks the exchange or the queue that was named."""
    return getattr(root(error), "reply_code", None) == _NOT_FOUND


def _listen_for_alarms(connection: Connection) -> None:
    live = connection.connection
    _blocked.discard(connection)
    # The broker's reason, which of its alarms is on, does not get through py-amqp 5.4.
    live.on_blocked = lambda _reason: _blocked.add(connection)
    live.on_unblocked = lambda: _blocked.discard(connection)


def _resolve(host: str, patience: float) -> None:
    """Raise `TimeoutError` when the address of the host is not found in time.

    The system's resolver has timeouts of its own, 10 to 30 seconds, and cannot be interrupted, so it is
    asked in a thread, before py-amqp asks it.
    """
    thread = threading.Thread(target=_look_up, args=(host,), daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        raise TimeoutError(f"the address of {host!r} is not found in time")


def _look_up(host: str) -> None:
    with suppress(OSError, UnicodeError):  # which py-amqp will meet again
        socket.getaddrinfo(host, None)


def _refusal(error: BaseException, connection: Connection) -> BrokerRefused | None:
    code, text = getattr(error, "reply_code", None), words(error)
    where, user, vhost = _where(connection), connection.userid, connection.virtual_host
    if code == _ACCESS_REFUSED and "Login was refused" in text:
        return BrokerRefused(
            f"the broker at {where} refused user {user!r} and its password",
            "check AMQP_USER and AMQP_PASSWORD, or CELERY_BROKER_URL",
        )
    if code == _ACCESS_REFUSED:
        return BrokerRefused(
            f"user {user!r} lacks a right on the broker at {where}: {text}",
            "which user may do what: SECURITY.md",
        )
    if code == _NOT_ALLOWED and "not found" in text:
        return BrokerRefused(
            f"the broker at {where} has no virtual host {vhost!r}",
            "check AMQP_VHOST or CELERY_BROKER_URL",
        )
    if code == _NOT_ALLOWED:
        return BrokerRefused(
            f"user {user!r} may not use virtual host {vhost!r} of the broker at {where}: {text}",
            "check AMQP_USER and AMQP_VHOST, or CELERY_BROKER_URL",
        )
    if code == _CONTENT_TOO_LARGE or (code == _PRECONDITION_FAILED and "message size" in text):
        return BrokerRefused(
            f"the message is too large for the broker at {where}: {text}",
            "store the data elsewhere and enqueue where it is, or raise max_message_size",
        )
    if code == _PRECONDITION_FAILED:
        return BrokerRefused(
            f"the broker at {where} holds a queue with other arguments: {text}",
            "docs/migration.md moves its messages; or use another virtual host",
        )
    if code == _NOT_FOUND:
        return BrokerRefused(
            f"the broker at {where} lacks what is needed: {text}",
            "import deploy/rabbitmq/definitions.json, or let a user who may declare it do so",
        )
    return None


def _shut(connection: Connection) -> None:
    # As Celery finds it (celery.utils.threads): what is public would connect anew.
    wire = getattr(connection._connection, "_transport", None)
    sock = getattr(wire, "sock", None)
    if sock is not None:
        with suppress(OSError):
            # Of the plain socket: that of TLS is not made for two threads.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _where(connection: Connection) -> str:
    return f"{connection.hostname}:{connection.port}"
