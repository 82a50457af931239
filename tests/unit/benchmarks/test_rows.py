"""What some rows calculate."""

import pytest

from benchmarks.rows.latency import percentile
from benchmarks.rows.mixed import durations, optimum


@pytest.mark.parametrize(
    ("seconds", "slots", "expected"),
    [
        ([1, 1, 1, 1], 2, 2),
        ([3, 1, 1, 1], 2, 3),  # the long one has a slot to itself
        ([1, 1, 1, 3], 2, 4),  # it is the last one: in the order of the queue that cannot be helped
        ([5], 4, 5),
        ([], 4, 0),
    ],
)
def test_optimum_is_that_of_list_scheduling(seconds: list[float], slots: int, expected: float) -> None:
    """Each slot that is free gets the next task of the queue."""
    assert optimum(seconds, slots) == expected


def test_load_is_the_same_in_each_round() -> None:
    """Else the makespans of two rounds could not be compared."""
    assert durations(50) == durations(50)
    assert durations(24) == durations(50)[:24]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1, 100), (0, 1)])
def test_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    """The smallest that so many do not exceed, in whatever order they came."""
    assert percentile(list(range(100, 0, -1)), share) == expected
