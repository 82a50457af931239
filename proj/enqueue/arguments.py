"""Checks the arguments of one call: the task must accept them, and a message must be able to carry them."""

import collections.abc
import json
import math
from collections.abc import Iterable
from itertools import count
from typing import Any, Final

from kombu.utils import json as kombu_json
from pydantic import BaseModel

from proj.enqueue.checks import MAX_NESTING, is_deeper
from proj.enqueue.parameters import Arguments, Parameters
from proj.errors import BadArguments
from proj.logs.printable import key_shown, one_line, shown

#: From this number on, a number is not plain.
_LARGE: Final = 2**63


def given_arguments(task: str, args: Any, kwargs: Any) -> Arguments:
    """The caller's arguments as a tuple and a dict. Raises `BadArguments`."""
    if type(args) is tuple and type(kwargs) is dict and not kwargs:  # as most
        return args, {}
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
    if _are_plain(args, kwargs):
        if parameters:
            parameters.check(args, kwargs)
        return
    try:
        arrived = _as_arrived([args, kwargs])
    except Exception as error:  # an object's own encoding may raise anything
        if parameters:
            parameters.check(args, kwargs)  # its error is clearer, if it raises one
        which, error = _first_bad_argument(args, kwargs, parameters, error)
        raise BadArguments(f"{task}: JSON cannot carry {which}: {one_line(error)}") from error
    if parameters:
        parameters.check(*arrived)
    if _equal(arrived, [list(args), kwargs]):
        return
    for given, arrives in ((args, arrived[0]), (kwargs, arrived[1])):
        difference = _difference(given, arrives)
        if difference and not (parameters and _is_restored(parameters, (args, kwargs), arrived)):
            path, value, other = difference
            where = ".".join([_named(path[0], parameters), *map(key_shown, path[1:])])
            raise BadArguments(f"{task}: argument {where}: {shown(value)} would arrive as {shown(other)}")


def _are_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether they certainly arrive as they are: numbers and texts, as most arguments."""
    return (
        all(map(_is_plain, args))
        and all(map(_is_plain, kwargs.values()))
        and all(map(str.isascii, kwargs))
        and "__type__" not in kwargs  # kombu would decode such a dict to something else
    )


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return (
        (kind is int and -_LARGE < value < _LARGE)  # Python reads no number of thousands of digits
        or (kind is str and value.isascii())
        or kind is bool
        or value is None
        or (kind is float and math.isfinite(value))
    )


class _Encoder(kombu_json.JSONEncoder):
    """Kombu's encoder, which also writes pydantic models, as Celery does."""

    def default(self, o: Any) -> Any:
        if isinstance(o, BaseModel) and not hasattr(type(o), "__json__"):
            return o.model_dump(mode="json")
        return super().default(o)


_encode: Final = _Encoder(allow_nan=False, ensure_ascii=False).encode


def _as_arrived(value: Any) -> Any:
    """The value as it arrives. Raises `ValueError` for one that cannot be read, and any encoding error."""
    try:
        text = _encode(value)
        text.encode()  # raises for lone surrogates, as in a file name that is not UTF-8
        arrived = _decode(text)
        # Counting brackets first is faster. Each argument is inside of two lists.
        too_deep = text.count("[") + text.count("{") > MAX_NESTING and is_deeper(arrived, MAX_NESTING + 2)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested more than {MAX_NESTING} deep")
    return arrived


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


def _first_bad_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Parameters | None, error: Exception
) -> tuple[str, Exception]:
    """The first argument that JSON cannot carry, and why."""
    keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in keyed:
        try:
            _as_arrived([[value]])
        except Exception as found:
            return f"argument {_named(key, parameters)}", found
    return "the arguments", error


def _named(key: int | str, parameters: Parameters | None) -> str:
    return parameters.name_of(key) if parameters else str(key)


def _difference(given: Any, arrived: Any, *path: Any) -> tuple[tuple[Any, ...], Any, Any] | None:
    """The first difference between what was given and what arrives: its path, and both values."""
    if type(given) is tuple:
        given = list(given)
    if _equal(given, arrived) or _is_same_value(given, arrived):
        return None
    if isinstance(given, list) and isinstance(arrived, list) and len(given) == len(arrived):
        pairs: Iterable[tuple[Any, Any, Any]] = zip(count(), given, arrived, strict=False)
    elif isinstance(given, dict) and isinstance(arrived, dict) and given.keys() == arrived.keys():
        pairs = ((key, value, arrived[key]) for key, value in given.items())
    else:
        return path, given, arrived
    for key, *pair in pairs:
        if found := _difference(*pair, *path, key):
            return found
    return None


def _is_restored(parameters: Parameters, given: Arguments, arrived: Arguments) -> bool:
    """Whether the annotations restore what was given, such as a `set` that travels as a list."""
    try:
        return _difference(list(parameters.check(*given)), list(parameters.check(*arrived))) is None
    except BadArguments:  # the difference is what is reported
        return False


def _equal(given: Any, arrived: Any) -> bool:
    try:
        return bool(given == arrived)
    except Exception:  # such as from a signalling NaN of `decimal`
        return False


def _is_same_value(given: Any, arrived: Any) -> bool:
    """Whether both are the same value although unequal, such as a time that a clock shows twice (DST)."""
    if hasattr(type(given), "__json__"):  # its class defines how it travels
        return True
    return (
        not isinstance(given, dict | list)
        and isinstance(given, type(arrived))
        and _encode(given) == _encode(arrived)
    )
