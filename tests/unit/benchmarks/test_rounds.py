"""What the rounds of a benchmark amount to."""

import pytest

from benchmarks.rounds import Results, Row, Summary, Target, alternating


def _results(*targets: Target, **values: list[float]) -> Results:
    return Results(Row("row", "A row", "ms", tuple(values), targets), values)


def test_summary_is_median_and_spread() -> None:
    """One slow round moves the spread, and not the median."""
    assert Summary.of([3.0, 2.0, 90.0]) == Summary(3.0, 2.0, 90.0)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """What slowed both in one round does not count; the ratio of the medians would be 2."""
    results = _results(Target("peer", 3), ours=[1.0, 2.0, 30.0], peer=[1.0, 1.0, 10.0])

    [verdict] = results.verdicts

    assert verdict.compared == Summary(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("at_least", "ours", "reached"),
    [(True, 2.0, True), (True, 1.9, False), (False, 2.0, True), (False, 2.1, False)],
)
def test_target_is_reached_on_its_side(at_least: bool, ours: float, reached: bool) -> None:
    """Rates have a lower bound, times an upper one, and both include it."""
    results = _results(Target("peer", 2.0, at_least=at_least), ours=[ours], peer=[1.0])

    assert results.verdicts[0].reached is reached


def test_difference_is_compared_instead_of_the_ratio() -> None:
    """A hundred times the lines may take 20 MB more, however much that is of the whole."""
    results = _results(Target("few", 20, difference=True), many=[95.0], few=[80.0])

    assert results.verdicts[0].compared.median == 15.0


def test_target_without_its_peer_has_no_verdict() -> None:
    """A part of the rows was run."""
    assert _results(Target("peer", 1), ours=[1.0]).verdicts == []


def test_unknown_contender_is_refused() -> None:
    """A misspelt name would be left out of the table."""
    with pytest.raises(AssertionError, match="ous is none of row"):
        _results(ours=[]).add("ous", 1.0)


def test_each_other_round_goes_backwards() -> None:
    """So that nobody always has the disk cache of the same one before it."""
    assert [list(alternating("abc", number)) for number in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]
