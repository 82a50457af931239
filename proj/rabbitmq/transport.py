"""Kombu's transports, with few reads, timeouts that hold within a frame, and complete checks of certificates.

Py-amqp reads each frame in three pieces, and kombu's event loop then tries once more.

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
from amqp.exceptions import (
    AccessRefused,
    AMQPError,
    IrrecoverableConnectionError,
    NotAllowed,
    RecoverableConnectionError,
)
from kombu.transport import pyamqp

from proj.queues import Topology
from proj.rabbitmq import publishing

#: Bytes that are asked for at once: more are no faster, since py-amqp copies what is left.
_AHEAD: Final = 4096

#: How each frame begins: its type, its channel, and the number of its bytes, without these and the last one.
_HEAD: Final = Struct(">BHI")

#: What a socket raises that does not wait.
_NOTHING_THERE: Final = (BlockingIOError, ssl.SSLWantReadError)


class Untrusted(IrrecoverableConnectionError):
    """Raised when the broker's certificate is not accepted, which a retry does not fix. See `__cause__`."""


class Refused(AMQPError):
    """Raised when the broker refuses the login or the virtual host, which a retry does not change.

    It is neither an error of channels, which `celery purge` ignores, nor one of connections, after which
    `celery events` connects again.
    """


class Connection(pyamqp.Connection):
    """A connection that takes many frames from the socket with one read.

    Reads raise `TimeoutError` anywhere in a frame; the next read continues there.
    """

    Channel = publishing.Channel

    #: The event loop that waits for the socket, which does not show what was read ahead.
    loop: Any = None

    #: Whether the loop has its turn after each event, since what an event causes may take long.
    takes_turns = False

    #: What `proj.enqueue.publish` has declared over this connection, and the producer that it keeps for it.
    declared: Topology | None = None
    producer: kombu.Producer | None = None

    def __init__(self, *args: Any, ca: Path | None = None, **options: Any) -> None:
        """`ca` comes from `broker_transport_options`, all of which kombu passes on; `Transport` uses it."""
        super().__init__(*args, **options)

    def connect(self, callback: Any = None) -> Any:
        """Connect. Raises `Refused`, and what py-amqp raises."""
        try:
            return super().connect(callback)
        except (AccessRefused, NotAllowed) as error:
            raise Refused(error.reply_text, reply_code=error.reply_code) from error

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  (py-amqp's name)
        wire = super().Transport(*args, **options)
        # upstream: not reported; remove when a timeout of py-amqp ends a read within a frame too
        read = wire._read

        def read_ahead(size: int, initial: bool = False) -> Any:
            if len(wire._read_buffer) < size:
                try:
                    _fill(wire)
                except _NOTHING_THERE:
                    raise TimeoutError from None
            # `initial` lets a timeout end the read. Bytes that were read before are kept in any case.
            return read(size, True)

        wire._read = read_ahead
        return wire

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Handle the next frame, as py-amqp does, which looks at the socket's timeout for each."""
        frame = self._take_frame() if self._transport else None
        return super().blocking_read(timeout) if frame is None else self.on_inbound_frame(frame)

    def _take_frame(self) -> tuple[int, int, bytes] | None:
        """The next frame, if the whole of it was read ahead."""
        found = self.was_read
        size = _size_of_frame(found)
        if not size or found[size - 1] != publishing.FRAME_END:  # of which py-amqp makes an error
            return None
        kind, channel, _ = _HEAD.unpack_from(found)
        self.transport._read_buffer = found[size:]
        return kind, channel, found[_HEAD.size : size - 1]

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for an event, as py-amqp does, and leave to the event loop what was read ahead."""
        super().drain_events(timeout)
        if self.loop and self._has_more:
            self.loop.call_soon(self.handle_available)

    def handle_available(self) -> None:
        """Handle the frames that are there, if the connection still is; wait for none."""
        event = None
        try:
            if self.connected:
                if not self.has_frame:
                    self._read_ahead()
                event = self.blocking_read(0)
            while self._has_more:
                if event and self.takes_turns:
                    self.loop.call_soon(self.handle_available)
                    return
                event = self.blocking_read(0)
        except TimeoutError as error:
            if error.errno is not None:  # the system has given up the connection
                raise

    def _read_ahead(self) -> None:
        """Read what is there, without waiting; py-amqp, which takes longer, does what is left to be done."""
        wire = self.transport
        timeout = wire.sock.gettimeout()
        wire.sock.settimeout(0)
        try:
            _fill(wire)
        except _NOTHING_THERE:
            pass
        except OSError:
            wire.connected = False  # as py-amqp
            raise
        finally:
            wire.sock.settimeout(timeout)

    @property
    def was_read(self) -> bytes:
        """What was read ahead and is still to be looked at."""
        found: bytes = self.transport._read_buffer
        return found

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame was read ahead."""
        return bool(_size_of_frame(self.was_read))

    @property
    def _has_more(self) -> bool:
        """Whether there is something that the socket does not show."""
        return bool(self.connected) and (self.has_frame or bool(decrypted(self.sock)))


def _fill(wire: Any) -> None:
    """Add what the socket has to what was read ahead."""
    data = wire.sock.recv(_AHEAD)  # the handler of a signal may read too, meanwhile
    wire._read_buffer += data


def _size_of_frame(found: bytes) -> int:
    """The number of bytes of the first frame; 0 if not the whole of it is there."""
    if len(found) < _HEAD.size:
        return 0
    size: int = _HEAD.size + _HEAD.unpack_from(found)[2] + 1
    return size if len(found) >= size else 0


def decrypted(sock: Any) -> int:
    """The number of bytes that TLS has read ahead."""
    return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0


class _EventLoop:
    """What an event loop does with a connection; for kombu's transports."""

    def register_with_event_loop(self, connection: Connection, loop: Any) -> None:
        """Let the loop wait for the connection from now on."""
        connection.loop = loop
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]

    def on_readable(self, connection: Connection, loop: Any) -> None:
        """Handle what there is. Raises an error of the connection when it is lost."""
        if not connection.connected:
            raise RecoverableConnectionError("the connection was lost")
        connection.handle_available()


class PlainTransport(_EventLoop, pyamqp.Transport):
    """For `amqp://`."""

    Connection = Connection


class Transport(_EventLoop, pyamqp.SSLTransport):
    """Checks that a certificate is valid, from a trusted authority, and for the host of the URL."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect. Raises `Untrusted`, and what kombu raises."""
        client, host = self.client, self.client.hostname
        if "ca" not in client.transport_options:  # of an application that is not ours
            return super().establish_connection()
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
