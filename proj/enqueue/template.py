"""Templates of messages: all but the id and the arguments, encoded once.

Celery makes each message anew, which takes most of the time of a publish. The messages of a template are
equal to Celery's, byte for byte.
"""

import os
import time
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import celery
from celery import signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu.serialization import dumps

from proj import queues
from proj.enqueue.composing import UNSENDABLE, Recorder
from proj.enqueue.plain import SAMPLE, plain
from proj.rabbitmq import encoded
from proj.rabbitmq.encoded import EncodedMessage

#: Stand in a template for what differs between its messages.
_ID: Final = "proj-template-id"
_ARGS: Final = "proj-template-args"
_KWARGS: Final = "proj-template-kwargs"

#: The third part of the body of a message that no other step follows.
_NO_STEPS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

#: Before each text in a table of AMQP: its type and its number of bytes.
_TEXT: Final = Struct(">cI")

#: Celery's signals whose receivers see each message before or after it is published, and may change it.
_BEFORE: Final = signals.before_task_publish
_AFTER: Final = signals.after_task_publish
_SENT: Final = signals.task_sent


@dataclass(frozen=True, slots=True)
class Template:
    """Makes messages of one task that go to one queue."""

    app: celery.Celery
    task: str
    exchange: str
    routing_key: str
    serializer: str
    ignore_result: bool
    #: Whether the result store prepares for each result, such as `rpc://` for a reply.
    tells_store: bool
    common: encoded.Common
    #: The headers' bytes around the id, the id again, the arguments and the keyword arguments.
    headers: tuple[bytes, ...]
    #: What JSON has after the arguments; None when the serializer writes them in another way.
    after_json: str | None
    #: How deep nested arguments are shown (Celery's `task_repr_maxlevels`).
    levels: int

    def message(
        self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, repeat: bool = False
    ) -> EncodedMessage:
        """The message for these arguments, which must have been checked; marked, if it may be a repeat.

        Raises `kombu.exceptions.EncodeError` for arguments that only Celery itself can send, such as models
        of pydantic.
        """
        if self.after_json is not None and (texts := plain(args, kwargs)):
            shown_args, text_args, shown_kwargs, text_kwargs = texts
            body = f"[{text_args}, {text_kwargs}, {self.after_json}".encode()
        else:
            shown_args, shown_kwargs = self._shown(args), self._shown(kwargs)
            _, _, encoded_body = dumps((args, kwargs, _NO_STEPS), serializer=self.serializer)
            body = encoded_body.encode() if isinstance(encoded_body, str) else encoded_body
        first, second, third, fourth, last = self.headers
        text_id, text_args_shown = task_id.encode(), shown_args.encode("utf-8", "surrogatepass")
        text_kwargs_shown = shown_kwargs.encode("utf-8", "surrogatepass")
        length = _TEXT.pack(b"S", len(text_id))
        headers = b"".join(
            (
                first,
                length,
                text_id,
                second,
                length,
                text_id,
                third,
                _TEXT.pack(b"S", len(text_args_shown)),
                text_args_shown,
                fourth,
                _TEXT.pack(b"S", len(text_kwargs_shown)),
                text_kwargs_shown,
                last,
                encoded.due(time.time()),
                encoded.REPEAT if repeat else b"",
            )
        )
        return EncodedMessage(body, headers, task_id, self.app.thread_oid, self.common)

    def _shown(self, arguments: tuple[Any, ...] | dict[str, Any]) -> str:
        """The arguments as Celery shows them."""
        return str(saferepr(arguments, self.app.amqp.argsrepr_maxsize, maxlevels=self.levels))


class Templates:
    """The templates of an application, each made when it is first used."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._made: dict[tuple[Any, ...], Template | None] = {}
        #: The process and the changes of the configuration that they were made in.
        self._made_in: tuple[int, dict[str, Any]] | None = None

    def find(
        self,
        task: celery.Task,
        *,
        queue: str | None = None,
        priority: int | None = None,
        ignore_result: bool | None = None,
        in_task: bool | None = None,
    ) -> Template | None:
        """The template for calls of this task with these options, of which None stands for the task's own.

        None where only Celery itself can make the message: while a task is executed, which would be its
        parent; when a signal has receivers, which may change it; when it would differ in more than the id and
        the arguments; and with Celery's `task_always_eager`. Raises `BadInput` for a wrong option.

        Who knows whether a task is executed says so with `in_task`: to find it out takes as long as the rest.
        """
        if in_task is None:
            in_task = bool(self._app.current_worker_task)
        if in_task or _BEFORE.receivers or _AFTER.receivers or _SENT.receivers:
            return None
        # A message has the name of its process. To look up one setting takes longer than to compare all that
        # were changed.
        process, changes = os.getpid(), self._app.conf.changes
        if self._made_in != (process, changes):
            self._made, self._made_in = {}, (process, dict(changes))
        if ignore_result is None:
            ignore_result = task.ignore_result
        if isinstance(priority, bool) or not isinstance(ignore_result, bool):  # would equal another key
            return None
        key = task, queue, priority, ignore_result
        try:
            return self._made[key]
        except KeyError:
            made = self._make(task, queue, priority, ignore_result)
            if made or queue is None or queue in self._app.amqp.queues:  # of wrong names there is no end
                self._made[key] = made
            return made
        except TypeError:  # a queue that is no name
            return None

    def _make(
        self, task: celery.Task, queue: str | None, priority: int | None, ignore_result: bool
    ) -> Template | None:
        app, conf = self._app, self._app.conf
        if (
            conf.task_always_eager
            or conf.task_send_sent_event
            or getattr(task.shadow_name, "__func__", None) is not celery.Task.shadow_name
            or not all(isinstance(route, MapRoute) for route in app.amqp.routes)  # may depend on arguments
        ):
            return None
        # Otherwise a result store such as `rpc://` prepares for the reply to this message.
        options = {"queue": queue, "priority": priority, "ignore_result": True}
        recorder = Recorder(app.connection_for_write())
        try:
            # Celery's own, since these arguments would be refused.
            celery.Task.apply_async(
                task,
                task_id=_ID,
                argsrepr=_ARGS,
                kwargsrepr=_KWARGS,
                producer=recorder,
                declare=[],
                add_to_parent=False,
                **{name: value for name, value in options.items() if value is not None},
            )
        except UNSENDABLE:  # whose error depends on more than the template
            return None
        [(message, address)] = recorder.recorded
        given = message.properties
        properties = {name: given[name] for name, _ in message.PROPERTIES if given.get(name) is not None}
        headers = properties.pop("application_headers")
        del properties["correlation_id"], properties["reply_to"], headers[queues.DUE_HEADER]
        headers.pop(queues.REPEAT_HEADER)  # which a given id has caused
        headers["ignore_result"] = ignore_result
        serializer = task.serializer or conf.task_serializer
        content_type, content_encoding, body = dumps(((), {}, _NO_STEPS), serializer=serializer)
        parts = _split(encoded.table(headers), _ID, _ID, _ARGS, _KWARGS)
        if (
            parts is None
            or properties.keys() - {"priority"} != {"content_type", "content_encoding", "delivery_mode"}
            or (properties.get("content_type"), properties.get("content_encoding"))
            != (content_type, content_encoding)
            or message.body != body
        ):
            return None
        return Template(
            app=app,
            task=task.name,
            exchange=address["exchange"],
            routing_key=address["routing_key"],
            serializer=serializer,
            ignore_result=ignore_result,
            tells_store=not ignore_result and not app.settings.result_backend.startswith("db+"),
            common=encoded.Common.of(**properties),
            headers=parts,
            after_json=_after_json(serializer),
            levels=conf.task_repr_maxlevels,
        )


def _after_json(serializer: str) -> str | None:
    """What the serializer writes after plain arguments; None if it writes these in another way."""
    kwargs = {value if isinstance(value, str) else "x": value for value in SAMPLE}
    texts = plain(SAMPLE, kwargs)
    _, _, body = dumps((SAMPLE, kwargs, _NO_STEPS), serializer=serializer)
    before = texts and f"[{texts[1]}, {texts[3]}, "
    return body[len(before) :] if before and isinstance(body, str) and body.startswith(before) else None


def _split(table: bytes, *texts: str) -> tuple[bytes, ...] | None:
    """What is around these texts, which the table must have in this order and no more often."""
    parts = []
    for text in texts:
        before, found, table = table.partition(_TEXT.pack(b"S", len(text)) + text.encode())
        if not found:
            return None
        parts.append(before)
    parts.append(table)
    return None if any(text.encode() in part for text in texts for part in parts) else tuple(parts)
