"""Kombu's transports, with timeouts that hold within a frame, and with complete checks of certificates.

In py-amqp 5.4 a timeout ends a read only before the first bytes of a frame. When the broker falls silent
after them, it repeats the read for ever, and before each publish, where the timeout is 0, in a busy loop.

By default py-amqp checks that a certificate comes from a trusted authority, but not its host name: the owner
of any valid certificate could impersonate the broker.
"""

import ssl
from pathlib import Path
from struct import Struct
from typing import Any, Final

import kombu
import kombu.transport
from amqp.exceptions import IrrecoverableConnectionError
from kombu.transport import pyamqp

from proj.queues import Topology
from proj.rabbitmq import publishing

#: Bytes that a connection which reads ahead asks for: more are no faster, since py-amqp copies what is left.
_AHEAD: Final = 4096

#: How each frame begins: its type, its channel, and the number of its bytes, without these and the last one.
_HEAD: Final = Struct(">BHI")


class Untrusted(IrrecoverableConnectionError):
    """Raised when the broker's certificate is not accepted, which a retry does not fix. See `__cause__`."""


class Connection(pyamqp.Connection):
    """A connection whose reads raise `TimeoutError` anywhere in a frame; the next read continues there."""

    Channel = publishing.Channel

    #: Whether one read may take several frames from the socket. An event loop, which waits for the socket,
    #: would not see those that were read before.
    reads_ahead = False

    #: What `proj.enqueue.publish` has declared over this connection, and the producer that it keeps for it.
    declared: Topology | None = None
    producer: kombu.Producer | None = None

    def __init__(self, *args: Any, ca: Path | None = None, **options: Any) -> None:
        """`ca` comes from `broker_transport_options`, all of which kombu passes on; `Transport` uses it."""
        super().__init__(*args, **options)

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  (py-amqp's name)
        wire = super().Transport(*args, **options)
        # upstream: not reported; remove when a timeout of py-amqp ends a read within a frame too
        read = wire._read
        if not self.reads_ahead:
            # `initial` lets a timeout end the read. Bytes that were read before are kept in any case.
            wire._read = lambda size, initial=False: read(size, True)
            return wire

        def read_on(size: int, initial: bool = False) -> Any:
            if len(wire._read_buffer) < size:
                try:
                    wire._read_buffer += wire.sock.recv(_AHEAD)
                except (BlockingIOError, ssl.SSLWantReadError):
                    raise TimeoutError from None
            return read(size, True)

        wire._read = read_on
        return wire

    @property
    def was_read(self) -> bytes:
        """What was read ahead and is still to be looked at."""
        found: bytes = self.transport._read_buffer
        return found

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame was read ahead."""
        found = self.was_read
        return len(found) >= _HEAD.size and len(found) > _HEAD.size + _HEAD.unpack_from(found)[2]


class PlainTransport(pyamqp.Transport):
    """For `amqp://`."""

    Connection = Connection


class Transport(pyamqp.SSLTransport):
    """Checks that a certificate is valid, from a trusted authority, and for the host of the URL."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect. Raises `Untrusted`, and what kombu raises."""
        client, host = self.client, self.client.hostname
        # For each host: Celery's `broker_use_ssl` would apply to `amqp://` too, and to all nodes of a
        # failover list.
        client.ssl = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": host}
        if ca := client.transport_options.get("ca"):
            client.ssl["ca_certs"] = str(ca)
        try:
            connected = super().establish_connection()
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(str(error)) from error
        finally:
            client.hostname = host  # kombu turns `localhost` into an address that a certificate may lack
        # Py-amqp leaves the timeout of the handshake on the socket.
        connected.sock.settimeout(client.transport_options.get("read_timeout"))
        return connected


# Kombu finds transports by the URL's scheme. Its pools always make a `kombu.Connection`, never a subclass.
# upstream: not reported; remove when kombu looks up a scheme anew after its alias has changed
kombu.transport.TRANSPORT_ALIASES |= {
    "amqp": f"{__name__}:{PlainTransport.__name__}",
    "pyamqp": f"{__name__}:{PlainTransport.__name__}",
    "amqps": f"{__name__}:{Transport.__name__}",
}
# Kombu caches what it has found, in case a program used a scheme before it imported this module.
# upstream: not reported; remove when kombu looks up a scheme anew after its alias has changed
kombu.transport._transport_cache.clear()
