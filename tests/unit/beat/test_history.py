"""Under which key the last run of an entry is kept."""

from hypothesis import given
from hypothesis import strategies as st

from proj.beat.history import MOST_CHARACTERS, key_of


@given(st.text(), st.text(min_size=1, max_size=3))
def test_a_key_fits_whatever_the_name(begin: str, end: str) -> None:
    """One name has one key, which is the name itself if that fits; another name has another key."""
    for length in (0, MOST_CHARACTERS - 1, MOST_CHARACTERS, 10_000):
        name = begin.ljust(length, "x")
        other = name + end
        assert key_of(name) == key_of(name) != key_of(other)
        assert len(key_of(other)) <= MOST_CHARACTERS
        assert key_of(name) == name or len(name) > MOST_CHARACTERS
        assert key_of(name).startswith(name[:100])
