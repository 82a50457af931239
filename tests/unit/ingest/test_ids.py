"""The ids of tasks that are made of foreign messages."""

from hypothesis import given
from hypothesis import strategies as st

from proj.enqueue.checks import is_id
from proj.ingest.ids import task_id

PARTS = st.tuples(st.text(min_size=1), st.text(st.characters(codec="utf-8")), st.binary())


@given(PARTS, PARTS)
def test_an_id_is_that_of_its_message_queue_and_body(
    one: tuple[str, str, bytes], other: tuple[str, str, bytes]
) -> None:
    """The same for the same, another for another, also where one part goes on in the next."""
    assert task_id(*one) == task_id(*one)
    assert (task_id(*one) == task_id(*other)) == (one == other)
    assert task_id("a", "bc", b"d") != task_id("ab", "c", b"d")
    assert is_id(task_id(*one)[0])


def test_without_a_message_id_each_id_is_new() -> None:
    for nothing in (None, "", 5):
        one, other = task_id(nothing, "queue", b"body"), task_id(nothing, "queue", b"body")
        assert one != other
        assert (one[1], other[1]) == (False, False)
    assert task_id("1", "queue", b"body")[1]
