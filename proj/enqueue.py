"""Publishing: confirmed, routable, and ended in bounded time, by `.delay()` and `proj enqueue` alike.

A publish ends in one of these ways, and in no other:

- it returns: the broker has *confirmed* that it took responsibility for the message;
- `BadInput`: the task or its arguments are wrong, nothing was sent;
- `BrokerUnreachable` or `BrokerRefused`: the message is certainly not in a queue;
- `OutcomeUnknown`: the confirm did not come, and the message may be in the queue.
"""

import difflib
import functools
import inspect
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import celery
from amqp.exceptions import AccessRefused, FrameSyntaxError, MessageNacked
from celery.exceptions import QueueNotFound
from kombu.exceptions import EncodeError
from pydantic import ValidationError, validate_call

from proj import broker_errors, checks, connection, events, queues
from proj.errors import (
    BadArguments,
    BadInput,
    BrokerRefused,
    BrokerUnreachable,
    OutcomeUnknown,
    ProjError,
    UnknownTask,
)

log = logging.getLogger(__name__)

#: AMQP's reply code for a mandatory message that no queue takes.
_NO_ROUTE: Final = 312

#: Errors that are over after a while, more likely than not.
TRANSIENT: Final = (ConnectionError, TimeoutError, BrokerUnreachable)

#: Seconds between two attempts, at most.
LONGEST_BACKOFF: Final = 600


class Task(celery.Task):
    """The base of every task of the application: arguments are checked, and publishing does not lie."""

    #: Without it, a message that no queue takes is confirmed and dropped.
    mandatory = True

    #: What becomes of a delivery whose task does not just end.
    Request = "proj.request:Request"

    #: What is tried again, by itself, after 1, 2, 4 … seconds with jitter; a task may add to it.
    autoretry_for = TRANSIENT
    retry_backoff = 1
    retry_backoff_max = LONGEST_BACKOFF

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the task in this process. Raises `BadArguments` before it starts."""
        args, kwargs = self.check_arguments(args, kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            if threading.current_thread() is threading.main_thread():
                raise
            # There is no process to end, and Celery's pool of threads would never answer the message.
            raise RuntimeError(f"the task raised {error!r}") from error

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the task, and return once the broker has confirmed it.

        Takes the options of `celery.Task.apply_async`. `countdown` (seconds) and `eta` (a `datetime`,
        UTC when it has no zone) are held by the broker to the second, rounded up. A message whose
        `task_id` is given may be a repeat, and is marked as one. Raises the errors that this module's
        docstring lists.
        """
        if isinstance(args, str | bytes):  # each letter would be an argument
            raise BadArguments(
                f"{self.name}: arguments are a list or a tuple, got {args!r}", "is a comma missing?"
            )
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        self.check_arguments(args, kwargs)
        checks.check_json(self.name, args, kwargs)
        serializer = options.get("serializer") or self.serializer
        checks.check_serializer(self.name, serializer, self.app.conf.accept_content)
        options["countdown"] = checks.delay(options.pop("countdown", None), options.pop("eta", None))
        options["expires"] = checks.lifetime(options.get("expires", self.expires))
        # Unless said for this message, the limits are those of the worker: the message would carry the
        # publisher's settings, of which the worker's broker may know nothing.
        options.setdefault("time_limit", None)
        options.setdefault("soft_time_limit", None)
        # Kombu would repeat a publish that may have arrived, unmarked and for as long as it takes.
        options["retry"] = False
        if options.get("task_id") is not None or options.get("retries"):
            _mark_repeat(options)
        # Fixed here, so that a repeated publish carries the same id and can be told to be one.
        options["task_id"] = checks.checked_id(options.get("task_id"))
        send = functools.partial(super().apply_async, args, kwargs)
        with _logged(self.name, options):
            return _publish(self.app, self.name, send, options)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the task's annotations want them. Raises `BadArguments`."""
        try:
            return self._argument_check(*args, **kwargs)
        except ValidationError as error:
            problem = checks.problem(error, list(inspect.signature(self.run).parameters))
            raise BadArguments(f"{self.name}: {problem}", f"usage: {self.usage}") from None

    @property
    def usage(self) -> str:
        """How the task is called, for people: `proj.tasks.add(x, y)`."""
        return f"{self.name}({', '.join(inspect.signature(self.run).parameters)})"

    @functools.cached_property
    def _argument_check(self) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        @functools.wraps(self.run)
        def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        return validate_call(arguments)


def enqueue(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """Enqueue the task of this name; the options are those of `Task.apply_async`.

    Raises `UnknownTask`, and what `Task.apply_async` raises.
    """
    return find_task(name).apply_async(args, kwargs, **options)


def own_tasks(app: celery.Celery) -> dict[str, Task]:
    """The tasks of the application by their names, sorted, without those of Celery itself."""
    app.loader.import_default_modules()
    return {name: task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")}


def find_task(name: str) -> Task:
    """The registered task of this name. Raises `UnknownTask`, with the nearest name that there is."""
    from proj import app

    tasks = own_tasks(app)
    if name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(name, tasks, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(tasks)}"
    raise UnknownTask(f"there is no task {name!r}", hint)


@contextmanager
def _logged(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Log what became of the message that is published in the block."""
    began = time.time()
    task_id = options["task_id"]
    facts = {"retries": options.get("retries") or None, "delay": options["countdown"]}
    try:
        yield
    except ProjError as error:
        event = events.PUBLISH_UNKNOWN if isinstance(error, OutcomeUnknown) else events.PUBLISH_REFUSED
        events.say(log, logging.WARNING, event, task_id, name, f"not published: {error}", **facts)
        raise
    words = f"published, to be executed in {facts['delay']} s" if facts["delay"] else "published"
    events.say(log, logging.INFO, events.PUBLISHED, task_id, name, words, at=began, **facts)


def _publish(app: celery.Celery, name: str, send: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call `send` with a producer whose connection and topology are in place, until the time is over.

    It is called again, on a new connection, when the message is in no queue and the reason may be that
    the connection was used before: it was lost, or a queue that was declared on it is gone. It is called
    again once when the confirm was lost, with the same id, and the message is marked as a repeat.
    """
    deadline = time.monotonic() + app.conf.broker_transport_options["read_timeout"]
    given = options.pop("producer", None)
    if over := options.pop("connection", None):
        given = app.amqp.Producer(over, auto_declare=False)
    lost: OutcomeUnknown | None = None
    while True:
        used_before = False
        try:
            with ExitStack() as stack:
                producer = given or _acquire(app, deadline, stack)
                used_before = producer.connection.connected
                return _attempt(app, name, send, producer, deadline, options)
        except OutcomeUnknown as error:
            if lost or time.monotonic() >= deadline:
                raise lost or error from error.__cause__
            lost = error
            words = "published once more: the broker did not confirm it"
            events.say(log, logging.WARNING, events.PUBLISH_REPEATED, options["task_id"], name, words)
            _mark_repeat(options)
        except (BrokerUnreachable, BrokerRefused) as error:
            if lost:
                raise lost from error
            if not (used_before and _may_be_mended(error)) or time.monotonic() >= deadline:
                raise


def _acquire(app: celery.Celery, deadline: float, stack: ExitStack) -> Any:
    # Not Celery's pool of producers: that of kombu 5.7 has more of them than connections, and a producer
    # without one waits for it as long as it takes.
    pool = app.pool
    try:
        broker = pool.acquire(block=True, timeout=max(0, deadline - time.monotonic()))
    except pool.LimitExceeded as error:
        raise BrokerUnreachable(
            f"all {pool.limit} connections to the broker are in use", "publish from fewer threads"
        ) from error
    return app.amqp.Producer(stack.enter_context(broker), auto_declare=False)


def _attempt(
    app: celery.Celery,
    name: str,
    send: Callable[..., Any],
    producer: Any,
    deadline: float,
    options: dict[str, Any],
) -> Any:
    """Connect, declare and publish before the deadline. After a failure the connection is gone."""
    broker = producer.connection
    try:
        with connection.cut_at(deadline, broker):
            _prepare(producer, deadline, delayed=bool(options["countdown"]))
            return _confirm(name, send, producer, options)
    except BaseException:
        # Its peer may not be listening, and an answer that is still to come would be taken for that to
        # the next message.
        connection.abandon(broker)
        raise


def _prepare(producer: Any, deadline: float, *, delayed: bool) -> None:
    """Connect and declare. What fails here fails before a message is sent."""
    broker = producer.connection
    try:
        if not connection.is_alive(broker):
            connection.abandon(broker)
            connection.connect(broker, deadline)
            producer.revive(broker)
        _declare(producer, delayed=delayed)
        if time.monotonic() >= deadline:
            raise TimeoutError
    except broker_errors.ERRORS as error:
        late = time.monotonic() >= deadline
        raise broker_errors.explain(TimeoutError() if late else error, broker) from error


def _declare(producer: Any, *, delayed: bool) -> None:
    """Declare what the message needs, as far as the user may."""
    broker = producer.connection
    # Whether all is in place for a user who may do no more than publish, the publish itself tells.
    try:
        queues.declare(producer.channel)
    except AccessRefused:
        broker.declared_entities.update(map(hash, queues.topology))
    if delayed:
        with suppress(AccessRefused):
            queues.declare_delays(broker)


def _confirm(name: str, send: Callable[..., Any], producer: Any, options: dict[str, Any]) -> Any:
    """Call `send`, and turn what it raises into what became of the message."""
    try:
        return send(producer=producer, **options)
    except EncodeError as error:
        raise BadArguments(f"{name}: JSON cannot carry the arguments: {error}") from error
    except QueueNotFound as error:
        raise BadInput(f"{name}: {error.args[0]}", "is it in proj/queues.py?") from error
    except (TypeError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise BadInput(f"{name}: an option cannot be sent: {broker_errors.words(error)}") from error
    except (MessageNacked, *broker_errors.ERRORS) as error:
        raise _fate(name, options["task_id"], producer.connection, broker_errors.root(error)) from error


def _fate(name: str, task_id: str, broker: Any, error: BaseException) -> ProjError:
    """What became of a message whose publish ended with this error."""
    if isinstance(error, MessageNacked):
        return BrokerRefused(
            f"{name}: the broker refused the message: the queue is full, or lacks the majority of its nodes",
            "try again later, when workers have made room or the nodes are up",
        )
    if isinstance(error, FrameSyntaxError) and error.method_sig is None:  # from our side, not the broker's
        return BadInput(f"{name}: an option cannot be sent: {broker_errors.words(error)}")
    if getattr(error, "reply_code", None) == _NO_ROUTE:
        return BrokerRefused(
            f"{name}: no queue takes the message", "does its queue exist, bound to its exchange?"
        )
    if broker_errors.is_refusal(error):
        return broker_errors.explain(error, broker)
    why = f", {connection.ALARM}" if connection.is_blocked(broker) else ""
    return OutcomeUnknown(
        f"{name}: the broker did not confirm message {task_id}{why}",
        f"it may be in the queue; to repeat it with --id {task_id} is safe",
    )


def _may_be_mended(error: ProjError) -> bool:
    """Whether a new connection, on which all is declared anew, may not see this error."""
    if isinstance(error, BrokerUnreachable):
        return True
    cause = broker_errors.root(error.__cause__ or error)
    return getattr(cause, "reply_code", None) == _NO_ROUTE or broker_errors.is_missing(cause)


def _mark_repeat(options: dict[str, Any]) -> None:
    """Let the worker look for a stored success before it executes the task."""
    options["headers"] = {**(options.get("headers") or {}), queues.REPEAT_HEADER: True}
