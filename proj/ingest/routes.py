"""Routes as data: from which foreign queue, decoded how, a message becomes which task in which work queue.

They come from the file of `PROJ_INGEST_ROUTES`, or are those of `DEFAULT`, and are checked at the start.
"""

import inspect
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.enqueue import Task, find_task
from proj.enqueue.app import App
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.parameters import Arguments
from proj.enqueue.routing import queue_of
from proj.errors import BadArguments, ConfigError, ProjError, did_you_mean
from proj.ingest import decoders
from proj.ingest.decoders import Decoder
from proj.ingest.rubbish import Rubbish
from proj.logs.printable import one_line, shown

#: What the classic programs publish: a text with a second of work for each dot, and sums.
DEFAULT: Final[Mapping[str, Any]] = {
    "route": [
        {"queue": "task_queue", "decoder": "text", "task": "proj.tasks.sleep_dots"},
        {
            "queue": "add",
            "decoder": "json",
            "task": "proj.tasks.add",
            "arguments": {"Number1": "x", "Number2": "y"},
        },
    ]
}

#: The keys of a route, each with its type; the first three must be there.
_KEYS: Final[Mapping[str, type]] = {
    "queue": str,
    "decoder": str,
    "task": str,
    "work_queue": str,
    "arguments": dict,
}
_REQUIRED: Final = ("queue", "decoder", "task")

#: The largest body in bytes. As JSON a text may take six times as many, and RabbitMQ 4 takes 16 MiB.
MAX_BODY: Final = 2 * 2**20

_PARAMETER: Final = inspect.Parameter


@dataclass(frozen=True)
class Route:
    """The way of the messages of one foreign queue."""

    queue: str
    decoder: str
    task: Task
    work_queue: str
    #: Keys of a JSON object, with the names of the arguments that they stand for.
    names: Mapping[str, str]
    decode: Decoder

    def arguments(self, body: bytes) -> Arguments:
        """The arguments that a body stands for. Raises `Rubbish` when the task does not take them."""
        if len(body) > MAX_BODY:
            raise Rubbish(Reason.UNREADABLE, f"the body has {len(body):,} bytes, more than {MAX_BODY:,}")
        try:
            args, kwargs = given_arguments(self.task.name, *self.decode(body))
        except (ValueError, BadArguments) as error:
            raise Rubbish(Reason.UNREADABLE, one_line(error)) from error
        except Exception as error:  # a decoder of others may raise anything
            raise Rubbish(
                Reason.UNREADABLE, f"the decoder {self.decoder} failed: {one_line(repr(error))}"
            ) from error
        try:
            check_call(self.task.name, args, kwargs, self.task.parameters)
        except BadArguments as error:
            raise Rubbish(Reason.INVALID, one_line(error)) from error
        return args, kwargs


def load(app: App) -> tuple[Route, ...]:
    """The application's routes. Raises `ConfigError`, with the file and the number of the wrong route."""
    path = app.settings.proj_ingest_routes
    app.loader.import_default_modules()  # here: a mistake in a module with tasks is not one in the routes
    where = f"PROJ_INGEST_ROUTES ({path})" if path else "the default routes"
    try:
        return parse(app, _read(path) if path else DEFAULT)
    except ProjError as error:
        hint = error.hint if path else f"{error.hint}; set PROJ_INGEST_ROUTES to a file with routes of yours"
        raise ConfigError(f"{where}: {error.message}", hint) from error


def parse(app: App, data: Mapping[str, Any]) -> tuple[Route, ...]:
    """The routes of `{"route": [{"queue": …, …}, …]}`. Raises `ConfigError`."""
    _check_keys("the file", data, ["route"])
    tables = data.get("route")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("there is no route", "write one with [[route]], queue, decoder and task")
    found: dict[str, Route] = {}
    for number, table in enumerate(tables, 1):
        try:
            route = _route(app, table)
            if route.queue in found:
                raise ConfigError(f"queue {route.queue!r} has a route already")
        except ProjError as error:
            raise ConfigError(f"route {number}: {error.message}", error.hint) from error
        found[route.queue] = route
    return tuple(found.values())


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"it is not {kind}: {one_line(error)}") from None


def _check_keys(what: str, table: Any, known: list[str]) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{what} must be a table, got {shown(table)}")
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known, likeness=0.5)
            raise ConfigError(f"unknown key {shown(key)}", hint or f"known: {', '.join(known)}")


def _route(app: App, table: Any) -> Route:
    _check_keys("a route", table, list(_KEYS))
    for key in _REQUIRED:
        if key not in table:
            raise ConfigError(f"it has no {key}")
    for key, value in table.items():
        if not isinstance(value, _KEYS[key]):
            wanted = "a table" if _KEYS[key] is dict else "a text"
            raise ConfigError(f"{key} must be {wanted}, got {shown(value)}")
    names = table.get("arguments", {})
    if not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"arguments maps keys to names of arguments, got {shown(names)}")
    task = find_task(app, table["task"])
    route = Route(
        queue=table["queue"],
        decoder=table["decoder"],
        task=task,
        work_queue=queue_of(task, (), {}, table.get("work_queue")) or "",
        names=names,
        decode=decoders.find(table["decoder"], names),
    )
    _check_queues(app, route)
    _check_arguments(route)
    return route


def _check_queues(app: App, route: Route) -> None:
    ours = [queue.name for queue in app.settings.topology.queues]
    work_queues = [queue.name for queue in app.settings.topology.work_queues]
    if route.queue in ours or route.queue.startswith(("amq.", "celery_delayed_", queues.dead_queue.name)):
        back = " and would come back to it" if route.queue == route.work_queue else ""
        raise ConfigError(
            f"queue {route.queue!r} is no foreign queue{back}", "name the queue that programs fill"
        )
    if not queues.can_be_name(route.queue):
        raise ConfigError(f"queue {shown(route.queue)} is longer than {queues.MAX_NAME} bytes, or empty")
    if route.work_queue not in work_queues:
        hint = did_you_mean(route.work_queue, work_queues, likeness=0.5)
        known = f"known: {', '.join(work_queues)}; PROJ_QUEUES adds more"
        raise ConfigError(f"there is no work queue {shown(route.work_queue)}", hint or known)


def _check_arguments(route: Route) -> None:
    """Refuse a task that does not take what the decoder makes."""
    parameters = route.task.parameters.signature.parameters.values()
    positional = [
        each
        for each in parameters
        if each.kind in (_PARAMETER.POSITIONAL_ONLY, _PARAMETER.POSITIONAL_OR_KEYWORD)
    ]
    rest = any(each.kind is _PARAMETER.VAR_POSITIONAL for each in parameters)
    named = {
        each.name
        for each in parameters
        if each.kind in (_PARAMETER.KEYWORD_ONLY, _PARAMETER.POSITIONAL_OR_KEYWORD)
    }
    any_name = any(each.kind is _PARAMETER.VAR_KEYWORD for each in parameters)
    usage = f"usage: {route.task.usage}"
    if route.decoder == "text":
        try:
            route.task.parameters.signature.bind("")
        except TypeError as error:
            raise ConfigError(f"{route.task.name} does not take one text: {error}", usage) from None
    if route.decoder == "json-args" and not (positional or rest):
        raise ConfigError(f"{route.task.name} takes its arguments only by name", usage)
    if route.decoder == "json":
        for name in route.names.values():
            if name not in named and not any_name:
                hint = did_you_mean(name, named, likeness=0.5)
                raise ConfigError(f"{route.task.name} has no argument {shown(name)}", hint or usage)
        twice = [name for name in route.names.values() if list(route.names.values()).count(name) > 1]
        if twice:
            raise ConfigError(f"two keys stand for the argument {shown(twice[0])}")
        for each in positional:
            if each.kind is _PARAMETER.POSITIONAL_ONLY and each.default is each.empty:
                raise ConfigError(f"{route.task.name} takes {each.name} only by its position", usage)
