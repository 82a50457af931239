"""What is measured in rounds, and what the rounds amount to."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

T = TypeVar("T")

#: Our figures are the first of each row.
OURS: Final = "proj"


@dataclass(frozen=True)
class Target:
    """What a row must reach: how our figure compares with another one of the same round.

    Compared is their ratio, or for a `difference` how much more ours is. A `goal` is no requirement.
    """

    against: str
    limit: float
    at_least: bool = False
    difference: bool = False
    goal: bool = False

    def compared(self, ours: float, theirs: float) -> float:
        return ours - theirs if self.difference else ours / theirs

    def is_reached(self, compared: float) -> bool:
        return compared >= self.limit if self.at_least else compared <= self.limit


@dataclass(frozen=True)
class Row:
    """One figure of several contenders; ours is the first one."""

    key: str
    title: str
    unit: str
    contenders: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    more_is_better: bool = False
    #: What the figure is of, and how it was measured.
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    row: str
    contender: str
    value: float


@dataclass(frozen=True)
class Summary:
    """The median of some measurements, and their spread."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Verdict:
    """How our figure compares with a target: the median over the rounds."""

    target: Target
    compared: Summary

    @property
    def reached(self) -> bool:
        return self.target.is_reached(self.compared.median)


@dataclass
class Results:
    """The measurements of a row's contenders, by round."""

    row: Row
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, value: float) -> None:
        assert contender in self.row.contenders, f"{contender} is none of {self.row.key}"
        self.values.setdefault(contender, []).append(value)

    @property
    def summaries(self) -> dict[str, Summary]:
        """By contender, in the row's order."""
        return {name: Summary.of(self.values[name]) for name in self.row.contenders if name in self.values}

    def ratio(self, contender: str) -> Summary | None:
        """Our figure over this contender's, round by round; None if one of them was not measured."""
        ours = self.values.get(self.row.contenders[0], [])
        pairs = zip(ours, self.values.get(contender, []), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return Summary.of(ratios) if ratios else None

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each target whose both figures were measured."""
        ours = self.values.get(self.row.contenders[0], [])
        found = []
        for target in self.row.targets:
            pairs = zip(ours, self.values.get(target.against, []), strict=False)
            if compared := [target.compared(*pair) for pair in pairs]:
                found.append(Verdict(target, Summary.of(compared)))
        return found


def alternating(things: Iterable[T], round_number: int) -> Iterator[T]:
    """The things in their order, and in each other round backwards: none always follows the same one."""
    ordered = list(things)
    return iter(ordered[::-1] if round_number % 2 else ordered)
