"""What the programs of this machine are told: time limits, confirms, the result store, and passwords."""

import socket
import uuid
from collections.abc import Callable, Iterator
from functools import cache, partial
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from celery import states

from proj.deadline import within
from proj.doctor.finding import Finding, error, info, ok, warning
from proj.doctor.subject import Subject
from proj.enqueue import own_tasks
from proj.errors import ResultStoreError
from proj.results.database import CONNECT_TIMEOUT
from proj.results.patience import PATIENCE
from proj.results.store import store_error

#: Options of the connection that the outcome of a publish rests on.
_CONNECTION_OPTIONS: Final = {
    "confirm_publish": "a publish returns before the broker has the message, which may then be lost",
    "read_timeout": "a publish hangs for as long as the broker's alarm is on",
    "write_timeout": "a publish hangs for as long as the broker's alarm is on",
}

#: What a task must not say otherwise, and what becomes of its message then.
_TASK_OPTIONS: Final = {
    "acks_late": (True, "its message is lost when a worker dies in the middle of it"),
    "reject_on_worker_lost": (True, "its message is lost when its process is killed"),
    "acks_on_failure": (False, "its message is gone when it fails"),
    "acks_on_timeout": (False, "its message is gone when it takes too long"),
}

#: Largest message unless set otherwise: RabbitMQ before 4.0, and since.
_MESSAGE_SIZES: Final = (128, 16)

#: Passwords that are tried first by whoever looks for open brokers.
_DEFAULT_PASSWORDS: Final = frozenset({"", "guest", "admin", "rabbitmq", "password"})

#: Seconds for the result store to take one result and give it back.
_STORE_TIMEOUT: Final = 2 * PATIENCE + CONNECT_TIMEOUT

#: Seconds to find the addresses of a host. It takes milliseconds.
_LOOK_UP_TIMEOUT: Final = 2

_IsLocal = Callable[[str | None], bool]


def publishing(subject: Subject) -> Iterator[Finding]:
    """Whether publishes are confirmed, and end in time."""
    options = subject.app.conf.broker_transport_options
    off = {name: why for name, why in _CONNECTION_OPTIONS.items() if not options.get(name)}
    for name, why in off.items():
        yield error(f"{name} is off", why, "put it back into broker_transport_options, in proj/config.py")
    if not off:
        yield ok(f"publishes are confirmed, and end within {subject.settings.proj_publish_timeout:g} s")


def tasks(subject: Subject) -> Iterator[Finding]:
    """Whether the tasks are executed as the promise needs it."""
    own = own_tasks(subject.app)
    careless = [
        warning(f"task {name} says {option}={not wanted}", why, f"leave {option} out of its @app.task(…)")
        for name, task in own.items()
        for option, (wanted, why) in _TASK_OPTIONS.items()
        if bool(getattr(task, option)) != wanted
    ]
    yield from careless or [ok(f"all {len(own)} tasks are acknowledged when they are done, and only then")]


def time_limits(subject: Subject) -> Iterator[Finding]:
    """Whether every task ends before the broker takes its message away."""
    seconds, source = _consumer_timeout(subject)
    limits = {
        name: task.time_limit or subject.settings.proj_task_time_limit
        for name, task in own_tasks(subject.app).items()
    }
    late: dict[int, list[str]] = {}
    for name, limit in limits.items():
        if limit >= seconds:
            late.setdefault(limit, []).append(name)
    for limit, names in late.items():
        yield error(
            f"the time limit of {', '.join(names)}, {limit} s, is not below the broker's consumer_timeout, "
            f"{seconds:g} s",
            "the broker takes the message away in the middle of the task, and it is executed again",
            f"lower PROJ_TASK_TIME_LIMIT or the task's own time_limit, or raise what is {source}",
        )
    believed = subject.settings.proj_consumer_timeout
    if not late and seconds < believed:
        yield warning(
            f"PROJ_CONSUMER_TIMEOUT says {believed} s, and the broker waits {seconds:g} s",
            "workers compare the time limits of their tasks with the former",
            f"set PROJ_CONSUMER_TIMEOUT={seconds:g}",
        )
    elif not late:
        longest = max(limits.values(), default=subject.settings.proj_task_time_limit)
        yield ok(f"tasks end within {longest} s, and the broker waits {seconds:g} s, which is {source}")


def _consumer_timeout(subject: Subject) -> tuple[float, str]:
    """Seconds that the broker waits for an acknowledgement, and who says so.

    Since 3.12 a policy or a queue's argument wins over the broker's configuration; of both, the smaller does
    (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
    """
    broker = subject.configured("consumer_timeout")
    found: list[tuple[float, str]] = []
    if not (subject.unmanaged or subject.unreachable) and subject.version >= (3, 12):
        for queue in subject.topology.work_queues:
            known = subject.queues.get(queue.name, {})
            policy = (known.get("effective_policy_definition") or {}).get("consumer-timeout")
            argument = known.get("arguments", {}).get("x-consumer-timeout")
            found += [
                (value / 1000, f"set for {queue.name} by {whose}")
                for value, whose in ((policy, "a policy"), (argument, "an argument"))
                if value is not None
            ]
    if found:
        return min(found)
    if broker is not None:
        return broker / 1000, "set in the broker's configuration"
    return subject.settings.proj_consumer_timeout, "PROJ_CONSUMER_TIMEOUT, for the broker does not tell"


def message_size(subject: Subject) -> Iterator[Finding]:
    """How large a message may be."""
    limit = subject.configured("max_message_size")
    if limit is not None:
        yield ok(f"the broker takes messages of up to {limit / 2**20:g} MiB")
        return
    usual = _MESSAGE_SIZES[subject.version >= (4, 0)]
    yield ok(f"the broker takes messages of up to {usual} MiB, unless its configuration says otherwise")


def result_store(subject: Subject) -> Iterator[Finding]:
    """Whether a result can be stored, read and deleted; none is left behind."""
    try:
        _try_store(subject)
    except ResultStoreError as problem:
        yield error(
            problem.message,
            "a worker that cannot store what a task ended with makes a dead letter of its message",
            problem.hint,
        )
    else:
        yield ok("the result store takes a result, gives it back, and forgets it")


def _try_store(subject: Subject) -> None:
    try:
        within(_STORE_TIMEOUT, partial(_store_and_forget, subject))
    except TimeoutError:
        raise ResultStoreError(
            f"the result store does not answer within {_STORE_TIMEOUT:g} s", "check CELERY_RESULT_BACKEND"
        ) from None


def _store_and_forget(subject: Subject) -> None:
    backend, task_id = subject.app.backend, f"proj-doctor-{uuid.uuid4()}"
    try:
        backend.store_result(task_id, None, states.SUCCESS)
        stored = backend.get_task_meta(task_id, cache=False)["status"]
        backend.forget(task_id)
    except Exception as problem:  # the store may be of any kind
        raise store_error(subject.app, problem, "written") from problem
    if stored != states.SUCCESS:
        raise ResultStoreError("the result store forgets what it is given", "check CELERY_RESULT_BACKEND")


def credentials(subject: Subject) -> Iterator[Finding]:
    """Whether a password can be guessed, or read on the way."""
    # Each host is looked for once: a name server that is silent is waited for.
    is_local = cache(_is_loopback)
    doubts: list[Finding] = []
    for url in subject.settings.broker_url.split(";"):
        doubts += _doubts_of_broker(urlsplit(url), is_local)
    management = urlsplit(subject.management.url)
    if management.scheme == "http" and not is_local(management.hostname):
        doubts.append(
            warning(
                f"the management API at {management.hostname} is asked over plain http",
                "the password can be read on the way, and so can what is answered",
                "let it listen with TLS, and set PROJ_MANAGEMENT_URL to https://…",
            )
        )
    doubts += _doubts_of_database(subject.settings.result_backend, is_local)
    yield from doubts or [ok("no password leaves this machine in the open, or is easily guessed")]


def _doubts_of_broker(url: SplitResult, is_local: _IsLocal) -> Iterator[Finding]:
    host = url.hostname or "localhost"
    if is_local(host):
        return
    user, password = unquote(url.username or "guest"), unquote(url.password or "guest")
    if password in _DEFAULT_PASSWORDS or password == user:
        yield warning(
            f"the password of user {user!r} at {host} is one that is guessed first",
            "whoever reaches the broker can take its messages, and send tasks to the workers",
            f"give the user another one with: rabbitmqctl change_password {user}; and set AMQP_PASSWORD or "
            "CELERY_BROKER_URL",
        )
    if url.scheme != "amqps":
        yield warning(
            f"the broker at {host} is reached over plain amqp",
            "passwords and messages can be read on the way",
            "let RabbitMQ listen with TLS, and set CELERY_BROKER_URL to amqps://…:5671/…",
        )


def _doubts_of_database(url: str, is_local: _IsLocal) -> Iterator[Finding]:
    database = urlsplit(url.removeprefix("db+"))
    if database.scheme.startswith("postgresql") and not database.password and not is_local(database.hostname):
        yield info(
            f"CELERY_RESULT_BACKEND has no password for the database at {database.hostname}",
            "the server lets in whoever asks, unless a certificate or ~/.pgpass is what it looks at",
            "give the user a password, and put it into the URL or into ~/.pgpass",
        )


def _is_loopback(host: str | None) -> bool:
    """Whether the name leads to this machine only; no name is a socket on it."""
    if not host:
        return True
    try:
        found = within(_LOOK_UP_TIMEOUT, partial(socket.getaddrinfo, host, None))
    except (OSError, UnicodeError):
        return False
    return all(ip_address(str(where[0]).partition("%")[0]).is_loopback for *_, where in found)
