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
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import celery
from amqp import spec
from amqp.exceptions import ChannelError, MessageNacked
from celery.exceptions import QueueNotFound
from kombu.exceptions import EncodeError
from kombu.utils.uuid import uuid
from pydantic import ValidationError, validate_call

from proj import connection, queues
from proj.errors import (
    BadArguments,
    BadInput,
    BrokerRefused,
    BrokerUnreachable,
    OutcomeUnknown,
    UnknownTask,
)

#: AMQP's reply code for a mandatory message that no queue takes.
_NO_ROUTE: Final = 312

#: Seconds that the confirm of a returned message may take; the broker sends it right behind the return.
_RETURN_TO_ACK: Final = 1

#: Seconds that a confirm is waited for, at least, when connecting has used up the time.
_LEAST_PATIENCE: Final = 0.1

#: The longest delay that the broker's 28 delay queues can hold, in seconds: 8.5 years.
MAX_DELAY: Final = 2**28 - 1

#: What the result store's column for ids can hold (`celery.backends.database.models.Task`).
MAX_ID_LENGTH: Final = 155

#: Seconds that an `eta` may lie in the past and still mean "now".
_ETA_TOLERANCE: Final = 1


class Task(celery.Task):
    """The base of every task of the application: arguments are checked, and publishing does not lie."""

    #: Without it, a message that no queue takes is confirmed and dropped.
    mandatory = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the task in this process. Raises `BadArguments` before it starts."""
        args, kwargs = self.check_arguments(args, kwargs)
        return super().__call__(*args, **kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the task, and return once the broker has confirmed it.

        Takes the options of `celery.Task.apply_async`. `countdown` (seconds) and `eta` (a `datetime`,
        UTC when it has no zone) are held by the broker to the second, rounded up. Raises the errors
        that this module's docstring lists.
        """
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        self.check_arguments(args, kwargs)
        options["countdown"] = _delay(options.pop("countdown", None), options.pop("eta", None))
        options["expires"] = _lifetime(options.get("expires"))
        # Unless said for this message, the limits are those of the worker: the message would carry the
        # publisher's settings, of which the worker's broker may know nothing.
        options.setdefault("time_limit", None)
        options.setdefault("soft_time_limit", None)
        # Fixed here, so that a repeated publish carries the same id and can be told to be one.
        options["task_id"] = _checked_id(options.get("task_id"))
        send = functools.partial(super().apply_async, args, kwargs)
        return _publish(self.app, self.name, send, options)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the task's annotations want them. Raises `BadArguments`."""
        try:
            return self._argument_check(*args, **kwargs)
        except ValidationError as error:
            problem = _problem(error, list(inspect.signature(self.run).parameters))
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


def find_task(name: str) -> Task:
    """The registered task of this name. Raises `UnknownTask`, with the nearest name that there is."""
    from proj import app

    app.loader.import_default_modules()
    names = [known for known in app.tasks if not known.startswith("celery.")]
    if name in names:
        task: Task = app.tasks[name]
        return task
    near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(names))}"
    raise UnknownTask(f"there is no task {name!r}", hint)


def _publish(app: celery.Celery, name: str, send: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call `send` with a producer whose connection and topology are in place.

    A connection that was fine when it was last used may be gone. Then a new one is tried, once, with the
    same id: the message may have arrived the first time.
    """
    deadline = time.monotonic() + app.conf.broker_transport_options["read_timeout"]
    given = options.pop("producer", None)
    if "connection" in options:
        given = app.amqp.Producer(options.pop("connection"), auto_declare=False)
    first: OutcomeUnknown | None = None
    while True:
        used_before = False
        try:
            # Left by an error, the producer's connection is closed: unread confirms may be waiting on it.
            with app.producer_or_acquire(given) as producer:
                used_before = producer.connection.connected
                _prepare(producer, delayed=bool(options["countdown"]))
                patience = max(_LEAST_PATIENCE, deadline - time.monotonic())
                return _confirm(name, send, producer, confirm_timeout=patience, **options)
        except OutcomeUnknown as error:
            if given or first or _timed_out(error):
                raise first or error from error.__cause__
            first = error
        except (BrokerUnreachable, BrokerRefused) as error:
            if first:
                raise first from error
            if given or not used_before or isinstance(error, BrokerRefused):
                raise


def _confirm(name: str, send: Callable[..., Any], producer: Any, **options: Any) -> Any:
    """Call `send`, and turn what it raises into what became of the message."""
    try:
        return send(producer=producer, **options)
    except EncodeError as error:
        raise BadArguments(f"{name}: JSON cannot carry the arguments: {error}") from error
    except QueueNotFound as error:
        raise BadInput(f"{name}: {error.args[0]}", "is it in proj/queues.py?") from error
    except MessageNacked as error:
        raise BrokerRefused(f"{name}: the broker refused the message") from error
    except ChannelError as error:
        if error.reply_code != _NO_ROUTE:
            raise connection.explain(error, producer.connection) from error
        # A returned message is confirmed as well; unread, that confirm would be taken for the next one's.
        with suppress(*connection.ERRORS):
            producer.channel.wait(spec.Basic.Ack, timeout=_RETURN_TO_ACK)
        raise BrokerRefused(
            f"{name}: no queue takes the message", "does its queue exist, bound to its exchange?"
        ) from error
    except connection.ERRORS as error:
        connection.abandon(producer.connection)
        raise OutcomeUnknown(
            f"{name}: the broker did not confirm message {options['task_id']}",
            f"it may be in the queue; to repeat it with --id {options['task_id']} is safe",
        ) from error


def _timed_out(error: OutcomeUnknown) -> bool:
    return isinstance(connection.root(error.__cause__ or error), TimeoutError)


def _prepare(producer: Any, *, delayed: bool) -> None:
    """Connect and declare. What fails here fails before a message is sent."""
    broker = producer.connection
    try:
        broker.ensure_connection(
            max_retries=len(broker.alt), interval_start=0, timeout=broker.connect_timeout
        )
        queues.declare(producer.channel)
        if delayed:
            queues.declare_delays(broker)
    except connection.ERRORS as error:
        raise connection.explain(error, broker) from error


def _checked_id(task_id: str | None) -> str:
    if task_id is None:
        return str(uuid())
    if not 1 <= len(task_id) <= MAX_ID_LENGTH or not task_id.isprintable():
        raise BadInput(f"an id is 1 to {MAX_ID_LENGTH} printable characters, got {task_id[:200]!r}")
    return task_id


def _delay(countdown: float | None, eta: datetime | None) -> int | None:
    """Whole seconds from now, rounded up, or None for "now". Raises `BadInput`."""
    if countdown is not None and eta is not None:
        raise BadInput("countdown and eta exclude each other")
    if eta is not None:
        moment = eta if eta.tzinfo else eta.replace(tzinfo=UTC)
        countdown = (moment - datetime.now(UTC)).total_seconds()
        if countdown < -_ETA_TOLERANCE:
            raise BadInput(f"the eta {eta.isoformat()} is in the past")
        countdown = max(0, countdown)
    if countdown is None:
        return None
    if not countdown >= 0:
        raise BadInput(f"a countdown is 0 or more seconds, got {countdown:g}")
    if countdown > MAX_DELAY:
        raise BadInput(f"a delay of {countdown:g} s is longer than the {MAX_DELAY} s that can be held")
    return math.ceil(countdown) or None


def _lifetime(expires: float | datetime | None) -> float | datetime | None:
    if isinstance(expires, int | float) and not expires > 0:
        raise BadInput(f"expires must be above 0 seconds, got {expires:g}")
    return expires


def _problem(error: ValidationError, parameters: list[str]) -> str:
    """The first thing that is wrong with the arguments, in words."""
    problem = error.errors(include_url=False)[0]
    where, *inside = problem["loc"]
    got = repr(problem["input"])
    match problem["type"]:
        case "missing_argument" | "missing_keyword_only_argument":
            return f"argument {where} is missing"
        case "unexpected_positional_argument":
            return f"too many arguments, {got} is left over"
        case "unexpected_keyword_argument":
            return f"there is no argument {where}"
        case "multiple_argument_values":
            return f"argument {where} is given twice"
    name = parameters[where] if isinstance(where, int) and where < len(parameters) else where
    path = ".".join(map(str, (name, *inside)))
    return f"argument {path}: {problem['msg'].removeprefix('Value error, ')}, got {got}"
