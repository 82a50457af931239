"""The checker finds each line that is missing, doubled or invented: else its zeros would say nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.chaos.checker import Counts, check
from tests.chaos.ledger import Count, DamagedLedger, Fact, Kind, Ledger, read

Ledgers = Mapping[str, Sequence[Fact]]


def _fact(kind: Kind, token: str, delivery: int = 0) -> Fact:
    return Fact(kind, token, 1.5, 7, delivery)


#: Two publishers; a repeat that the second took over; a refused one, two unknown ones, and a dead letter.
CLEAN: Ledgers = {
    "bulk": [
        _fact(Kind.ATTEMPTED, "a"),
        _fact(Kind.ATTEMPTED, "b"),
        _fact(Kind.CONFIRMED, "a"),
        _fact(Kind.CONFIRMED, "b"),
        _fact(Kind.ATTEMPTED, "refused"),
        _fact(Kind.REFUSED, "refused"),
        _fact(Kind.ATTEMPTED, "unknown"),
        _fact(Kind.UNKNOWN, "unknown"),
        _fact(Kind.ATTEMPTED, "killed"),
    ],
    "single": [_fact(Kind.ATTEMPTED, "bad"), _fact(Kind.CONFIRMED, "bad")],
    "tasks": [_fact(Kind.EXECUTED, token, 1) for token in ("a", "b", "unknown", "killed")],
    "harness": [_fact(Kind.DEAD, "bad")],
}

COUNTS = Counts(
    attempted=6,
    confirmed=3,
    refused=1,
    cut=1,
    ok=2,
    executed=4,
    dead=1,
    lost=0,
    unexpected=0,
    duplicated=0,
    recovered=2,
    contradictory=0,
)

LINES = [(name, number) for name, facts in CLEAN.items() for number in range(len(facts))]


def _changed(name: str, number: int, instead: Sequence[Fact]) -> Ledgers:
    facts = list(CLEAN[name])
    facts[number : number + 1] = instead
    return {**CLEAN, name: facts}


def test_clean_ledgers_are_clean() -> None:
    """What was confirmed was executed, or is dead; unknown publishes that arrived are counted apart."""
    assert check(CLEAN) == COUNTS
    assert COUNTS.clean


@pytest.mark.parametrize(("name", "number"), LINES)
def test_each_line_that_is_removed_is_found(name: str, number: int) -> None:
    """No line can go without a count that differs."""
    assert check(_changed(name, number, [])) != COUNTS


@pytest.mark.parametrize(("name", "number"), LINES)
def test_each_line_that_is_doubled_is_found(name: str, number: int) -> None:
    """An attempt or an outcome that is there twice contradicts itself; an execution is a duplicate.

    Dead letters may have copies.
    """
    fact = CLEAN[name][number]
    found = check(_changed(name, number, [fact, fact]))

    assert found != COUNTS
    assert found.duplicated == (fact.kind is Kind.EXECUTED)
    assert found.clean == (fact.kind in (Kind.EXECUTED, Kind.DEAD))


@pytest.mark.parametrize("kind", Kind)
def test_each_line_that_is_invented_is_found(kind: Kind) -> None:
    """Of a message that nobody has published, and of one that was."""
    for token in ("invented", "a"):
        invented = {**CLEAN, "other": [_fact(kind, token)]}
        is_new = kind is not Kind.ATTEMPTED or token != "a"
        assert (check(invented) != COUNTS) == is_new, token


@pytest.mark.parametrize(("kind", "count"), [(Kind.EXECUTED, "lost"), (Kind.ATTEMPTED, "unexpected")])
def test_what_is_missing_is_named(kind: Kind, count: str) -> None:
    """Without its execution a confirmed message is lost; without its attempt, unexpected."""
    ledgers = {
        name: [each for each in facts if each != _fact(kind, "a", each.delivery)]
        for name, facts in CLEAN.items()
    }

    assert getattr(check(ledgers), count) == 1
    assert not check(ledgers).clean


def test_execution_of_a_refused_message_is_unexpected() -> None:
    """Refused means that it is certainly not in a queue; a second publish may have been confirmed."""
    executed = {"others": [_fact(Kind.EXECUTED, "refused", 1)]}
    again = {"second": [_fact(Kind.ATTEMPTED, "refused"), _fact(Kind.CONFIRMED, "refused")]}

    assert check({**CLEAN, **executed}).unexpected == 1
    assert check({**CLEAN, **executed, **again}).unexpected == 0


def test_ledger_gives_back_what_was_written(tmp_path: Path) -> None:
    """Line by line, to who reads all of it and to who reads on."""
    count, ledger = Count(tmp_path), Ledger(tmp_path, "one")
    ledger.write(Kind.ATTEMPTED, "a")
    assert count.look() == {Kind.ATTEMPTED: 1}
    ledger.write(Kind.CONFIRMED, "a")
    assert count.open() == {"a"}
    Ledger(tmp_path, "two").write(Kind.EXECUTED, "a", 2)

    assert count.open() == set()
    assert count.look() == {Kind.ATTEMPTED: 1, Kind.CONFIRMED: 1, Kind.EXECUTED: 1}
    (one, two) = read(tmp_path).values()
    assert [(fact.kind, fact.token, fact.delivery) for fact in one] == [
        (Kind.ATTEMPTED, "a", 0),
        (Kind.CONFIRMED, "a", 0),
    ]
    assert [(fact.kind, fact.token, fact.delivery) for fact in two] == [(Kind.EXECUTED, "a", 2)]


@pytest.mark.parametrize("text", ["attempted a 1.5 7 0", "attempted a\n", "did a 1.5 7 0\n", "\n"])
def test_damaged_ledger_says_nothing(tmp_path: Path, text: str) -> None:
    """A line that is no fact, or not all of it, ends the check."""
    (tmp_path / "one-1.ledger").write_text(text)

    with pytest.raises(DamagedLedger, match=r"one-1\.ledger"):
        read(tmp_path)
