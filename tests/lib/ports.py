"""Ports for what a test starts itself."""

import random
import socket
from contextlib import suppress

from proj.private_node import ports as private_ports
from proj.private_node.guard import HOST

#: Beside those that nodes take by themselves, and below those that Linux gives to outgoing connections.
FREE_PORTS = range(25_000, 32_768)

#: Processes of a test run whose nodes have ports of their own; the last one controls the others.
_PROCESSES = 16
CONTROLLER = _PROCESSES - 1

_given: set[int] = set()


def take_share(process: int) -> None:
    """Keep to some of the ports, so that no other process takes those of a node that is down for a moment."""
    global FREE_PORTS
    FREE_PORTS = _share(FREE_PORTS, process)
    private_ports.FREE_PORTS = _share(private_ports.FREE_PORTS, process)  # type: ignore[misc]


def _share(ports: range, process: int) -> range:
    some = len(ports) // _PROCESSES
    return ports[process % _PROCESSES * some :][:some]


def free_port() -> int:
    """A port that nobody listens at, and that was not given before.

    The system's own free ports will not do: it gives them to any connection, before the test listens.
    """
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            if port not in _given:
                _given.add(port)
                return port
    raise AssertionError(f"no port of {FREE_PORTS} is free")
