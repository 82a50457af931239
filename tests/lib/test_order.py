"""No test is forgotten, and none that takes long is begun last."""

from dataclasses import dataclass, field

import pytest

from tests.lib.order import ordered


@dataclass(frozen=True)
class Item:
    """As much of a test as its order depends on."""

    number: int
    long: bool = False
    fixturenames: frozenset[str] = field(default=frozenset())

    def get_closest_marker(self, name: str) -> str | None:
        return name if self.long else None


@pytest.mark.parametrize("processes", [2, 3, 4, 7, 200])
def test_every_part_begins_with_what_takes_long(processes: int) -> None:
    """Whoever makes what is dear has no other that takes long, as far as there are processes enough."""
    own = [Item(number, fixturenames=frozenset({"own_node"})) for number in range(10)]
    browser = [Item(number, fixturenames=frozenset({"chromium", "node"})) for number in range(10, 15)]
    long = [Item(number, long=True) for number in range(15, 22)]
    short = [Item(number) for number in range(22, 100)]
    items = [item for number in range(10) for item in [*own, *browser, *long, *short][number::10]]

    found = ordered(items, processes)

    assert sorted(item.number for item in found) == list(range(100))
    if processes <= 7:
        parts, left = [], found
        for number in range(processes):
            size = len(left) // (processes - number)
            parts.append(left[:size])
            left = left[size:]
        assert [sum(item in part for item in own) for part in parts[:2]] == [5, 5]
        assert browser == sorted(set(parts[2 % processes]) & set(browser), key=lambda item: item.number)
        for part in parts:
            kinds = [item in short for item in part]
            assert kinds == sorted(kinds)
            assert sum(item.long for item in part) in {7 // processes, -(-7 // processes)}
    assert [item for item in found if item in short] == [item for item in items if item in short]
