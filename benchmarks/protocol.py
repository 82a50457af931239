"""What a measured program says and hears, a line each: `ready`, then for each `go N` a `result JSON`.

Standard library only: it is imported in the peers' environment too.
"""

import json
import os
import struct
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

    return measure


#: Seconds between two messages of a steady publisher, which leave a worker time for each.
INTERVAL = 0.05


def steadily(act: Callable[[], Any], rest: Callable[[float], Any] = time.sleep) -> Callable[[int], None]:
    """What calls `act` at a low, steady rate."""

    def measure(count: int) -> None:
        start = time.monotonic()
        for number in range(count):
            if (left := start + number * INTERVAL - time.monotonic()) > 0:
                rest(left)
            act()

    return measure


def cpu_of_waiting(children: int, wait: Callable[[float], Any]) -> Callable[[int], float]:
    """What measures the CPU of so many processes that `wait` for some seconds: per cent of a core, in all."""

    def measure(seconds: int) -> float:
        reader, writer = os.pipe()
        pids = []
        for _ in range(children):
            if pid := os.fork():
                pids.append(pid)
                continue
            try:
                wait(0.5)  # connects
                start = time.process_time()
                wait(seconds)
                os.write(writer, struct.pack("d", time.process_time() - start))
            finally:
                os._exit(0)
        os.close(writer)
        for pid in pids:
            os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            taken = [value for (value,) in struct.iter_unpack("d", pipe.read())]
        assert len(taken) == children, f"{len(taken)} of {children} waited"
        return float(100 * sum(taken) / seconds)

    return measure
