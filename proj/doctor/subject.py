"""The subject of the checks: settings, application, broker and management API."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any, Final, Self, TypeVar

from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Exchange, Queue

from proj.config import Settings
from proj.errors import BrokerUnreachable, ManagementUnavailable, ProjError
from proj.rabbitmq import connection, failures, version
from proj.rabbitmq.management import Management
from proj.rabbitmq.remote_control import RemoteControl

#: Seconds for the requests on one channel; milliseconds are usual.
PATIENCE: Final = 5

#: Seconds to close the connection in order, before it is cut.
_CLOSE_TIMEOUT: Final = 1

#: Columns of the queues to request; others would cost the broker time.
_COLUMNS: Final = (
    "name,type,durable,auto_delete,arguments,policy,operator_policy,effective_policy_definition,members"
)

T = TypeVar("T")


class Subject:
    """Gives the checks access to the broker and its management API, within seconds each.

    A context manager that connects on entry, where possible, and disconnects at the end.
    """

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.topology = settings.topology
        self.app = app
        self.management = Management.from_settings(settings)
        # No confirm is needed here, and none comes while an alarm is on.
        self.broker: Connection = app.connection_for_write(transport_options={"confirm_publish": False})
        #: Why there is no connection; None when there is one.
        self.unreachable: ProjError | None = None
        self._answers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            connection.connect(self.broker, time.monotonic() + PATIENCE)
        except failures.ERRORS as error:
            self.unreachable = failures.explain(error, self.broker)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(*failures.ERRORS), connection.cut_at(time.monotonic() + _CLOSE_TIMEOUT, self.broker):
            self.broker.release()
        connection.abandon(self.broker)

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's version, such as `(3, 10)`; `(0, 0)` when unknown. Raises `BrokerUnreachable`."""
        return version.parse(self.properties.get("version", ""))

    @property
    def properties(self) -> dict[str, Any]:
        """The server properties of the connection. Raises `BrokerUnreachable`."""
        self._check_reachable()
        properties: dict[str, Any] = self.broker.connection.server_properties
        return properties

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A new channel, since the broker closes one that looks for something missing.

        Raises `BrokerUnreachable` or `BrokerRefused`, unless the block catches the broker's error.
        """
        self._check_reachable()
        try:
            with connection.cut_at(time.monotonic() + PATIENCE, self.broker):
                channel = self.broker.channel()
                yield channel
                channel.close()
        except failures.ERRORS as error:
            raise failures.explain(error, self.broker) from error

    def _check_reachable(self) -> None:
        if self.unreachable or not self.broker.connected:
            raise BrokerUnreachable("the broker is unreachable")

    def exists(self, entity: Exchange | Queue) -> bool:
        """Whether the queue or exchange exists, with any arguments.

        Raises `BrokerUnreachable`, `BrokerRefused`.
        """
        with self.channel() as channel:
            mine = entity(channel)
            declare = mine.queue_declare if isinstance(mine, Queue) else mine.declare
            try:
                declare(passive=True)
            except NotFound:
                return False
        return True

    @cached_property
    def workers(self) -> dict[str, dict[str, Any]]:
        """The statistics of each worker, by its name. Raises `BrokerUnreachable`, `BrokerRefused`."""
        control = self.app.control
        # A request would create the exchange, which a worker creates at its start.
        if not self.exists(control.mailbox.exchange):
            return {}
        with self.channel():
            return RemoteControl(self.app, self.broker).ask("stats")

    def ask(self, path: str) -> Any:
        """The management API's answer, cached. Raises `ManagementUnavailable`."""
        if path not in self._answers:
            self._answers[path] = self._managed(partial(self.management.get, path))
        return self._answers[path]

    @cached_property
    def queues(self) -> dict[str, dict[str, Any]]:
        """The management API's data of each queue, by name. Raises `ManagementUnavailable`."""
        path = self.management.path("queues", columns=_COLUMNS)
        return {queue["name"]: queue for queue in self.ask(path)}

    def clock(self) -> float:
        """The broker's time, in seconds since 1970. Raises `ManagementUnavailable`."""
        return self._managed(self.management.clock)

    def configured(self, name: str) -> int | None:
        """A number in the broker's configuration; None when unknown.

        RabbitMQ reports it since 3.12, to administrators.
        """
        try:
            if "config" not in self._answers:
                self._answers["config"] = self._managed(partial(self.management.text, "config/effective"))
        except ManagementUnavailable:
            return None
        found = re.search(rf"\{{{name},(\d+)\}}", self._answers["config"])
        return int(found[1]) if found else None

    def _managed(self, ask: Callable[[], T]) -> T:
        if self.unmanaged:
            raise self.unmanaged
        try:
            return ask()
        except ManagementUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self.unmanaged = error  # or each request would take a timeout
            raise

    @cached_property
    def unmanaged(self) -> ManagementUnavailable | None:
        """Why the management API cannot be used; None when it can."""
        try:
            self.management.get("whoami")
        except ManagementUnavailable as error:
            return error
        return None
