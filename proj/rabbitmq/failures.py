"""Turns errors of the connection and the protocol into errors that people can act on."""

import socket
import ssl
from typing import Final

from amqp.exceptions import AMQPError, ConnectionForced
from kombu import Connection
from kombu.exceptions import KombuError

from proj import tls
from proj.deadline import NoThread
from proj.errors import BrokerRefused, BrokerUnreachable, ProjError
from proj.rabbitmq import transport

#: Everything that an operation on a broker can raise; kombu wraps some of it, never all.
ERRORS: Final = (OSError, AMQPError, KombuError)

#: AMQP reply codes of a refusal, which a retry does not change.
_CONTENT_TOO_LARGE: Final = 311
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406
_NOT_ALLOWED: Final = 530


def explain(error: BaseException, connection: Connection) -> ProjError:
    """The error for people: `BrokerRefused` when the broker refused, `BrokerUnreachable` when it was silent.

    Only for errors after which a message that was to be sent is certainly in no queue.
    """
    error = root(error)
    refusal = _refusal(error, connection)
    if refusal:
        return refusal
    where = _where(connection)
    if isinstance(error, NoThread):
        return BrokerUnreachable(
            f"nothing can bound the wait for the broker at {where}: {words(error)}",
            "is the memory used up, or the number of processes?",
        )
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
    """The text of the error, in one line."""
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def root(error: BaseException) -> BaseException:
    """The error that kombu has wrapped, such as in its `OperationalError`; else the error itself."""
    while isinstance(error, KombuError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_refusal(error: BaseException) -> bool:
    """Whether the broker refused, or is not trusted, so that a retry changes nothing."""
    error = root(error)
    return isinstance(error, transport.Untrusted) or getattr(error, "reply_code", None) in {
        _CONTENT_TOO_LARGE,
        _ACCESS_REFUSED,
        _NOT_FOUND,
        _PRECONDITION_FAILED,
        _NOT_ALLOWED,
    }


def is_missing(error: BaseException) -> bool:
    """Whether the broker lacks the named exchange or queue."""
    return getattr(root(error), "reply_code", None) == _NOT_FOUND


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
            "store the data elsewhere and enqueue its address, or raise max_message_size",
        )
    if code == _PRECONDITION_FAILED and "inequivalent" in text:
        return BrokerRefused(
            f"the broker at {where} has a queue with different arguments: {text}",
            "move its messages as in docs/migration.md, or use another virtual host",
        )
    if code == _NOT_FOUND:
        return BrokerRefused(
            f"the broker at {where} lacks a queue or an exchange: {text}",
            "import deploy/rabbitmq/definitions.json, or declare it as a user who may",
        )
    if code == _PRECONDITION_FAILED:
        return BrokerRefused(f"the broker at {where} refused the request: {text}")
    return None


def _where(connection: Connection) -> str:
    usual = connection.transport.default_connection_params  # kombu fills them in when it connects
    return f"{connection.hostname or usual['hostname']}:{connection.port or usual['port']}"
