"""Whatever the order in which the states of a task arrive, what is stored in the end is its last end."""

from typing import Any

import pytest
from celery import states
from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st

from proj import queues
from proj.results.finality import LAST, attempt_of, may_replace, retries_of

#: A state, and the attempt that it is of.
Write = tuple[str, int]


def _store(writes: list[Write]) -> Write:
    stored = writes[0]
    for state, attempt in writes[1:]:
        if may_replace(state, attempt, *stored):
            stored = state, attempt
    return stored


def _life(redrives: int, attempts: int, end: str) -> list[list[Write]]:
    """What the attempts of a message store, each by itself, from its publish or redrive to its end."""
    numbers = [attempt_of(Context({queues.REDRIVES_HEADER: redrives, "retries": n})) for n in range(attempts)]
    return [
        [(states.STARTED, number), (end if number == numbers[-1] else states.RETRY, number)]
        for number in numbers
    ]


@st.composite
def _interleaved(draw: Any, sequences: list[list[Write]]) -> list[Write]:
    left = [list(sequence) for sequence in sequences]
    mixed = []
    while left := [sequence for sequence in left if sequence]:
        mixed.append(draw(st.sampled_from(left)).pop(0))
    return mixed


_attempts = st.integers(1, 4)
_ends = st.sampled_from([states.SUCCESS, states.FAILURE, states.REVOKED])
_failures = st.sampled_from([states.FAILURE, states.REVOKED])


@given(st.data(), st.lists(_attempts, max_size=2), _attempts, _ends)
def test_last_end_is_stored(data: st.DataObject, redriven: list[int], attempts: int, end: str) -> None:
    """The attempts of a message that was redriven a few times write in any order."""
    sequences = [
        attempt
        for redrives, count in enumerate(redriven)
        for attempt in _life(redrives, count, data.draw(_failures))
    ]
    sequences += _life(len(redriven), attempts, end)

    assert _store(data.draw(_interleaved(sequences))) == sequences[-1][-1]


@given(st.data(), _attempts, _failures, _attempts, _ends)
def test_end_of_a_repeat_is_stored(
    data: st.DataObject, first: int, failed: str, second: int, end: str
) -> None:
    """A repeat with the same id counts its retries anew, and its end replaces the failure before it."""
    before = data.draw(_interleaved(_life(0, first, failed)))
    repeat = data.draw(_interleaved(_life(0, second, end)))

    assert _store(before + repeat)[0] == end


@given(_failures, st.sampled_from([states.STARTED, states.RETRY, "OWN"]), _attempts, _attempts)
def test_what_is_no_end_replaces_none_in_the_same_life(end: str, state: str, first: int, second: int) -> None:
    """A task that is revoked may begin, or be retried, before it looks; a redrive begins another life."""
    assert not may_replace(state, second, end, first)
    assert may_replace(state, attempt_of(Context({queues.REDRIVES_HEADER: 1})), end, first)


@given(st.sampled_from([*states.ALL_STATES, "OWN"]), st.integers(0, LAST), st.integers(0, LAST))
def test_success_is_final(state: str, attempt: int, stored: int) -> None:
    """Nothing replaces it, and it replaces all else."""
    assert not may_replace(state, attempt, states.SUCCESS, stored)
    assert state == states.SUCCESS or may_replace(states.SUCCESS, attempt, state, stored)


@pytest.mark.parametrize(("redrives", "retries"), [(None, "x"), (-1, -5), (10**9, 10**9), ([], {})])
def test_attempt_of_what_is_no_number_is_one(redrives: Any, retries: Any) -> None:
    """Headers may be anything, and the store's column has an end."""
    assert 0 <= attempt_of(Context({queues.REDRIVES_HEADER: redrives, "retries": retries})) <= LAST


def test_retries_are_read_back() -> None:
    """A redrive does not show in the number of retries."""
    assert retries_of(attempt_of(Context({queues.REDRIVES_HEADER: 3, "retries": 2}))) == 2
