"""How long the task of a killed worker waits: from SIGKILL to its start by another worker.

A private broker, a worker in the middle of a task, a second worker with a free slot; the first is killed.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# The workers' logs, whose times are compared with ours, are in UTC.
os.environ["TZ"] = "UTC"
time.tzset()
sys.path.insert(0, str(Path(__file__).parents[1]))

from proj.private_node.node import BrokerNode  # noqa: E402  after the path is set
from tests.bundle import Bundle  # noqa: E402

#: Kills.
ROUNDS = 6


def takeover(bundle: Bundle) -> float:
    """Seconds from the kill of a worker to the start of its task by another."""
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
    print(f"started again after {median:.2f} s, the median of {ROUNDS}; {most:.2f} s at most")


main()
