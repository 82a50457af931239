"""Ports for what a test starts itself."""

import random
import socket
from contextlib import suppress

from proj import broker
from proj.broker_guard import HOST


def free_port(ports: range | None = None) -> int:
    """A port that nobody listens at, among those of this process's nodes unless others are given.

    The system's own free ports will not do: it gives them to any connection, before the test listens.
    """
    ports = ports or broker.FREE_PORTS
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError(f"no port of {ports} is free")
