"""Decoders turn the body of a foreign message into the arguments of a task. They are pure functions.

To add one, write such a function in any module, and name it in a route as `module:function`. It raises
`ValueError` for a body that it does not understand, whose text is the reason that `proj dead show` prints.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from celery.utils.imports import import_from_cwd

from proj.enqueue.parameters import Arguments
from proj.errors import ConfigError, did_you_mean
from proj.logs.printable import one_line, shown

Decoder = Callable[[bytes], Arguments]

#: Integers that other languages can hold: those of 64 bits, with and without a sign.
LEAST, MOST = -(2**63), 2**64 - 1

#: UTF-8 for U+FEFF, which some editors put before a text.
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def text(body: bytes) -> Arguments:
    """The text as the one argument."""
    return (_text(body),), {}


def json_object(names: Mapping[str, str] | None = None) -> Decoder:
    """A decoder of a JSON object, whose keys are the names of arguments; `names` maps keys that differ."""
    names = names or {}
    hidden = set(names.values()) - set(names)

    def decode(body: bytes) -> Arguments:
        value = _json(body)
        if not isinstance(value, dict):
            raise ValueError(f"the body must be a JSON object, got {shown(value)}")
        for key in value:
            if key in hidden:
                raise ValueError(f"there is no key {shown(key)}; the keys are {', '.join(names)}")
        return (), {names.get(key, key): each for key, each in value.items()}

    return decode


def json_args(body: bytes) -> Arguments:
    """The items of a JSON array as the arguments."""
    value = _json(body)
    if not isinstance(value, list):
        raise ValueError(f"the body must be a JSON array, got {shown(value)}")
    return tuple(value), {}


#: The decoders by name. `json` is made for each route, since it may have a map of names.
NAMED: Final[Mapping[str, Decoder]] = {"text": text, "json": json_object(), "json-args": json_args}


def find(name: str, names: Mapping[str, str] | None = None) -> Decoder:
    """The decoder of this name, or the function `module:function`. Raises `ConfigError`."""
    if name == "json":
        return json_object(names)
    if names:
        raise ConfigError(f"the decoder {name} takes no map of arguments", "use the decoder json")
    if name in NAMED:
        return NAMED[name]
    module, colon, function = name.partition(":")
    if not colon:
        hint = did_you_mean(name, NAMED, likeness=0.5)
        raise ConfigError(f"there is no decoder {name!r}", hint or f"known: {', '.join(NAMED)}")
    try:
        found = getattr(import_from_cwd(module), function)
    except Exception as error:  # the module may raise anything
        raise ConfigError(f"the decoder {name} cannot be imported: {one_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"the decoder {name} is not a function")
    decoder: Decoder = found
    return decoder


def _text(body: bytes) -> str:
    if not body:
        raise ValueError("the body is empty")
    if body.startswith(_BYTE_ORDER_MARK):
        raise ValueError("the body begins with a byte-order mark")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is not UTF-8 from byte {error.start} on") from None


def _json(body: bytes) -> Any:
    words = _text(body)
    try:
        return _decode(words)
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("the body is nested too deep") from None


def _integer(digits: str) -> int:
    # The length first: Python refuses thousands of digits with a text of its own.
    if len(digits) <= len(str(LEAST)) and LEAST <= (value := int(digits)) <= MOST:
        return value
    raise ValueError(f"a number is beyond 64 bits: {shown(digits)}")


def _fraction(digits: str) -> float:
    if math.isfinite(value := float(digits)):
        return value
    raise ValueError(f"a number is beyond 64 bits: {shown(digits)}")


def _constant(name: str) -> Any:
    raise ValueError(f"the body is not JSON: {name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; a key that is there twice would lose its first value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"a key is there twice: {shown(next(key for key in keys if keys.count(key) > 1))}")
    return found


_decode: Final = json.JSONDecoder(
    parse_int=_integer, parse_float=_fraction, parse_constant=_constant, object_pairs_hook=_unique
).decode
