"""Arguments that are numbers and texts, as most are: in JSON, and as Celery shows them.

The ways of kombu and Celery, for any arguments, take five times as long.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, Final

#: Characters up to which Celery certainly shows arguments uncut: it cuts from 1,024 on.
_UNCUT: Final = 1000

#: From this number on, a number is not plain: Python writes none of thousands of digits.
_LARGE: Final = 2**63

_encode: Final = json.JSONEncoder().encode

#: What differs between JSON and Python.
_CONSTANTS: Final = {None: "null", True: "true", False: "false"}

#: Some of all kinds, to compare with kombu's own JSON.
SAMPLE: Final = (1, -0.5, 1e300, "a\"'\\é\u2028\n\x7f", True, False, None)


def plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str, str, str] | None:
    """The arguments as Celery shows them and in JSON, and so the keyword arguments; None for any others."""
    found = _each(args)
    if found is None:
        return None
    shown, texts = found
    shown_args = f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"
    text_args = f"[{', '.join(texts)}]"
    if len(shown_args) > _UNCUT:
        return None
    if not kwargs:
        return shown_args, text_args, "{}", "{}"
    names, found = _each(kwargs), _each(kwargs.values())
    if names is None or found is None:
        return None
    shown_kwargs = f"{{{', '.join(map(': '.join, zip(names[0], found[0], strict=True)))}}}"
    text_kwargs = f"{{{', '.join(map(': '.join, zip(names[1], found[1], strict=True)))}}}"
    return None if len(shown_kwargs) > _UNCUT else (shown_args, text_args, shown_kwargs, text_kwargs)


def _each(values: Iterable[Any]) -> tuple[list[str], list[str]] | None:
    shown, texts = [], []
    for value in values:
        kind = type(value)
        if kind is int and -_LARGE < value < _LARGE:
            text = str(value)
            shown.append(text)
            texts.append(text)
        elif kind is str:
            escaped: str = value.replace("'", "\\'")
            shown.append(f"'{escaped}'")
            texts.append(_encode(value))
        elif kind is bool or value is None:
            shown.append(str(value))
            texts.append(_CONSTANTS[value])
        elif kind is float and math.isfinite(value):
            text = repr(value)
            shown.append(text)
            texts.append(text)
        else:
            return None
    return shown, texts
