"""Ports for what a test starts itself."""

import random
import socket
from contextlib import suppress

from proj.private_node.guard import HOST

#: Beside those that nodes take by themselves, and below those that Linux gives to outgoing connections.
FREE_PORTS = range(25_000, 32_768)

_given: set[int] = set()


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
