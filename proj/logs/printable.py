"""Makes untrusted texts and values safe to print: without control characters, and shortened."""

import reprlib
from typing import Final

#: Characters that are shown of an error's text, and of a key.
_LONGEST_WORDS: Final = 300
_LONGEST_KEY: Final = 50

#: Characters of the line of an error: a name in it may have megabytes.
MAX_LINE: Final = 2000


def counted(count: int, noun: str) -> str:
    """The number with its noun, such as `1 line` and `2,000 lines`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(text: str, keep: str = "") -> str:
    """The text with unprintable characters escaped, except those in `keep`."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def indented(name: str, text: str, width: int) -> str:
    """The text beside its name in a column of that width, with all lines aligned."""
    head, *rest = [printable(line) for line in text.splitlines()] or [""]
    return f"\n{' ' * (width + 1)}".join([f"{name:<{width}} {head}", *rest])


def shortened(text: str, longest: int) -> str:
    """The text, or if it is longer, its beginning, its length and its end."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end]}… ({len(text):,} characters in all) …{text[-end:]}"


def shown(value: object) -> str:
    """The value for people, shortened."""
    try:
        return _cut(_shortened.repr(value))
    except Exception:  # an object's `repr` may raise, and Python's own does for a number of 4300 digits
        return f"<{type(value).__name__}>"


def key_shown(key: object) -> str:
    """A key of a dict, or an index of a list, as part of a path for people."""
    return key if isinstance(key, str) and key.isprintable() and len(key) < _LONGEST_KEY else shown(key)


def one_line(words: object) -> str:
    """The text of an error in one line, shortened."""
    text = printable(" ".join(str(words).split())) or type(words).__name__
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_WORDS else f"{text[:_LONGEST_WORDS]}…"


_shortened: Final = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 200
_shortened.maxlong = 80


def error_line(text: str) -> str:
    """The text as one line, shortened in the middle, since its end says what to do."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} … {text[-MAX_LINE // 2 :]}"
