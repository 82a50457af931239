"""Messages that are wrong in a few places, as data: which place, and what is there instead of what should be.

A message carries its token in its body, in a header and in `app_id`: whatever is wrong with it, one of these
says which message it is. What a broker refuses is not here, since no worker ever sees it: an `expiration`
that is no number, a `delivery_mode` of 3, the `user_id` of somebody else, a `CC` that is no list.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from hypothesis import strategies as st

from tests.lib.wire import Deep, Encoded, Raw, Text, encode_body, encode_properties

#: The task that keeps the ledger, and the id of one that has succeeded already.
TASK: Final = "proj.tasks.note"
KNOWN_ID: Final = "known"

#: Bytes that a message's properties may have: py-amqp and RabbitMQ agree on frames of 131,072.
MAX_PROPERTIES: Final = 128_000


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()

#: What may stand anywhere instead of anything.
JUNK: Final[tuple[Any, ...]] = (
    *(ABSENT, None, True, False, 0, -1, 5, 2**31, 2**63 - 1, 1.5, -1e308, math.inf, math.nan),
    *("", "x", "None", "caf\u00e9\u202e\0\n", Text(10_000), "{}", "[[1, 2], {}, {}]"),
    *([], [[]], [None, None, None], ["x"], {}, {"x": 1}, {"": {"x": {"x": [{"x": None}]}}}),
    *(Deep(30), Deep(500)),
)

#: What only AMQP's tables have.
_TABLE_JUNK: Final = (b"caf\xe9", Decimal("1.5"), datetime(2020, 1, 1), Deep(1_500))

_TIMES: Final = (
    *("2020-01-01T00:00:00+00:00", "2020-01-01", "2999-01-01T00:00:00+00:00", "9999-12-31T23:59:59-23:59"),
    *("0001-01-01T00:00:00+14:00", "2026-13-45", "+99:99", "T", 1e9, 10**10),
)

_NOTE: Final = {"task": TASK, "args": ["callback"], "kwargs": {}, "options": {}, "immutable": True}
_SIGNATURES: Final = (
    _NOTE,
    {**_NOTE, "options": 5},
    {**_NOTE, "options": None},
    {**_NOTE, "args": 5},
    {**_NOTE, "kwargs": None},
    {**_NOTE, "subtask_type": "chord"},
    {**_NOTE, "task": "no.such.task"},
    {"task": 5},
)
_LISTS_OF_SIGNATURES: Final = (*([one] for one in _SIGNATURES), [_NOTE, 5], [_NOTE, {}], _NOTE)

#: Each place of a message, and what else may stand there than `JUNK`.
HEADERS: Final[dict[str, tuple[Any, ...]]] = {
    "id": (KNOWN_ID, Text(100_000), "a b\nc"),
    "task": ("no.such.task", f"{TASK}\n", "celery.chord_unlock", Text(100_000)),
    "lang": ("php",),
    "root_id": (Text(100_000),),
    "parent_id": (),
    "group": (),
    "group_index": (),
    "meth": (),
    "shadow": ("another.name", Text(100_000)),
    "eta": _TIMES,
    "expires": _TIMES,
    "retries": (1, 6, 10**6, "1"),
    "timelimit": (
        *([300, None], [None, 300], [300, 400], [3600, None], [1e9, 1e9], [-1, None], [None, -1], [0, 0]),
        *([math.nan, None], [math.inf, math.inf], ["300", None], [1], [1, 2, 3], [None, None], "ab"),
        *([[], []], [True, False]),
    ),
    "argsrepr": (),
    "kwargsrepr": (),
    "origin": (),
    "ignore_result": (),
    "stamps": (),
    "stamped_headers": (["stamp"],),
    "replaced_task_nesting": (),
    "compression": ("application/x-gzip", "gzip", "bzip2", "zlib", "nonsense"),
    "x-proj-repeat": (True,),
    "x-proj-due": (1e308,),
    # What Celery keeps beside a request's headers in one table of names, and a message should not have.
    "args": (),
    "kwargs": (),
    "callbacks": _LISTS_OF_SIGNATURES,
    "errbacks": _LISTS_OF_SIGNATURES,
    "chain": _LISTS_OF_SIGNATURES,
    "chord": _SIGNATURES,
    "children": (),
    "headers": (),
    "properties": (),
    "delivery_info": (),
    "hostname": (),
    "reply_to": (),
    "correlation_id": (),
    "called_directly": (),
    "is_eager": (),
    "utc": (),
    "taskset": (),
    "get": (),
    "update": (),
    "_protected": (),
    "__class__": (),
}
_SHORT: Final = ("", "x", b"caf\xe9", "caf\u00e9\0\n", Text(255), ABSENT)
PROPERTIES: Final[dict[str, tuple[Any, ...]]] = {
    "content_type": (
        *(*_SHORT, "application/json; charset=utf-8", "JSON", "text/plain", "application/data"),
        *("application/x-python-serialize", "application/x-yaml", "application/x-msgpack"),
    ),
    "content_encoding": (*_SHORT, "binary", "utf-16", "latin-1", "rot13", "hex", "zlib", "idna", "undefined"),
    "delivery_mode": (ABSENT, 1),
    "priority": (ABSENT, 0, 1, 9, 255),
    "correlation_id": _SHORT,
    "reply_to": _SHORT,
    "expiration": ("0", "86400000"),
    "message_id": _SHORT,
    "timestamp": (0, 1, 1_577_836_800_000, 2**63, 2**64 - 1),
    "type": _SHORT,
    "cluster_id": _SHORT,
}
BODY: Final[dict[str, tuple[Any, ...]]] = {
    "args": (Text(1_000_000), Deep(990), Deep(100_000), {"0": "x"}),
    "how": (Text(1_000_000),),
    "kwargs": ({"how": "done", "more": 1}, {"token": "x"}, {"self": 1}, {"": 1}, {"x" * 300: 1}),
    "embed": ({"callbacks": 5, "errbacks": 5, "chain": 5, "chord": 5},),
    "callbacks": _LISTS_OF_SIGNATURES,
    "errbacks": _LISTS_OF_SIGNATURES,
    "chain": _LISTS_OF_SIGNATURES,
    "chord": (*_SIGNATURES, {"x": {"x": 5}}),
    "all": (
        *([[1, 2], None, {}], [[], {}], [[], {}, {}, {}], [{}, [], []], {"args": 5}),
        *({"args": [], "kwargs": 5}, Deep(990), Deep(100_000), Text(4_000_000)),
        *(Raw(data) for data in (b"", b"\0", b"\xff\xfe", b"{", b"[[], {}, {}", b"\x80\x04K\x05.")),
        *(Raw(b"\xef\xbb\xbf[]"), Raw(b"[", 100_000), Raw(b"\x1f\x8b\x08", 100)),
    ),
}

#: The whole of them: a place is `header.id`, `property.priority`, `body.args`, or `headers`.
PLACES: Final[dict[str, tuple[Any, ...]]] = {
    **{f"header.{name}": (*JUNK, *_TABLE_JUNK, *more) for name, more in HEADERS.items()},
    **{f"property.{name}": values for name, values in PROPERTIES.items()},
    **{f"body.{name}": (*JUNK, *more) for name, more in BODY.items()},
    "headers": (ABSENT, {}, Deep(30), Deep(10_000)),
}

#: How a task's message is laid out: Celery's protocols, and the mixture of both that it reads too.
LAYOUTS: Final = ("2", "1", "hybrid")

#: What the task does, when it is executed: it is written into the ledger, it raises, or it is retried.
ENDS: Final = ("done", "fail", "retry")


@dataclass(frozen=True)
class Message:
    """A message for the task `TASK`, wrong in the places of `wrong`; printed as Python would make it."""

    number: int
    wrong: tuple[tuple[str, Any], ...] = ()
    layout: str = "2"
    end: str = "done"

    @property
    def token(self) -> str:
        return f"#{self.number:08}#"

    @property
    def id(self) -> str:
        """The id that a worker's log has for it."""
        found = dict(self.wrong).get("header.id", f"id-{self.number}")
        return str(found)

    def without(self, place: str) -> "Message":
        kept = tuple(one for one in self.wrong if one[0] != place)
        return Message(self.number, kept, self.layout, self.end)

    def numbered(self, number: int) -> "Message":
        return Message(number, self.wrong, self.layout, self.end)

    def fitting(self) -> "Message":
        """Without the first of its wrong places while its properties are larger than a frame may be."""
        fits = self.encode().size <= MAX_PROPERTIES
        return self if fits else self.without(self.wrong[0][0]).fitting()

    def encode(self) -> Encoded:
        headers: dict[str, Any] = {"id": f"id-{self.number}", "task": TASK, "lang": "py", "retries": 0}
        embed: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        body: dict[str, Any] = {"args": [self.token, self.end], "kwargs": {}, "embed": embed}
        properties: dict[str, Any] = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "correlation_id": f"id-{self.number}",
            "delivery_mode": 2,
        }
        every: Any = headers
        for place, value in self.wrong:
            kind, _, name = place.partition(".")
            if kind == "headers":
                every = value
            elif kind == "header":
                _put(headers, name, value)
            elif kind == "property":
                _put(properties, name, value)
            elif name in embed:
                embed[name] = value
            elif name == "how":
                body["args"] = [self.token, *([] if value is ABSENT else [value])]
            else:
                _put(body, name, value)
        payload, headers = self._laid_out(body, headers)
        if every is not headers and "headers" in dict(self.wrong):
            table = None if every is ABSENT else every
        else:
            table = {**headers, "x-test-token": self.token}
        properties["app_id"] = self.token
        return Encoded(encode_properties(properties, table), encode_body(payload))

    def _laid_out(self, body: dict[str, Any], headers: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The body's value and the headers, in the message's layout."""
        if "all" in body:
            return body["all"], headers
        parts = [body[name] for name in ("args", "kwargs", "embed") if name in body]
        if self.layout == "2":
            return parts, headers
        embed = body.get("embed")
        named = {name: body[name] for name in ("args", "kwargs") if name in body}
        if isinstance(embed, dict):
            named |= {name: value for name, value in embed.items() if value is not None}
        if self.layout == "1":
            return {**headers, **named}, {}
        kept: dict[str, Any] = {name: headers.pop(name) for name in ("id", "task") if name in headers}
        return {**headers, **named}, kept

    def __repr__(self) -> str:
        return f"Message({self.number}, wrong={self.wrong!r}, layout={self.layout!r}, end={self.end!r})"


def _put(table: dict[str, Any], name: str, value: Any) -> None:
    if value is ABSENT:
        table.pop(name, None)
    else:
        table[name] = value


#: Any value of JSON, small.
_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)

#: One wrong place, with its value: one of those above, or one that nobody has thought of.
_WRONG: Final = st.sampled_from(
    [(place, value) for place, values in PLACES.items() for value in values]
) | st.tuples(st.sampled_from([place for place in PLACES if place.startswith(("header.", "body."))]), _JSON)

#: Messages that are wrong in one to three places.
MESSAGES: Final = st.builds(
    lambda wrong, layout, end: Message(0, tuple(wrong), layout, end).fitting(),
    st.lists(_WRONG, min_size=1, max_size=3, unique_by=lambda one: one[0]),
    st.sampled_from(LAYOUTS),
    st.sampled_from(("done", *ENDS)),
)
