"""Says what was lost and what ran twice, by the ledgers alone: it asks neither a broker nor a result store.

The words are those of Jepsen's tests of queues.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.ledger import Fact, Kind

_OUTCOMES: Final = frozenset({Kind.CONFIRMED, Kind.REFUSED, Kind.UNKNOWN})


@dataclass(frozen=True)
class Counts:
    """What became of the messages of a run. Messages are counted, unless it says otherwise."""

    #: A publish began.
    attempted: int
    #: The broker has accepted it.
    confirmed: int
    #: The publisher knows that the broker has not.
    refused: int
    #: Their publisher did not live to write how the publish ended.
    cut: int
    #: Confirmed and executed.
    ok: int
    #: Executed, confirmed or not.
    executed: int
    #: Dead letters in their queue, copies counted.
    dead: int
    #: Confirmed, and neither executed nor a dead letter. Must be 0.
    lost: int
    #: Executed or dead, though never attempted, or though every publish was refused. Must be 0.
    unexpected: int
    #: Executions more than one a message.
    duplicated: int
    #: The outcome of the publish is unknown, and it was executed or is dead.
    recovered: int
    #: Lines that contradict others of their ledger. Must be 0: what wrote them is wrong.
    contradictory: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.unexpected or self.contradictory)


def check(ledgers: Mapping[str, Sequence[Fact]]) -> Counts:
    """Count the messages of a run by all of its ledgers."""
    tokens: dict[Kind, set[str]] = {kind: set() for kind in Kind}
    executions: Counter[str] = Counter()
    dead = 0
    for facts in ledgers.values():
        for fact in facts:
            tokens[fact.kind].add(fact.token)
            if fact.kind is Kind.EXECUTED:
                executions[fact.token] += 1
            dead += fact.kind is Kind.DEAD
    attempted, confirmed = tokens[Kind.ATTEMPTED], tokens[Kind.CONFIRMED]
    arrived = tokens[Kind.EXECUTED] | tokens[Kind.DEAD]
    known = confirmed | tokens[Kind.REFUSED]
    possible = attempted - (tokens[Kind.REFUSED] - confirmed - tokens[Kind.UNKNOWN])
    return Counts(
        attempted=len(attempted),
        confirmed=len(confirmed),
        refused=len(tokens[Kind.REFUSED]),
        cut=len(attempted - known - tokens[Kind.UNKNOWN]),
        ok=len(confirmed & tokens[Kind.EXECUTED]),
        executed=len(tokens[Kind.EXECUTED]),
        dead=dead,
        lost=len(confirmed - arrived),
        unexpected=len(arrived - possible),
        duplicated=executions.total() - len(executions),
        recovered=len((attempted - known) & arrived),
        contradictory=sum(_contradictory(facts) for facts in ledgers.values()),
    )


def _contradictory(facts: Sequence[Fact]) -> int:
    """In one ledger each message is attempted at most once, and then has at most one outcome."""
    wrong = 0
    waiting: set[str] = set()
    attempted: set[str] = set()
    for fact in facts:
        if fact.kind is Kind.ATTEMPTED:
            wrong += fact.token in attempted
            attempted.add(fact.token)
            waiting.add(fact.token)
        elif fact.kind in _OUTCOMES:
            wrong += fact.token not in waiting
            waiting.discard(fact.token)
    return wrong
