"""JSON as every parser reads it: what Python's `json` writes beyond the standard becomes text."""

import json
import re
from typing import Any, Final

#: Half of a character, which a strict parser refuses, as in a file's name that is not UTF-8.
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def to_json(value: Any) -> str:
    """The value as one line of ASCII.

    Text stands for what JSON lacks: `"NaN"`, `"Infinity"`, a date in ISO 8601, a decimal number, bytes.
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
