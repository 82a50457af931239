"""The alarms of a broker that runs out of memory or disk."""

from collections.abc import Iterator
from contextlib import contextmanager

from proj.private_node.node import BrokerNode
from tests.lib.erlang import evaluate
from tests.lib.waiting import eventually

SET_MEMORY = "vm_memory_monitor:set_vm_memory_high_watermark"
SET_DISK = "rabbit_disk_monitor:set_disk_free_limit"

#: Limits that are exceeded at once, and the usual ones.
ALARMS = {
    "memory": (f"{SET_MEMORY}(0.00001)", f"{SET_MEMORY}(0.4)"),
    "disk": (f'{SET_DISK}("1000000GB")', f'{SET_DISK}("50MB")'),
}


@contextmanager
def alarm(node: BrokerNode, kind: str) -> Iterator[None]:
    """Let the broker believe that it runs out of `kind`: it then reads nothing from whoever publishes."""
    on, off = ALARMS[kind]

    def is_on() -> bool:
        # The broker's own list of them.
        return kind in evaluate(node, "rabbit_alarm:get_alarms()")

    try:
        evaluate(node, on)
        eventually(f"the {kind} alarm is on", is_on)
        yield
    finally:
        evaluate(node, off)
        eventually(f"the {kind} alarm is off", lambda: not is_on())
