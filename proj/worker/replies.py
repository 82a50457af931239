"""Replies: how a task ended, sent to where a foreign message has asked for it.

A reply is sent once the end is stored, and before the message is acknowledged. If a worker is killed in
between, the end is sent again, or for the first time, when the message is a duplicate for another worker.
"""

import json
import logging
import time
from typing import Any, Final

import amqp
from celery import states
from celery.utils.log import get_logger

from proj import queues
from proj.enqueue.publish import Publish
from proj.errors import ProjError
from proj.logs import events
from proj.logs.printable import shown
from proj.results import stored_exception
from proj.results.ended import ended

log = get_logger(__name__)

#: Seconds for a reply to be confirmed, before it is dropped: a worker waits so long.
TIMEOUT: Final = 5.0

#: How the addresses of the broker's direct reply-to begin. There is no queue behind them, so that a mandatory
#: message is returned although it has arrived.
DIRECT: Final = "amq.rabbitmq.reply-to."


def install() -> None:
    """Reply to the ends that any process of a worker stores."""
    ended.connect(reply)


def reply(sender: Any, task_id: str, state: str, result: Any, request: Any, **_: Any) -> None:
    """Send the end to the address of the message, if it has one. A reply that nobody takes is dropped."""
    headers = vars(request) if request is not None else {}
    address, correlation_id = headers.get(queues.REPLY_HEADER), headers.get(queues.REPLY_ID_HEADER)
    if not isinstance(address, str):
        return
    name = headers.get("task")
    task = name if isinstance(name, str) else None
    message = amqp.Message(
        _body(state, result),
        content_type="application/json",
        delivery_mode=queues.PERSISTENT,
        **({"correlation_id": correlation_id} if isinstance(correlation_id, str) else {}),
    )

    def send(producer: Any) -> None:
        left = max(0, publish.deadline - time.monotonic())
        producer.channel.basic_publish(
            message, "", address, mandatory=not address.startswith(DIRECT), confirm_timeout=left
        )

    publish = Publish(sender, f"reply of {task or 'a message'}", task_id, time.monotonic() + TIMEOUT)
    try:
        publish.run(send, lambda: None)
    except ProjError as error:
        words = f"its reply to {shown(address)} is dropped: {error.message}"
        events.say(log, logging.WARNING, events.REPLY_DROPPED, task_id, task, words)
    else:
        events.say(log, logging.INFO, events.REPLIED, task_id, task, "replied")


def _body(state: str, result: Any) -> bytes:
    """The end as JSON; what JSON has no type for is a text, as in `proj result --json`."""
    if state == states.SUCCESS:
        end = {"status": "SUCCESS", "result": result}
    else:
        error = stored_exception.words(result) if isinstance(result, BaseException) else str(result)
        end = {"status": "FAILURE", "error": error}
    text = json.dumps(end, default=str)
    return json.dumps(json.loads(text, parse_constant=str)).encode()
