"""Claims ports for a node before RabbitMQ listens on them."""

import errno
import random
import socket
from contextlib import ExitStack
from typing import Final

from proj.errors import BrokerNodeError
from proj.private_node.guard import HOST

#: Range of free ports: below the ports of outgoing connections on Linux (from 32768) and macOS (from 49152),
#: so that no client takes a node's port while it restarts.
FREE_PORTS: Final = range(20_000, 25_000)


class Claims:
    """Ports that no other starting node chooses, until `release`."""

    def __init__(self) -> None:
        self._marks = ExitStack()

    def claim(self, *wanted: tuple[int, str]) -> list[int]:
        """The ports, each with the option that sets it; 0 picks a free one.

        Raises `BrokerNodeError` when one is in use.
        """
        with ExitStack() as held:
            return [self._claim(port, option, held) for port, option in wanted]

    def release(self) -> None:
        self._marks.close()

    def _claim(self, wanted: int, option: str, held: ExitStack) -> int:
        reason = OSError()
        for candidate in [wanted] if wanted else random.sample(FREE_PORTS, len(FREE_PORTS)):
            probe = held.enter_context(socket.socket())
            # As RabbitMQ does, or old connections of the previous node would block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
                probe.listen()
                if not wanted:
                    # RabbitMQ listens seconds later. Until then the UDP port of the same number keeps other
                    # starting nodes from choosing it, without blocking RabbitMQ.
                    mark = self._marks.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                    mark.bind((HOST, candidate))
            except OSError as error:
                reason = error
            else:
                return candidate
        taken = reason.errno == errno.EADDRINUSE
        state = "is in use" if taken else f"cannot be used: {reason.strerror}"
        hint = f"choose another port with {option}; {option} 0 picks a free one"
        raise BrokerNodeError(f"port {wanted or FREE_PORTS} on {HOST} {state}", hint)
