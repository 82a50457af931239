"""What is shown of texts and values that anyone may have written."""

from hypothesis import given
from hypothesis import strategies as st

from proj.logs.printable import counted, one_line, shortened, shown


@given(st.text(), st.integers(4, 50))
def test_shortened_text_names_its_length(text: str, longest: int) -> None:
    """One that is not too long is left as it is."""
    short = shortened(text, longest)

    assert short == text or f"… ({len(text)} characters in all) …" in short
    assert (short == text) is (len(text) <= longest)
    assert len(short) <= longest + 50


def test_number_with_its_noun() -> None:
    assert [counted(count, "line") for count in (0, 1, 2000)] == ["0 lines", "1 line", "2,000 lines"]


def test_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    """Python writes no number of so many digits."""
    assert shown(10**5000) == "<int>"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n b\x1b")) == "a b\\x1b"
