"""Faults of the broker."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.chaos.faults import Bound, Fault, injects
from tests.chaos.producer import CHUNK
from tests.chaos.stage import SLOTS, WORKERS, Stage

#: What is lost with connections: a batch publishes again what was not confirmed, and a worker executes again
#: what it could not acknowledge.
_CUT = Bound(
    CHUNK + 1 + WORKERS * SLOTS,
    f"publishes that were not confirmed are repeated, {CHUNK + 1} at most, and one task a slot",
)


@injects(Fault.BROKER_KILLED, duplicates=_CUT, private=True)
@contextmanager
def broker_killed(stage: Stage) -> Iterator[str]:
    pid = stage.node.pid
    stage.node.kill()
    assert not psutil.pid_exists(pid)
    try:
        yield f"process {pid} is gone"
    finally:
        stage.node.start()
