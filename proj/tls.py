"""TLS: whose certificates are accepted, and what is said of one that is not."""

import ssl
from pathlib import Path
from typing import Final

#: OpenSSL's codes (`X509_V_ERR_…`): not valid yet, expired, for another name, for another IP address.
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_OTHER_HOST: Final = (62, 64)


def context(ca: Path | None) -> ssl.SSLContext:
    """All checks of a certificate; `ca` is a file of authorities in PEM, None for those of the system."""
    return ssl.create_default_context(cafile=ca)


def explain(error: ssl.SSLError, host: str, where: str) -> tuple[str, str]:
    """What is wrong with the TLS of `where`, a part of a sentence that names it, and what to do."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"TLS with {where} fails: {error.reason or error}",
            "is that its port for TLS? Without TLS, the URL begins with amqp:// or http://",
        )
    if error.verify_code in _OTHER_HOST:
        return (
            f"the certificate of {where} is not for {host!r}",
            "use the name that it is for; or does another program answer there?",
        )
    if error.verify_code == _EXPIRED:
        return f"the certificate of {where} has expired", "renew it"
    if error.verify_code == _NOT_YET:
        return f"the certificate of {where} is not valid yet", "is the clock of this machine right?"
    return (
        f"the certificate of {where} is from no authority that is trusted here: {error.verify_message}",
        "set PROJ_BROKER_CA to the file of its authority; or does another program answer there?",
    )
