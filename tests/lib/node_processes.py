"""What belongs to a private RabbitMQ node, and what is left of it."""

import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from proj.private_node.guard import POLL_INTERVAL, NodeInfo

#: Seconds in which the processes of a killed node are gone: usually tenths of one.
GONE_TIMEOUT = 60.0

#: RabbitMQ logs this when it stops in good order, and not when it is killed.
STOPPED = "stopped TCP listener"


def processes(info: NodeInfo) -> list[psutil.Process]:
    """Guard, epmd, RabbitMQ and its helpers."""
    guard = psutil.Process(info.guard_pid)
    found = [guard, *guard.children(recursive=True)]
    names = {process.name() for process in found}
    assert {"epmd", "beam.smp", "erl_child_setup"} <= names, names
    return found


def alive(found: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still execute; who is only waiting for an init to read his exit status does not."""

    def is_alive(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    return list(filter(is_alive, found))


def left(found: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still execute after `GONE_TIMEOUT`; returns as soon as there are none."""
    deadline = time.monotonic() + GONE_TIMEOUT
    while (stayed := alive(found)) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
    return stayed


def logged_since(info: NodeInfo, start: int) -> str:
    return info.log.read_bytes()[start:].decode()
