"""What is measured: a benchmark a file, in the order of the table."""

from benchmarks.rows import delay, get, tasks
from benchmarks.stage import Bench

BENCHES: tuple[Bench, ...] = (delay.BENCH, get.BENCH, tasks.BENCH)
