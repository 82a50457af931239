"""How many duplicates faults may cause, where several have the same reason."""

from typing import Final

from tests.chaos.faults import Bound
from tests.chaos.orders import CHUNK
from tests.chaos.stage import SLOTS, WORKERS

#: A fault that ends nothing in the middle.
NONE: Final = Bound(0, "nothing ends in the middle")

#: A worker is gone: of each slot.
ONE_WORKER: Final = Bound(SLOTS, "one a slot of the worker: it may have acted, and its success not be stored")

#: All workers are gone, or lose their connections.
ALL_WORKERS: Final = Bound(
    SLOTS * WORKERS, "one a slot: it may have acted, or still act, and its success not be stored"
)

#: All workers are asked to stop. Celery hands a task to a process, and hears later that it has begun; what it
#: has not heard of, it gives back.
ALL_STOPPED: Final = Bound(
    SLOTS * WORKERS, "one a slot: it may be given back while a process begins to execute it"
)

#: All connections are lost: a batch publishes again what was not confirmed, and workers execute again what
#: they could not acknowledge.
ALL_CONNECTIONS: Final = Bound(
    CHUNK + 1 + SLOTS * WORKERS,
    f"publishes without a confirm are repeated, at most {CHUNK + 1}, beside one task a slot",
)
