"""The message of a task that a foreign message stands for."""

from contextlib import suppress
from typing import Any, Final, NamedTuple

import amqp
from kombu.exceptions import EncodeError

from proj import queues
from proj.dead_letters import foreign
from proj.dead_letters.reasons import Reason
from proj.enqueue import composing
from proj.enqueue.app import App
from proj.errors import BadInput
from proj.ingest import ids
from proj.ingest.routes import Route
from proj.ingest.rubbish import Rubbish
from proj.logs.printable import one_line, printable

#: The highest priority of our messages; those of other programs go up to 255.
_HIGHEST_PRIORITY: Final = 9


class Composed(NamedTuple):
    """A message with its address, and what log lines say of it."""

    message: amqp.Message
    exchange: str
    routing_key: str
    id: str
    task: str | None
    #: What is wrong with the foreign message; None for a task.
    rubbish: Rubbish | None


class Composer:
    """Composes messages from the foreign messages of one route. Sends nothing."""

    def __init__(self, app: App, route: Route) -> None:
        self._route = route
        self._tasks = composing.Composer(app, awaits_results=False)

    def compose(self, message: amqp.Message) -> Composed:
        """The task's message, or a dead letter when no task can be made of it."""
        properties = message.properties
        body = message.body or b""  # py-amqp makes a text of an empty one
        task_id, is_derived = ids.task_id(properties.get("message_id"), self._route.queue, body)
        repeat = is_derived or bool(message.delivery_info.get("redelivered"))
        try:
            args, kwargs = self._route.arguments(body)
            made = self._made(task_id, args, kwargs, properties, repeat=repeat)
        except Rubbish as rubbish:
            return self.bury(message, rubbish, task_id)
        except BadInput as error:
            return self.bury(message, Rubbish(Reason.INVALID, error.message), task_id)
        except Exception as error:  # an argument's own methods may raise anything
            problem = f"no message can be made of it: {one_line(repr(error))}"
            return self.bury(message, Rubbish(Reason.INVALID, problem), task_id)
        return Composed(*made, task_id, self._route.task.name, None)

    def _made(
        self,
        task_id: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        properties: dict[str, Any],
        *,
        repeat: bool,
    ) -> tuple[amqp.Message, str, str]:
        """The task's message and its address. Raises `BadInput`."""
        task, queue = self._route.task, self._route.work_queue
        priority = properties.get("priority")
        priority = None if priority is None else min(priority, _HIGHEST_PRIORITY)
        headers = _reply_headers(properties)
        if not headers and (template := self._tasks.template(task, queue=queue, priority=priority)):
            with suppress(EncodeError):  # of what only Celery itself can write, such as models of pydantic
                message = template.message(task_id, args, kwargs, repeat=repeat)
                return message, template.exchange, template.routing_key
        request = task.signature(args, kwargs, queue=queue, priority=priority, headers=headers)
        made = self._tasks.compose(request, task_id, repeat=repeat)
        return made.message, made.exchange, made.routing_key

    def bury(self, message: amqp.Message, rubbish: Rubbish, letter_id: str) -> Composed:
        """The dead letter for a message from which no task can be made."""
        letter = foreign.dead_letter(
            message,
            letter_id,
            self._route.queue,
            rubbish.reason,
            printable(rubbish.problem),
            _reply_headers(message.properties),
        )
        # Without the traceback, whose frames would keep the message in memory until cycles are collected.
        why = Rubbish(rubbish.reason, rubbish.problem)
        # The routing key of what the broker makes a dead letter is its queue's too.
        return Composed(letter, queues.dead_exchange.name, self._route.queue, letter_id, None, why)


def _reply_headers(properties: dict[str, Any]) -> dict[str, str]:
    """The address for a reply, which a worker sends when the task has ended."""
    found = {queues.REPLY_HEADER: properties.get("reply_to")}
    if found[queues.REPLY_HEADER]:
        found[queues.REPLY_ID_HEADER] = properties.get("correlation_id")
    return {name: value for name, value in found.items() if isinstance(value, str) and value}
