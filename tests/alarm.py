"""The alarms of a broker that runs out of memory or disk."""

from collections.abc import Iterator
from contextlib import contextmanager

from proj.private_node.node import BrokerNode
from tests.bundle import eventually

#: Limits that are exceeded at once, and the usual ones.
ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.4")),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
}

#: The broker's own list of them.
ALARMS_ON = "rabbit_alarm:get_alarms()."


@contextmanager
def alarm(node: BrokerNode, kind: str) -> Iterator[None]:
    """Let the broker believe that it runs out of `kind`: it then reads nothing from whoever publishes."""
    on, off = ALARMS[kind]
    try:
        node.ctl(*on)
        eventually(f"the {kind} alarm is on", lambda: kind in node.ctl("eval", ALARMS_ON))
        yield
    finally:
        node.ctl(*off)
        eventually(f"the {kind} alarm is off", lambda: kind not in node.ctl("eval", ALARMS_ON))
