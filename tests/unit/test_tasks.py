"""The work itself, called as plain functions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.errors import BadArguments
from proj.tasks import add, seconds_of, sleep_dots


@given(st.text(alphabet=st.characters(exclude_characters=".", exclude_categories=["Nd", "Cs"]), min_size=1))
def test_text_without_dots_is_no_work(text: str) -> None:
    """Only dots are work."""
    assert seconds_of(text) == 0


@given(st.integers(0, 100), st.text(alphabet="ab "))
def test_dots_are_counted_wherever_they_are(dots: int, text: str) -> None:
    """Each dot is a second."""
    assert seconds_of(f"a{text}" + "." * dots) == dots


@given(st.integers(0, 10**6))
def test_whole_number_is_its_seconds(number: int) -> None:
    """A text that is just a whole number sleeps that long."""
    assert seconds_of(str(number)) == number


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("4", 4), ("4.", 1), ("4.5", 1), ("-4", 0), (" 4", 0)]
)
def test_what_is_not_just_a_number_has_dots(text: str, seconds: int) -> None:
    """A sign, a point or a space make it a text."""
    assert seconds_of(text) == seconds


def test_sleep_dots_returns_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps as long as it says."""
    slept: list[int] = []
    monkeypatch.setattr("time.sleep", slept.append)

    assert sleep_dots("a..") == 2
    assert slept == [2]


@pytest.mark.parametrize(("x", "y", "total"), [(2, 3, 5), (-1, 2.5, 1.5), (10**30, 1, 10**30 + 1)])
def test_add_keeps_the_kind_of_number(x: float, y: float, total: float) -> None:
    """Whole numbers stay whole, however large."""
    assert add(x, y) == total
    assert type(add(x, y)) is type(total)


@pytest.mark.parametrize("wrong", ["2", None, True, [1], float("nan"), float("inf")])
def test_add_refuses_what_is_no_number(wrong: Any) -> None:
    """Called directly too."""
    with pytest.raises(BadArguments, match="argument x: expected a number"):
        add(wrong, 1)
