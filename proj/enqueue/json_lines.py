"""Requests as JSON Lines: one object a line, such as `{"task": "proj.tasks.add", "args": [1, 2]}`."""

import json
import os
import select
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from celery.canvas import Signature

from proj.enqueue.app import App
from proj.enqueue.task import own_tasks, unknown_task
from proj.errors import BadInput, did_you_mean
from proj.logs.printable import key_shown, one_line, shown

#: Bytes of a line: what RabbitMQ 4 accepts as a message (`max_message_size`).
MAX_LINE: Final = 16 * 2**20

#: The keys of a line, each with the option of Celery that it stands for.
_OPTIONS: Final = {
    "id": "task_id",
    "queue": "queue",
    "priority": "priority",
    "countdown": "countdown",
    "expires": "expires",
    "ignore_result": "ignore_result",
}
_KEYS: Final = ("task", "args", "kwargs", *_OPTIONS)

#: Bytes that are read at once.
_CHUNK: Final = 2**16

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class LineReader:
    """The lines of a file or a pipe."""

    def __init__(self, descriptor: int, before_waiting: Callable[[], None]) -> None:
        """`before_waiting` is called when the next line is not there yet, as in a pipe."""
        self._descriptor = descriptor
        self._before_waiting = before_waiting
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        #: Bytes that were read.
        self.position = 0

    @property
    def size(self) -> int | None:
        """The bytes of a file; None for a pipe."""
        return os.fstat(self._descriptor).st_size if self._is_file else None

    def __iter__(self) -> Iterator[bytes | None]:
        """Each line without its end; None for one that is longer than `MAX_LINE`."""
        parts: list[bytes] = []
        length = 0
        while chunk := self._read():
            *ended, rest = chunk.split(b"\n")
            for line in ended:
                yield None if length + len(line) > MAX_LINE else b"".join([*parts, line])
                parts, length = [], 0
            length += len(rest)
            if length > MAX_LINE:
                parts.clear()  # nobody needs it
            elif rest:
                parts.append(rest)
        if length:
            yield None if length > MAX_LINE else b"".join(parts)

    def _read(self) -> bytes:
        if not self._is_file and not select.select([self._descriptor], [], [], 0)[0]:
            self._before_waiting()
        chunk = os.read(self._descriptor, _CHUNK)
        is_first = self.position == 0
        self.position += len(chunk)
        if is_first and chunk.startswith(_BYTE_ORDER_MARK):
            # Alone, it would be taken for the end.
            return chunk.removeprefix(_BYTE_ORDER_MARK) or self._read()
        return chunk


class RequestParser:
    """Turns a line into a signature of one of the application's tasks."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._tasks = own_tasks(app)

    def request(self, line: bytes | None) -> Signature | None:
        """The line's request; None for an empty line. Raises `BadInput`."""
        if line is None:
            raise BadInput(
                f"it is longer than {MAX_LINE:,} bytes", "store the data elsewhere and enqueue its address"
            )
        if not line.strip():
            return None
        fields = _decoded(line)
        for key in fields:
            if key not in _KEYS:
                hint = did_you_mean(key, _KEYS, likeness=0.6) or f"known keys: {', '.join(_KEYS)}"
                raise BadInput(f"there is no key {key_shown(key)}", hint)
        name, args, kwargs = fields.get("task"), fields.get("args"), fields.get("kwargs")
        if not isinstance(name, str):
            raise BadInput(
                f"the task is a text, got {shown(name)}" if name is not None else "it names no task",
                'such as {"task": "proj.tasks.add", "args": [1, 2]}',
            )
        if name not in self._tasks:
            raise unknown_task(name, self._tasks)
        if args is not None and not isinstance(args, list):
            raise BadInput(f"args is a list, got {shown(args)}")
        if kwargs is not None and not isinstance(kwargs, dict):
            raise BadInput(f"kwargs is an object, got {shown(kwargs)}")
        options = {option: fields[key] for key, option in _OPTIONS.items() if fields.get(key) is not None}
        return Signature(self._tasks[name], args or [], kwargs or {}, options, app=self._app)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        found = _decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"it is not UTF-8: byte {error.start + 1} is {line[error.start]:#04x}") from None
    except RecursionError:
        raise BadInput("it is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise BadInput(f"it is not JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise BadInput(
            f"it is not a JSON object: {shown(found)}", 'such as {"task": "proj.tasks.add", "args": [1, 2]}'
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict. Raises `BadInput` for a duplicate key, whose first value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BadInput(f"it has a key twice: {key_shown(next(key for key in keys if keys.count(key) > 1))}")
    return found


#: Made once: `json.loads` would make one for each line.
_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique)
