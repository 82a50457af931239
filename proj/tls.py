"""TLS: the context for all connections, and explanations of its errors."""

import ssl
from pathlib import Path
from typing import Final

#: OpenSSL's codes (`X509_V_ERR_…`): not valid yet, expired, other host name, other IP address.
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_OTHER_HOST: Final = (62, 64)


def context(ca: Path | None) -> ssl.SSLContext:
    """A context that checks certificates fully; `ca` is a PEM file of authorities, None is the system's."""
    return ssl.create_default_context(cafile=ca)


def explain(error: ssl.SSLError, host: str, where: str) -> tuple[str, str]:
    """The problem and a hint, for people; `where` names the server within a sentence."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"TLS with {where} fails: {error.reason or error}",
            "check that this is its TLS port; without TLS the URL begins with amqp:// or http://",
        )
    if error.verify_code in _OTHER_HOST:
        return (
            f"the certificate of {where} is not for {host!r}",
            "use the host name in the certificate, or check which program listens there",
        )
    if error.verify_code == _EXPIRED:
        return f"the certificate of {where} has expired", "renew it"
    if error.verify_code == _NOT_YET:
        return f"the certificate of {where} is not valid yet", "check the clock of this machine"
    return (
        f"the certificate of {where} is not from a trusted authority: {error.verify_message}",
        "set PROJ_BROKER_CA to its authority's file, or check which program listens there",
    )
