"""The order of tests for several processes: what takes long begins first, and what is dear is made by few.

`--dist=worksteal` gives each process an equal part of the tests, neighbours together. A process that has
ended its part takes over the last tests of another's. So the first tests of a part stay where they are.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import pytest

#: Fixtures that take seconds to make, and in how many processes. One alone might be the last to end.
_DEAR: Final = {"own_node": 2, "chromium": 1, "secured": 1, "shared_node": 1, "other_node": 1}

#: The mark of a test that takes ten seconds or more: begun last, the other processes would wait for it.
_LONG: Final = "long"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes > 1:
        items[:] = ordered(items, processes)


def ordered(items: list[Any], processes: int) -> list[Any]:
    """The tests, so that the equal part of each process begins with what must not be left for the end."""
    left, firsts = items, [list[Any]() for _ in range(processes)]

    def take(is_wanted: Callable[[Any], bool]) -> list[Any]:
        nonlocal left
        taken = [item for item in left if is_wanted(item)]
        left = [item for item in left if not is_wanted(item)]
        return taken

    maker = 0
    for fixture, makers in _DEAR.items():
        users = take(lambda item, fixture=fixture: fixture in item.fixturenames)  # type: ignore[misc]
        size = -(-len(users) // makers)
        for number in range(makers):
            firsts[maker % processes] += users[number * size :][:size]
            maker += 1
    for number, item in enumerate(take(_is_long)):
        firsts[-1 - number % processes].append(item)

    found: list[Any] = []
    others = iter(left)
    for number, first in enumerate(firsts):
        size = (len(items) - len(found)) // (processes - number)
        found += sorted(first, key=_is_long, reverse=True)
        found += islice(others, max(0, size - len(first)))
    return [*found, *others]


def _is_long(item: Any) -> bool:
    return item.get_closest_marker(_LONG) is not None
