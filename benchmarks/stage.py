"""A benchmark, and what it is given for a round."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.broker import Broker
from benchmarks.rounds import Row, Sample, alternating


@dataclass(frozen=True)
class Stage:
    """One round of a run: its broker, its number, and how long it may be."""

    broker: Broker
    number: int
    short: bool = False

    def size(self, full: int, short: int) -> int:
        """How much is measured: in the short form it is only to be seen that it works."""
        return short if self.short else full


#: Measures some contenders.
Runner = Callable[[Stage], Iterable[Sample]]


@dataclass(frozen=True)
class Bench:
    """Rows that are measured together, and their runners, which take turns."""

    name: str
    rows: tuple[Row, ...]
    runners: tuple[Runner, ...]
    #: For what is long, and varies little.
    most_rounds: int | None = None

    def turns(self, number: int) -> Iterator[Runner]:
        """Its runners, in the order of the round."""
        return alternating(self.runners, number)
