"""What `--json` prints: JSON that every parser reads, whatever a result or a header holds."""

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.cli.strict_json import to_json

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # half characters among them
    | st.binary()
    | st.decimals()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.uuids()
    | st.builds(ValueError, st.text())
)
_keys = st.text(st.characters()) | st.integers() | st.floats() | st.booleans() | st.none()
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(_keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def _strict(text: str) -> Any:
    """What a parser makes of it that keeps to RFC 8259: no NaN, no half characters, no name twice."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    value = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    json.dumps(value, ensure_ascii=False).encode()  # raises for half a character
    return value


@given(_values)
def test_every_value_is_strict_json(value: Any) -> None:
    """Whatever a result can hold, nested as deep as it likes, is one line that a strict parser reads."""
    text = to_json(value)

    _strict(text)
    assert "\n" not in text
    assert text.isascii()


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_json_stays_as_it_is(value: Any) -> None:
    """What JSON has already comes out as it went in."""
    assert _strict(to_json(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([float("nan"), float("inf"), -float("inf")], ["NaN", "Infinity", "-Infinity"]),
        ("caf\udce9 \\ud800 \U0001f600", "caf\\udce9 \\ud800 \U0001f600"),
        (b"caf\xe9", "caf\\xe9"),
        (Decimal("9.90"), "9.90"),
        (datetime(2026, 11, 30, 12), "2026-11-30T12:00:00"),
        (date(2026, 11, 30), "2026-11-30"),
        (time(12), "12:00:00"),
        (UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (ValueError("x"), "x"),
        ({1: float("nan")}, {"1": "NaN"}),
    ],
)
def test_text_stands_for_what_json_lacks(value: Any, text: Any) -> None:
    """The words that are shown."""
    assert _strict(to_json(value)) == text


def test_nested_as_deep_as_python_reads_it() -> None:
    """A result that could be read is shown, and no frame of Python's is spent on a level."""
    value: Any = float("nan")
    for _ in range(800):
        value = [value]
    _strict(to_json(value))
