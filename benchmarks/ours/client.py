"""Our callers: `delay` a second, `threads` that call it, or the milliseconds of `get`."""

import sys

from benchmarks.protocol import concurrently, milliseconds, rate, serve
from proj.tasks import add

MEASURES = {
    "delay": rate(lambda: add.delay(2, 3)),
    "threads": concurrently(100, lambda: add.delay(2, 3)),
    "get": milliseconds(lambda: add.delay(2, 3).get(timeout=60)),
}

if __name__ == "__main__":
    add.delay(2, 3)  # the first one connects
    serve(MEASURES[sys.argv[1]])
