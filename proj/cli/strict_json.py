"""Strict JSON: values that the standard lacks are written as text."""

import json
import re
from typing import Any, Final

#: A lone surrogate, as in a file name that is not UTF-8; strict parsers refuse it.
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def to_json(value: Any) -> str:
    """The value as one line of ASCII.

    NaN, Infinity, dates (ISO 8601), decimals and bytes become text.
    """
    text = json.dumps(value, default=_as_text, ensure_ascii=False)
    # As `caf\udce9`, with a backslash that JSON escapes.
    text = _LONE_SURROGATE.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text)
    return json.dumps(json.loads(text, parse_constant=str))


def _as_text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    isoformat = getattr(value, "isoformat", None)  # of a date or a time
    return str(isoformat() if isoformat else value)
