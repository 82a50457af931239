"""Measure how soon another worker takes over the task of a killed one: from SIGKILL to its start.

Starts a private broker, a worker with a task, and a second worker with a free slot, then kills the first one.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# The times in the workers' logs are in UTC, and are compared with ours.
os.environ["TZ"] = "UTC"
time.tzset()
sys.path.insert(0, str(Path(__file__).parents[1]))

from proj.private_node.node import BrokerNode  # noqa: E402  after the path is set
from tests.lib.bundle import Bundle  # noqa: E402

#: Number of kills.
ROUNDS = 6


def takeover(bundle: Bundle) -> float:
    """Seconds from the kill of a worker to the start of its task by the other."""
    victim = bundle.worker(log="victim.log").ready()
    bundle.proj("enqueue", "sleep-dots", "600", "--id", "task")
    victim.started("task")
    other = bundle.worker(log="other.log").ready()
    killed_at = time.time()
    victim.kill()
    return other.started("task").at - killed_at


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = BrokerNode(Path(folder) / "rabbitmq")
        node.start()
        taken = []
        try:
            for number in range(ROUNDS):
                place = Path(folder) / str(number)
                place.mkdir()
                with Bundle(node, f"round-{number}", place) as bundle:
                    taken.append(takeover(bundle))
        finally:
            node.kill()
    median, most = statistics.median(taken), max(taken)
    print(f"taken over after {median:.2f} s (median of {ROUNDS}; maximum {most:.2f} s)")


main()
