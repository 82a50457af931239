"""Kombu's transports, with few reads, timeouts that hold within a frame, and complete checks of certificates.

Py-amqp reads each frame in three pieces, and kombu's event loop then tries once more. That takes a tenth of
the client's CPU time for a publish.

In py-amqp 5.4 a timeout ends a read only before the first bytes of a frame. When the broker falls silent
after them, it repeats the read for ever, and before each publish, where the timeout is 0, in a busy loop.

By default py-amqp checks that a certificate comes from a trusted authority, but not its host name: the owner
of any valid certificate could impersonate the broker.
"""

import select
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
    UnexpectedFrame,
)
from kombu.transport import pyamqp

from proj.queues import Topology
from proj.rabbitmq import channel
from proj.rabbitmq.publishing import FRAME_END

#: Bytes that are asked for at once: more are no faster, since what is left is copied. And those of a frame
#: that is larger, for which RabbitMQ's default is at most 128 KiB: a wrong server may announce gigabytes.
_AHEAD: Final = 2**12
_AT_MOST: Final = 2**17

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

    Channel = channel.Channel

    #: The event loop that waits for the socket, which does not show what was read ahead.
    loop: Any = None

    #: Whether the loop has its turn after each event, since what an event causes may take long.
    takes_turns = False

    #: What `proj.enqueue.publish` has declared over this connection, and the producer that it keeps for it.
    declared: Topology | None = None
    producer: kombu.Producer | None = None

    #: What was read ahead and is still to be looked at.
    was_read = b""

    def __init__(self, *args: Any, ca: Path | None = None, **options: Any) -> None:
        """`ca` comes from `broker_transport_options`, all of which kombu passes on; `Transport` uses it."""
        super().__init__(*args, **options)

    def connect(self, callback: Any = None) -> Any:
        """Connect. Raises `Refused`, and what py-amqp raises."""
        self.was_read = b""
        try:
            return super().connect(callback)
        except (AccessRefused, NotAllowed) as error:
            raise Refused(error.reply_text, reply_code=error.reply_code) from error

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Handle the next frame. Without a timeout, that of the socket holds."""
        frame = self._take_frame() if self.was_read else None
        return self.on_inbound_frame(frame or self._receive_frame(timeout))

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for an event, and leave to the event loop what was read ahead."""
        while not self.blocking_read(timeout):
            pass
        if self.loop and self._has_more:
            self.loop.call_soon(self.handle_available)

    def handle_available(self) -> None:
        """Handle the frames that are there, if the connection still is; wait for none."""
        if not self.connected:
            return
        try:
            event = self.blocking_read(0)
            while self.connected:
                if event and self.takes_turns and self._has_more:
                    self.loop.call_soon(self.handle_available)
                    return
                frame = self._take_frame()
                if frame is None and not _decrypted(self.transport.sock):
                    return
                event = self.on_inbound_frame(frame or self._receive_frame(0))
        except TimeoutError as error:
            if error.errno is not None:  # the system has given up the connection
                raise

    @property
    def has_frame(self) -> bool:
        """Whether a whole frame was read ahead."""
        return len(self.was_read) >= _size_of_frame(self.was_read)

    @property
    def has_input(self) -> bool:
        """Whether there is something to be read, or an error of the socket; the connection must be open."""
        sock = self.transport.sock
        if self.was_read or sock.fileno() < 0 or _decrypted(sock):
            return True
        look = select.poll()  # to look costs less than to try
        look.register(sock, select.POLLIN)
        return bool(look.poll(0))

    @property
    def _has_more(self) -> bool:
        """Whether there is something that the socket does not show."""
        return self.connected and (self.has_frame or bool(_decrypted(self.sock)))

    def _take_frame(self) -> tuple[int, int, bytes] | None:
        """The next frame, if the whole of it was read ahead."""
        found = self.was_read
        if len(found) < _HEAD.size:
            return None
        kind, number, size = _HEAD.unpack_from(found)
        last = _HEAD.size + size
        if len(found) <= last:
            return None
        if found[last] != FRAME_END:
            raise UnexpectedFrame(f"a frame ends with {found[last]:#04x} instead of 0xce")
        self.was_read = found[last + 1 :]
        return kind, number, found[_HEAD.size : last]

    def _receive_frame(self, timeout: float | None) -> tuple[int, int, bytes]:
        """Read until there is a frame. The timeout begins anew with each read."""
        wire = self.transport
        sock = wire.sock
        usual = sock.gettimeout()
        if timeout is None:
            timeout = usual
        if timeout != usual:
            sock.settimeout(timeout)
        size = _AHEAD
        try:
            while True:
                data = sock.recv(size)
                if not data:
                    raise OSError("Server unexpectedly closed connection")  # py-amqp's words
                self.was_read += data  # the handler of a signal may have read too, meanwhile
                if frame := self._take_frame():
                    return frame
                size = min(max(_AHEAD, _size_of_frame(self.was_read) - len(self.was_read)), _AT_MOST)
        except _NOTHING_THERE:
            raise TimeoutError from None
        except OSError as error:
            if not isinstance(error, TimeoutError) or error.errno is not None:
                wire.connected = False
            raise
        finally:
            if timeout != usual:
                sock.settimeout(usual)


def _size_of_frame(found: bytes) -> int:
    """The number of bytes of the first frame, or those of its beginning while it is not known."""
    if len(found) < _HEAD.size:
        return _HEAD.size
    return _HEAD.size + int(_HEAD.unpack_from(found)[2]) + 1


def _decrypted(sock: Any) -> int:
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
