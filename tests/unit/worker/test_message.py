"""How a message's body is decoded: as kombu decodes it."""

from typing import Any

import amqp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import pyamqp
from kombu.utils.json import dumps

from proj.worker.message import Message

JSON = "application/json"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.datetimes() | st.decimals(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def _message(kind: type[Any], body: str | bytes, content_type: str = JSON, encoding: str = "utf-8") -> Any:
    raw = amqp.Message(body, content_type=content_type, content_encoding=encoding)
    raw.delivery_info = {"delivery_tag": 1}
    return kind(raw, accept={JSON})


@given(VALUES)
def test_any_value(value: object) -> None:
    """With kombu's own types, such as times and bytes."""
    body = dumps([[value], {}, None])
    assert _message(Message, body).payload == _message(pyamqp.Message, body).payload


def _outcome(message: Any) -> str:
    try:
        return f"payload {message.payload!r}"
    except Exception as error:
        return f"{type(error)} {error}"


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        *[(body, JSON, "utf-8") for body in ("", "{", "[1] 2", "\ufeff[1]", "nul", "[" * 100_000, b"[1]")],
        *[(f'{{"__type__": {kind}, "__value__": {{}}}}', JSON, "utf-8") for kind in ('"uuid"', '"x"', "[]")],
        ("[1]", "application/x-python-serialize", "binary"),
        ("[1]".encode("utf-16"), JSON, "utf-16"),
    ],
)
def test_what_is_no_json(body: str | bytes, content_type: str, encoding: str) -> None:
    """It raises what kombu raises."""
    ours, kombu_s = (
        _outcome(_message(kind, body, content_type, encoding)) for kind in (Message, pyamqp.Message)
    )
    assert ours == kombu_s
    assert ours.startswith("payload") == (body in ("", b"[1]"))
