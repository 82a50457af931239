"""Checks the arguments of one call: the task must accept them, and a message must be able to carry them."""

import collections.abc
import json
from collections.abc import Iterable
from itertools import count
from typing import Any, Final

from kombu.utils import json as kombu_json
from pydantic import BaseModel

from proj.enqueue.checks import MAX_NESTING, is_deeper
from proj.enqueue.parameters import Arguments, Parameters
from proj.errors import BadArguments
from proj.logs.printable import key_shown, one_line, shown


def given_arguments(task: str, args: Any, kwargs: Any) -> Arguments:
    """The caller's arguments as a tuple and a dict. Raises `BadArguments`."""
    if args is None:
        args = ()
    if isinstance(args, str | bytes | bytearray) or not isinstance(args, collections.abc.Sequence):
        # Each letter of a text would be an argument.
        raise BadArguments(
            f"{task}: arguments are a list or a tuple, got {shown(args)}", "is a comma missing?"
        )
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, collections.abc.Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise BadArguments(f"{task}: keyword arguments are a dict with names as keys, got {shown(kwargs)}")
    return tuple(args), dict(kwargs)


def check_call(
    task: str, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Parameters | None = None
) -> None:
    """Refuse arguments that the task does not accept, that JSON cannot carry, or that would arrive changed.

    Arguments are checked in the form in which they arrive. These changes are allowed: to an equal value, such
    as from a `StrEnum` to its text; from a tuple to a list; and any change that the annotations reverse.
    Without `parameters`, for a task of another program, annotations are not checked. Raises `BadArguments`.
    """
    try:
        came = _carried([args, kwargs])
    except Exception as error:  # an object's own encoding may raise anything
        if parameters:
            parameters.check(args, kwargs)  # its error is clearer, if it raises one
        which, error = _culprit(args, kwargs, parameters, error)
        raise BadArguments(f"{task}: JSON cannot carry {which}: {one_line(error)}") from error
    if parameters:
        parameters.check(*came)
    if _equal(came, [list(args), kwargs]):
        return
    for given, arrives in ((args, came[0]), (kwargs, came[1])):
        difference = _difference(given, arrives)
        if difference and not (parameters and _turned_back(parameters, (args, kwargs), came)):
            path, value, other = difference
            where = ".".join([_named(path[0], parameters), *map(key_shown, path[1:])])
            raise BadArguments(f"{task}: argument {where}: {shown(value)} would arrive as {shown(other)}")


class _Encoder(kombu_json.JSONEncoder):
    """Kombu's encoder, which also writes pydantic models, as Celery does."""

    def default(self, o: Any) -> Any:
        if isinstance(o, BaseModel) and not hasattr(type(o), "__json__"):
            return o.model_dump(mode="json")
        return super().default(o)


_encode: Final = _Encoder(allow_nan=False, ensure_ascii=False).encode


def _carried(value: Any) -> Any:
    """The value as it arrives. Raises `ValueError` for one that cannot be read, and any encoding error."""
    try:
        text = _encode(value)
        text.encode()  # raises for lone surrogates, as in a file name that is not UTF-8
        came = _decode(text)
        # Counting brackets first is faster. Each argument is inside of two lists.
        too_deep = text.count("[") + text.count("{") > MAX_NESTING and is_deeper(came, MAX_NESTING + 2)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested more than {MAX_NESTING} deep")
    return came


def _decode(text: str) -> Any:
    if '"__type__"' not in text:
        return json.loads(text)
    try:
        return json.loads(text, object_hook=kombu_json.object_hook)
    except RecursionError:
        raise
    except Exception:
        raise ValueError(
            "a dict with __type__ and __value__ must be an encoded value of another type"
        ) from None


def _culprit(
    args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Parameters | None, error: Exception
) -> tuple[str, Exception]:
    """The first argument that JSON cannot carry, and why."""
    keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in keyed:
        try:
            _carried([[value]])
        except Exception as found:
            return f"argument {_named(key, parameters)}", found
    return "the arguments", error


def _named(key: int | str, parameters: Parameters | None) -> str:
    return parameters.name_of(key) if parameters else str(key)


def _difference(given: Any, came: Any, *path: Any) -> tuple[tuple[Any, ...], Any, Any] | None:
    """The first difference between what was given and what arrives: its path, and both values."""
    if type(given) is tuple:
        given = list(given)
    if _equal(given, came) or _travels(given, came):
        return None
    if isinstance(given, list) and isinstance(came, list) and len(given) == len(came):
        pairs: Iterable[tuple[Any, Any, Any]] = zip(count(), given, came, strict=False)
    elif isinstance(given, dict) and isinstance(came, dict) and given.keys() == came.keys():
        pairs = ((key, value, came[key]) for key, value in given.items())
    else:
        return path, given, came
    for key, *pair in pairs:
        if found := _difference(*pair, *path, key):
            return found
    return None


def _turned_back(parameters: Parameters, given: Arguments, came: Arguments) -> bool:
    """Whether the annotations restore what was given, such as a `set` that travels as a list."""
    try:
        return _difference(list(parameters.check(*given)), list(parameters.check(*came))) is None
    except BadArguments:  # the difference is what is reported
        return False


def _equal(given: Any, came: Any) -> bool:
    try:
        return bool(given == came)
    except Exception:  # such as from a signalling NaN of `decimal`
        return False


def _travels(given: Any, came: Any) -> bool:
    """Whether both are the same value although unequal, such as a time that a clock shows twice (DST)."""
    if hasattr(type(given), "__json__"):  # its class defines how it travels
        return True
    return (
        not isinstance(given, dict | list)
        and isinstance(given, type(came))
        and _encode(given) == _encode(came)
    )
