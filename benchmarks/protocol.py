"""What a measured program says and hears, a line each: `ready`, then for each `go N` a `result JSON`.

Standard library only: it is imported in the peers' environment too.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def serve(measure: Callable[[int], Any]) -> None:
    """Answer each `go N` with what `measure(N)` returns, until stdin ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        print("result", json.dumps(measure(int(line.split()[1]))), flush=True)


def rate(act: Callable[[], Any]) -> Callable[[int], float]:
    """What measures how often a second `act` can be called, one call after the other."""

    def measure(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            act()
        return count / (time.perf_counter() - start)

    return measure


def milliseconds(act: Callable[[], Any]) -> Callable[[int], float]:
    """What measures the milliseconds of one call of `act`."""
    measure = rate(act)
    return lambda count: 1000 / measure(count)


def concurrently(threads: int, act: Callable[[], Any]) -> Callable[[int], float]:
    """What measures how often a second this many threads can call `act`, all of them together."""
    pool = ThreadPoolExecutor(threads)

    def measure(count: int) -> float:
        each = rate(act)
        start = time.perf_counter()
        list(pool.map(each, [count // threads] * threads))
        return count // threads * threads / (time.perf_counter() - start)

    measure(threads)  # each thread connects
    return measure
