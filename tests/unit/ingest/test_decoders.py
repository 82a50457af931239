"""Foreign bodies become arguments, or are refused with a reason; nothing else happens."""

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proj.errors import ConfigError
from proj.ingest import decoders
from proj.ingest.decoders import LEAST, MOST, NAMED, find, json_args, json_object, text

NUMBERS = st.integers(LEAST, MOST) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(TEXTS, inside, max_size=3),
    max_leaves=5,
)


@given(TEXTS.filter(lambda words: words and not words.startswith("\ufeff")))
def test_text_is_the_argument(words: str) -> None:
    assert text(words.encode()) == ((words,), {})


@given(st.lists(VALUES, max_size=3), st.booleans())
def test_items_of_an_array_are_the_arguments(items: list[Any], plain: bool) -> None:
    assert json_args(json.dumps(items, ensure_ascii=plain).encode()) == (tuple(items), {})


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_keys_of_an_object_are_the_names(named: dict[str, Any]) -> None:
    assert json_object()(json.dumps(named).encode()) == ((), named)


def test_a_map_renames_keys() -> None:
    """A key that the map replaces is refused under its new name: there is one way to write a message."""
    decode = json_object({"Number1": "x", "Number2": "y"})

    assert decode(b'{"Number1": 221, "Number2": 345}') == ((), {"x": 221, "y": 345})
    assert decode(b'{"Number1": 1, "z": 3}') == ((), {"x": 1, "z": 3})
    with pytest.raises(ValueError, match=r"there is no key 'x'; the keys are Number1, Number2"):
        decode(b'{"x": 1, "Number2": 345}')


def test_a_map_may_exchange_names() -> None:
    assert json_object({"x": "y", "y": "x"})(b'{"x": 1, "y": 2}') == ((), {"y": 1, "x": 2})


@pytest.mark.parametrize("decode", NAMED.values(), ids=NAMED)
@given(st.binary())
@example(b"")
@example(b"\xff\xfe\x00")
@example(b"[" * 20_000)
@example(b'{"a":' * 20_000)
@example(b"[" * 20_000 + b"]" * 20_000)
@example(b"\xef\xbb\xbf[1]")
@example(b"9" * 10_000)
def test_any_bytes_are_decoded_or_refused_in_words(decode: decoders.Decoder, body: bytes) -> None:
    """No other exception, since a decoder sees what anybody has published."""
    try:
        args, kwargs = decode(body)
    except ValueError as error:
        own = type(error) is ValueError and len(str(error)) < 1000
        assert own, repr(error)  # noqa: PT017  most bodies are refused, some are not
    else:
        assert isinstance(args, tuple)
        assert isinstance(kwargs, dict)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body is empty"),
        (b"\xef\xbb\xbf[1]", "the body begins with a byte-order mark"),
        (b"[1]\xff", "the body is not UTF-8 from byte 3 on"),
        (b"[1", "the body is not JSON: Expecting ',' delimiter: line 1 column 3 (char 2)"),
        (b'{"x": 1}', "the body must be a JSON array, got {'x': 1}"),
        (b"[18446744073709551616]", "a number is beyond 64 bits: '18446744073709551616'"),
        (b"[-9223372036854775809]", "a number is beyond 64 bits: '-9223372036854775809'"),
        (b"[1e400]", "a number is beyond 64 bits: '1e400'"),
        (b"[NaN]", "the body is not JSON: NaN is no number"),
        (b"[-Infinity]", "the body is not JSON: -Infinity is no number"),
        (b'[{"x": 1, "x": 2}]', "a key is there twice: 'x'"),
        (b"[" * sys.getrecursionlimit() * 20, "the body is nested too deep"),
    ],
)
def test_rubbish_is_refused_with_its_reason(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the text is compared below
        json_args(body)
    assert str(caught.value) == problem


def test_largest_numbers_of_other_languages_are_taken() -> None:
    assert json_args(f"[{LEAST}, {MOST}]".encode()) == ((LEAST, MOST), {})


def csv(body: bytes) -> tuple[tuple[str, ...], dict[str, Any]]:
    return tuple(body.decode().split(",")), {}


def test_a_decoder_of_ones_own_is_found_by_its_name() -> None:
    assert find(f"{__name__}:csv")(b"1,2") == (("1", "2"), {})


@pytest.mark.parametrize(
    ("name", "names", "problem"),
    [
        ("jason", {}, "there is no decoder 'jason' (did you mean json?)"),
        ("no.such:csv", {}, "the decoder no.such:csv cannot be imported: No module named 'no'"),
        ("json:nothing", {}, "the decoder json:nothing cannot be imported"),
        ("json:__name__", {}, "the decoder json:__name__ is not a function"),
        ("text", {"a": "b"}, "the decoder text takes no map of arguments (use the decoder json)"),
    ],
)
def test_a_wrong_name_is_refused(name: str, names: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(name, names)
    assert str(caught.value).startswith(problem)
