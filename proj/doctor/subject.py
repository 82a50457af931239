"""What is looked at: the settings, the application, its broker, and the broker's management API."""

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

#: Seconds for what is asked on one channel. It takes milliseconds.
PATIENCE: Final = 5

#: Seconds to say farewell to the broker, who may not be listening.
_FAREWELL: Final = 1

#: What is asked for of each queue; all the rest would be counted by the broker first.
_COLUMNS: Final = "name,type,durable,auto_delete,arguments,policy,operator_policy,effective_policy_definition"

T = TypeVar("T")


class Subject:
    """Connected as far as it can be, within seconds. As a context manager it lets go of its connection."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.topology = settings.topology
        self.app = app
        self.management = Management.from_settings(settings)
        # Nothing rests on a confirm here, and none would come while an alarm is on.
        self.broker: Connection = app.connection_for_write(transport_options={"confirm_publish": False})
        #: Why there is no connection.
        self.unreachable: ProjError | None = None
        self._answers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            connection.connect(self.broker, time.monotonic() + PATIENCE)
        except failures.ERRORS as error:
            self.unreachable = failures.explain(error, self.broker)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(*failures.ERRORS), connection.cut_at(time.monotonic() + _FAREWELL, self.broker):
            self.broker.release()
        connection.abandon(self.broker)

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's, such as `(3, 10)`; `(0, 0)` when it does not say it. Raises `BrokerUnreachable`."""
        return version.parse(self.properties.get("version", ""))

    @property
    def properties(self) -> dict[str, Any]:
        """What the broker says of itself to whoever connects. Raises `BrokerUnreachable`."""
        self._check_reachable()
        properties: dict[str, Any] = self.broker.connection.server_properties
        return properties

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of its own, since the broker closes one that asks for what is not there.

        Raises `BrokerUnreachable` or `BrokerRefused`, unless the block catches what the broker answers.
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
            raise BrokerUnreachable("the broker cannot be reached")

    def exists(self, entity: Exchange | Queue) -> bool:
        """Whether the broker has it, whatever its arguments. Raises `BrokerUnreachable`, `BrokerRefused`."""
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
        """What each worker says of itself, by its name. Raises `BrokerUnreachable`, `BrokerRefused`."""
        control = self.app.control
        # To ask would make the exchange for it, which a worker makes at its start.
        if not self.exists(control.mailbox.exchange):
            return {}
        with self.channel():
            return RemoteControl(self.app, self.broker).ask("stats")

    def ask(self, path: str) -> Any:
        """The management API's answer, which is kept. Raises `ManagementUnavailable`."""
        if path not in self._answers:
            self._answers[path] = self._managed(partial(self.management.get, path))
        return self._answers[path]

    @cached_property
    def queues(self) -> dict[str, dict[str, Any]]:
        """What the management API knows of each queue, by name. Raises `ManagementUnavailable`."""
        path = self.management.path("queues", columns=_COLUMNS)
        return {queue["name"]: queue for queue in self.ask(path)}

    def clock(self) -> float:
        """What the broker's clock says, in seconds since 1970. Raises `ManagementUnavailable`."""
        return self._managed(self.management.clock)

    def configured(self, name: str) -> int | None:
        """A number of the broker's own configuration; None when it does not tell.

        RabbitMQ tells it since 3.12, to administrators.
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
                self.unmanaged = error  # to wait at each question would take minutes
            raise

    @cached_property
    def unmanaged(self) -> ManagementUnavailable | None:
        """Why the management API cannot be used."""
        try:
            self.management.get("whoami")
        except ManagementUnavailable as error:
            return error
        return None
