"""Checks of this machine's settings: confirms, tasks, time limits, the result store and passwords."""

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
from proj.errors import ProjError, ResultStoreError
from proj.results.engines import CONNECT_TIMEOUT
from proj.results.patience import PATIENCE
from proj.results.store import store_error
from proj.worker import environment

#: Connection options that publishing needs, each with the effect of leaving it out.
_CONNECTION_OPTIONS: Final = {
    "confirm_publish": "a publish returns before the broker has the message, which may then be lost",
    "read_timeout": "a publish hangs while the broker's alarm is on",
    "write_timeout": "a publish hangs while the broker's alarm is on",
}

#: Task options that must have this value, each with the effect of another one.
_TASK_OPTIONS: Final = {
    "acks_late": (True, "its message is lost when its worker dies"),
    "reject_on_worker_lost": (True, "its message is lost when its process is killed"),
    "acks_on_failure": (False, "its message is dropped when it fails"),
    "acks_on_timeout": (False, "its message is dropped when it exceeds its time limit"),
}

#: The default limit of a message in MiB: before RabbitMQ 4.0, and since.
_MESSAGE_SIZES: Final = (128, 16)

#: Passwords that attackers try first.
_DEFAULT_PASSWORDS: Final = frozenset({"", "guest", "admin", "rabbitmq", "password"})

#: Seconds to write, read and delete one result.
_STORE_TIMEOUT: Final = 2 * PATIENCE + CONNECT_TIMEOUT

#: Seconds to resolve a host name; milliseconds are usual.
_RESOLVE_TIMEOUT: Final = 2

_IsLocal = Callable[[str | None], bool]


def publishing(subject: Subject) -> Iterator[Finding]:
    """Check that publishes are confirmed and time out."""
    options = subject.app.conf.broker_transport_options
    off = {name: why for name, why in _CONNECTION_OPTIONS.items() if not options.get(name)}
    for name, why in off.items():
        yield error(f"{name} is off", why, "set it in broker_transport_options, in proj/celeryconfig.py")
    if not off:
        yield ok(f"publishes are confirmed, and time out after {subject.settings.proj_publish_timeout:g} s")


def tasks(subject: Subject) -> Iterator[Finding]:
    """Check that the options of the tasks keep the promise."""
    own = own_tasks(subject.app)
    unsafe = [
        warning(f"task {name} sets {option}={not wanted}", why, f"remove {option} from its @app.task(…)")
        for name, task in own.items()
        for option, (wanted, why) in _TASK_OPTIONS.items()
        if bool(getattr(task, option)) != wanted
    ]
    yield from unsafe or [ok(f"all {len(own)} tasks are acknowledged only after they have ended")]


def time_limits(subject: Subject) -> Iterator[Finding]:
    """Check that every task's time limit is below the broker's consumer timeout."""
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
            "the broker redelivers the message while its task still runs, so that it is executed again",
            f"lower PROJ_TASK_TIME_LIMIT or the task's time_limit, or raise the timeout ({source})",
        )
    believed = subject.settings.proj_consumer_timeout
    if not late and seconds < believed:
        yield warning(
            f"PROJ_CONSUMER_TIMEOUT is {believed} s, but the broker's consumer_timeout is {seconds:g} s",
            "workers check the time limits of their tasks against the former",
            f"set PROJ_CONSUMER_TIMEOUT={seconds:g}",
        )
    elif not late:
        longest = max(limits.values(), default=subject.settings.proj_task_time_limit)
        yield ok(f"tasks end within {longest} s; the broker's consumer_timeout is {seconds:g} s ({source})")


def _consumer_timeout(subject: Subject) -> tuple[float, str]:
    """The broker's consumer timeout in seconds, and where it is set.

    Since 4.3 what workers ask for wins. Since 3.12 policies and queue arguments override the broker's
    configuration, and the smallest one counts (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
    """
    if not (subject.unmanaged or subject.unreachable) and subject.version >= (4, 3):
        return subject.settings.proj_consumer_timeout, "PROJ_CONSUMER_TIMEOUT, which workers ask for"
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
    return subject.settings.proj_consumer_timeout, "PROJ_CONSUMER_TIMEOUT; the broker does not report its own"


def unread_names(subject: Subject) -> Iterator[Finding]:
    """Check that no name of the environment looks like a setting that nothing reads."""
    names = environment.unread()
    if names:
        yield warning(
            f"nothing reads {environment.explain(names)}",
            "whoever has set it expects an effect, unless it is for another program",
            "set what is named instead; Celery's other settings are in proj/celeryconfig.py",
        )
    else:
        yield ok("every setting of Celery in the environment is read")


def message_size(subject: Subject) -> Iterator[Finding]:
    """Report the largest message that the broker accepts."""
    limit = subject.configured("max_message_size")
    if limit is not None:
        yield ok(f"the broker accepts messages of up to {limit / 2**20:g} MiB")
        return
    default = _MESSAGE_SIZES[subject.version >= (4, 0)]
    yield ok(f"the broker accepts messages of up to {default} MiB, unless it is configured otherwise")


def result_store(subject: Subject) -> Iterator[Finding]:
    """Check that the result store works, by writing, reading and deleting a result."""
    if subject.settings.result_backend.startswith("rpc://"):
        yield info(
            "results are messages to the program that waits for them, and not stored (rpc://)",
            "a message that may be a repeat is executed again, and a result is lost with its program",
            "keep results in a database: set CELERY_RESULT_BACKEND to db+postgresql://…",
        )
        return
    try:
        _try_store(subject)
    except ProjError as problem:
        yield error(
            problem.message,
            "a message whose result cannot be stored becomes a dead letter",
            problem.hint,
        )
    else:
        yield ok("the result store can be written and read")


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
        raise ResultStoreError("the result store does not keep results", "check CELERY_RESULT_BACKEND")


def credentials(subject: Subject) -> Iterator[Finding]:
    """Check that no password is easily guessed or sent in clear text."""
    # Cached, since a name server that does not answer takes a timeout.
    is_local = cache(_is_loopback)
    doubts: list[Finding] = []
    for url in subject.settings.broker_url.split(";"):
        doubts += _broker_doubts(urlsplit(url), is_local)
    doubts += [
        warning(
            f"the management API at {url.hostname} is used over plain http",
            "the network can read the password and the answers",
            "let it listen with TLS, and set PROJ_MANAGEMENT_URL to https://…",
        )
        for url in (urlsplit(api.url) for api in subject.management.apis)
        if url.scheme == "http" and not is_local(url.hostname)
    ]
    doubts += _database_doubts(subject.settings.result_backend, is_local)
    yield from doubts or [ok("no password is sent in clear text to another machine, or easily guessed")]


def _broker_doubts(url: SplitResult, is_local: _IsLocal) -> Iterator[Finding]:
    host = url.hostname or "localhost"
    if is_local(host):
        return
    user, password = unquote(url.username or "guest"), unquote(url.password or "guest")
    if password in _DEFAULT_PASSWORDS or password == user:
        yield warning(
            f"the password of user {user!r} at {host} is easily guessed",
            "anyone who can connect to the broker can read its messages and send tasks to the workers",
            f"change it with: rabbitmqctl change_password {user}; and set AMQP_PASSWORD or CELERY_BROKER_URL",
        )
    if url.scheme != "amqps":
        yield warning(
            f"the broker at {host} is used over plain amqp",
            "the network can read passwords and messages",
            "let RabbitMQ listen with TLS, and set CELERY_BROKER_URL to amqps://…:5671/…",
        )


def _database_doubts(url: str, is_local: _IsLocal) -> Iterator[Finding]:
    database = urlsplit(url.removeprefix("db+"))
    if database.scheme.startswith("postgresql") and not database.password and not is_local(database.hostname):
        yield info(
            f"CELERY_RESULT_BACKEND has no password for the database at {database.hostname}",
            "the server accepts everyone, unless a certificate or ~/.pgpass is used",
            "give the user a password, in the URL or in ~/.pgpass",
        )


def _is_loopback(host: str | None) -> bool:
    """Whether the host is this machine; None stands for a local socket."""
    if not host:
        return True
    try:
        found = within(_RESOLVE_TIMEOUT, partial(socket.getaddrinfo, host, None))
    except (OSError, UnicodeError):
        return False
    return all(ip_address(str(where[0]).partition("%")[0]).is_loopback for *_, where in found)
