"""What a run found out about one fault or control: a row of the report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Any, Final, Self

from tests.chaos.checker import Counts
from tests.chaos.faults import Bound
from tests.chaos.ledger import Fact, Kind

#: Seconds of a step of a timeline.
STEP: Final = 0.5


@dataclass(frozen=True)
class Timeline:
    """Tasks executed in each step of so many seconds, and when the fault began and ended, in seconds."""

    executed: list[int]
    began: float
    healed: float
    step: float = STEP

    @classmethod
    def of(cls, ledgers: Mapping[str, Sequence[Fact]], began: float, healed: float) -> Self:
        """`began` and `healed` are in seconds since 1970."""
        start = min((fact.at for fact in _of_kind(ledgers, Kind.EXECUTED)), default=began)
        start = min(start, began)
        steps = Counter(int((fact.at - start) / STEP) for fact in _of_kind(ledgers, Kind.EXECUTED))
        length = max(steps, default=0) + 1
        return cls([steps[number] for number in range(length)], began - start, healed - start)


def longest_pause(ledgers: Mapping[str, Sequence[Fact]], began: float) -> float:
    """The longest time from the fault on in which no task was executed, in seconds."""
    times = sorted(fact.at for fact in _of_kind(ledgers, Kind.EXECUTED))
    after = [began, *(at for at in times if at > began)]
    return max((later - earlier for earlier, later in pairwise(after)), default=0.0)


def _of_kind(ledgers: Mapping[str, Sequence[Fact]], kind: Kind) -> Iterable[Fact]:
    return (fact for fact in chain.from_iterable(ledgers.values()) if fact.kind is kind)


@dataclass
class Row:
    """A fault, or a control, and what became of the messages."""

    fault: str
    sentence: str
    counts: Counts | None = None
    #: What proved that the fault happened.
    bit: str = ""
    pause_s: float = 0.0
    seconds: float = 0.0
    bound: Bound = field(default_factory=lambda: Bound(0, ""))
    timeline: Timeline | None = None
    #: Why the run says nothing of the fault, in one line; and what there was to see.
    problem: str = ""
    details: str = ""
    #: Why it was not tried.
    skipped: str = ""
    #: A control is to lose.
    control: bool = False

    @property
    def verdict(self) -> str:
        """What is wrong, in a few words; empty when all is as promised."""
        counts = self.counts
        if self.skipped:
            return ""
        if self.problem or counts is None:
            return self.problem or "it did not end"
        if self.control:
            return "" if counts.lost else "it lost nothing: this run is blind"
        found = {
            "lost": counts.lost,
            "unexpected": counts.unexpected,
            "contradictory": counts.contradictory,
            "too many duplicates": max(0, counts.duplicated - self.bound.most),
        }
        return ", ".join(f"{what}: {number}" for what, number in found.items() if number)

    def as_json(self) -> dict[str, Any]:
        """Flat, with the counts beside the others."""
        flat = asdict(self)
        del flat["details"]
        counts = flat.pop("counts") or {}
        bound = flat.pop("bound")
        for name in ("fault", "sentence"):
            counts = {name: flat.pop(name)} | counts
        flat["duplicates_bound"], flat["duplicates_why"] = bound["most"], bound["why"]
        return counts | flat | {"verdict": self.verdict}
