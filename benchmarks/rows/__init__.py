"""What is measured: a benchmark a file, in the order of the table."""

from benchmarks.rows import (
    bulk,
    deep,
    delay,
    get,
    ingest,
    latency,
    memory,
    mixed,
    results,
    startup,
    takeover,
    tasks,
    threads,
    waiting,
)
from benchmarks.stage import Bench

BENCHES: tuple[Bench, ...] = (
    delay.BENCH,
    threads.BENCH,
    bulk.BENCH,
    ingest.BENCH,
    get.BENCH,
    waiting.BENCH,
    tasks.BENCH,
    results.BENCH,
    mixed.BENCH,
    latency.BENCH,
    takeover.BENCH,
    startup.BENCH,
    memory.BENCH,
    deep.BENCH,
)
