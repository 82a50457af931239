"""Checks a message's headers and callbacks before its task begins.

Celery reads them only when it needs them, during a task or after it, where a malformed one would fail the
task.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from celery import Celery
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import InvalidTaskError

from proj.enqueue import checks
from proj.enqueue.headers import HEADERS, TYPES, Check
from proj.worker import burial

#: Headers that Celery itself overwrites.
_WRITTEN_BY_CELERY: Final = frozenset(
    {"args", "kwargs", "properties", "reply_to", "correlation_id", "hostname", "delivery_info"}
)


def _is_signature(value: object) -> bool:
    """Whether the value is a serialised `celery.Signature`."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("args"), list)
        and isinstance(value.get("kwargs"), dict)
        and isinstance(value.get("options"), dict)
    )


def _is_list_of_signatures(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_signature, value))


#: The callbacks that a message embeds, which are called when its task has ended.
_EMBEDDED: Final[Mapping[str, Check]] = {
    "callbacks": _is_list_of_signatures,
    "errbacks": _is_list_of_signatures,
    "chain": _is_list_of_signatures,
    "chord": _is_signature,
}

#: Celery turns each header into an attribute, which would overwrite its own ones.
_RESERVED: Final = frozenset(dir(Context)) - HEADERS - frozenset(_EMBEDDED) - _WRITTEN_BY_CELERY

#: What is checked of the headers. Celery would read one that has the name of a callback.
_CHECKED: Final = {**TYPES, **_EMBEDDED}

#: Of arguments.
_LISTS: Final = (list, tuple)


def check(request: Any) -> None:
    """Raise `InvalidTaskError` for a part of Celery's request that has the wrong type."""
    headers = request.request_dict
    body = request.body
    _, _, embedded = body if isinstance(body, _LISTS) else request.message.payload
    if not checks.is_id(request.id):
        raise _unexpected("an id", request.id)
    if not isinstance(request.name, str):
        raise _unexpected("the name of a task", request.name)
    if not isinstance(request.args, _LISTS):
        raise _unexpected("a list of arguments", request.args)
    if not isinstance(request.kwargs, dict):
        raise _unexpected("a mapping of keyword arguments", request.kwargs)
    if embedded and not isinstance(embedded, dict):
        raise _unexpected("a mapping of callbacks", embedded)
    for name in _RESERVED.intersection(headers):
        raise InvalidTaskError(f"a header cannot be named {name!r}: Celery reserves this name")
    _check_types(headers, _CHECKED)
    if embedded:
        _check_embedded(embedded, request)


def _unexpected(what: str, value: object) -> InvalidTaskError:
    return InvalidTaskError(f"expected {what}, got {burial.text(repr(value))}")


def _check_types(values: Mapping[str, object], known: Mapping[str, Check]) -> None:
    for name, value in values.items():
        if value is None or name not in known:
            continue
        check = known[name]
        if not (isinstance(value, check) if isinstance(check, type) else check(value)):
            raise InvalidTaskError(f"{name} cannot be {burial.text(repr(value))}")


def _check_embedded(embedded: Mapping[str, object], request: Any) -> None:
    for name, value in embedded.items():
        if name not in _EMBEDDED:
            raise InvalidTaskError(f"a message embeds {', '.join(_EMBEDDED)}, got {burial.text(repr(name))}")
        if value is None:
            continue
        _check_types({name: value}, _EMBEDDED)
        for each in value if isinstance(value, list) else [value]:
            # Celery changes it, and the pool is to get what the message had.
            _check_signature(name, deepcopy(each) if request.is_shallow else each, request.app)


def _check_signature(name: str, value: Any, app: Celery) -> None:
    try:
        maybe_signature(value, app=app)
    except Exception as error:  # it may raise anything
        raise InvalidTaskError(f"{name} cannot be called: {error!r}") from error
