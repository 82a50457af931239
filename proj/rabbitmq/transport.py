"""Kombu's transports, whose timeouts hold in the middle of a frame, and which check all of a certificate.

Py-amqp 5.4 lets a timeout end a read only before the first bytes of a frame. When the broker falls silent
after them it reads again, for ever; and with no timeout at all, as before each publish, without a pause.

By default it wants a certificate of an authority that the system trusts, and does not look for whom it is:
whoever owns any certificate could play the broker.
"""

import ssl
from pathlib import Path
from typing import Any

import kombu.transport
from amqp.exceptions import IrrecoverableConnectionError
from kombu.transport import pyamqp

from proj.rabbitmq import publishing


class Untrusted(IrrecoverableConnectionError):
    """The broker's certificate is not accepted; to try again mends nothing. `__cause__` says why."""


class Connection(pyamqp.Connection):
    """Raises `TimeoutError` wherever a read ends with its timeout; the next one goes on from there."""

    Channel = publishing.Channel

    def __init__(self, *args: Any, ca: Path | None = None, **options: Any) -> None:
        """`ca` is one of `broker_transport_options`, which kombu passes on; `Transport` has used it."""
        super().__init__(*args, **options)

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  (py-amqp's name)
        wire = super().Transport(*args, **options)
        read = wire._read
        # Each part of a frame is read like its first: what was read before is kept in any case.
        wire._read = lambda size, initial=False: read(size, True)
        return wire


class PlainTransport(pyamqp.Transport):
    """For `amqp://`."""

    Connection = Connection


class Transport(pyamqp.SSLTransport):
    """Checks that a certificate is valid, from a trusted authority, and for the host of the URL."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect. Raises `Untrusted`, and what kombu raises."""
        client, host = self.client, self.client.hostname
        # Made for each host: what Celery's `broker_use_ssl` says would hold for `amqp://` too, and for all
        # nodes of a failover list.
        client.ssl = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": host}
        if ca := client.transport_options.get("ca"):
            client.ssl["ca_certs"] = str(ca)
        try:
            connected = super().establish_connection()
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(str(error)) from error
        finally:
            client.hostname = host  # of `localhost`, kombu makes an address that a certificate may lack
        # Py-amqp leaves the timeout of the handshake on the socket.
        connected.sock.settimeout(client.transport_options.get("read_timeout"))
        return connected


# Kombu finds transports by the scheme of a URL, and its pools make connections of a class of their own: no
# subclass of `kombu.Connection` would reach them.
kombu.transport.TRANSPORT_ALIASES |= {
    "amqp": f"{__name__}:{PlainTransport.__name__}",
    "pyamqp": f"{__name__}:{PlainTransport.__name__}",
    "amqps": f"{__name__}:{Transport.__name__}",
}
# It keeps what it has found, such as for a program that used a scheme before it imported this one.
kombu.transport._transport_cache.clear()
