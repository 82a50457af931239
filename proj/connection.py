"""What goes wrong between a program and its broker, in words."""

import socket
from typing import Final

from amqp.exceptions import AMQPError, ConnectionForced
from kombu import Connection
from kombu.exceptions import KombuError

from proj.errors import BrokerRefused, BrokerUnreachable, ProjError

#: Everything that talking to a broker can raise; kombu wraps some of it, never all.
ERRORS: Final = (OSError, AMQPError, KombuError)

#: AMQP reply codes that say no to what was asked, whatever is tried again.
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406
_NOT_ALLOWED: Final = 530


def explain(error: BaseException, connection: Connection) -> ProjError:
    """The error in words, for one that came before a message was sent.

    `BrokerRefused` when the broker answered and said no, `BrokerUnreachable` when it did not answer.
    """
    error = root(error)
    refusal = _refusal(error, connection)
    if refusal:
        return refusal
    where = _where(connection)
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
        return BrokerUnreachable(f"the broker at {where} closed the connection: {_text(error)}")
    return BrokerUnreachable(
        f"the broker at {where} cannot be used: {_text(error)}",
        "does RabbitMQ listen there, and not another program?",
    )


def root(error: BaseException) -> BaseException:
    """What kombu's `OperationalError` was raised from."""
    while isinstance(error, KombuError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def abandon(connection: Connection) -> None:
    """Drop the connection without a word to the broker, who may not be listening."""
    if connection.connected:
        connection.connection.collect()


def is_refusal(error: BaseException) -> bool:
    """True when the broker answered and said no, so that trying again changes nothing."""
    code = getattr(root(error), "reply_code", None)
    return code in {_ACCESS_REFUSED, _NOT_FOUND, _PRECONDITION_FAILED, _NOT_ALLOWED}


def _refusal(error: BaseException, connection: Connection) -> BrokerRefused | None:
    code, text = getattr(error, "reply_code", None), _text(error)
    where, user, vhost = _where(connection), connection.userid, connection.virtual_host
    if code == _ACCESS_REFUSED and "Login was refused" in text:
        return BrokerRefused(
            f"the broker at {where} refused user {user!r} and its password",
            "check AMQP_USER and AMQP_PASSWORD, or CELERY_BROKER_URL",
        )
    if code == _ACCESS_REFUSED:
        return BrokerRefused(f"user {user!r} lacks a right on the broker at {where}: {text}")
    if code == _NOT_ALLOWED and "not found" in text:
        return BrokerRefused(
            f"the broker at {where} has no virtual host {vhost!r}",
            "check AMQP_VHOST or CELERY_BROKER_URL",
        )
    if code == _NOT_ALLOWED:
        return BrokerRefused(
            f"user {user!r} may not use virtual host {vhost!r} of the broker at {where}",
            "check AMQP_USER and AMQP_VHOST, or CELERY_BROKER_URL",
        )
    if code == _PRECONDITION_FAILED:
        return BrokerRefused(
            f"the broker at {where} holds a queue with other arguments: {text}",
            "empty and delete that queue, so that it is declared anew, or use another virtual host",
        )
    if code == _NOT_FOUND:
        return BrokerRefused(f"the broker at {where} lacks what is needed: {text}")
    return None


def _where(connection: Connection) -> str:
    return f"{connection.hostname}:{connection.port}"


def _text(error: BaseException) -> str:
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    return " ".join(text.split())
