"""Hosts and URLs in settings: what is wrong with them, in words that hold no password."""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

#: What a user's name or a password can hold and a URL cannot, not as it is.
_ENCODING: Final = "with [ ] @ : / ; ? # % in a name or a password percent-encoded, such as %40 for @"

#: A percent sign that encodes nothing.
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def check_amqp_host(host: str) -> str:
    """The host of a broker that is set in parts. Raises `ValueError`."""
    if re.search(r"[\s/@?#\[\]]", host) or (":" in host and not _is_ipv6(host)):
        raise ValueError("expected a host name or an address alone; the port is set with AMQP_PORT")
    return check_host(host)


def check_host(host: str) -> str:
    """A host that can be looked up. Raises `ValueError`."""
    try:
        host.encode("idna")  # as Python does when it looks the name up
    except UnicodeError:
        raise ValueError("expected a host name of parts between dots, each of 1 to 63 characters") from None
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _split(url: str, schemes: set[str]) -> SplitResult:
    """The parts of the URL. Raises `ValueError`, whose words may be a password, for what is none."""
    split = urlsplit(url)
    # What a password ends early by leaves its @ behind: of u:1/2@host, the host would be u and its port 1.
    early = "@" not in split.netloc and "@" in url
    if split.scheme not in schemes or not split.netloc or early or _LONE_PERCENT.search(url):
        raise ValueError
    split.port  # noqa: B018  reading it is what checks it
    return split


def check_broker_url(url: str) -> str:
    """One URL, or several separated by `;`. Raises `ValueError`."""
    parts = url.split(";")
    for part in parts:
        try:
            split = _split(part, {"amqp", "amqps", "pyamqp"})
        except ValueError:
            raise ValueError(
                "expected URLs such as amqp://user:password@host:5672/vhost, separated by ';', " + _ENCODING
            ) from None
        check_host(unquote(split.hostname or ""))
        if any(name.startswith("ssl") for name, _ in parse_qsl(split.query, keep_blank_values=True)):
            raise ValueError("TLS is switched on by amqps:// and set with PROJ_BROKER_CA, not in the URL")
    if len({urlsplit(part).scheme == "amqps" for part in parts}) > 1:
        raise ValueError("expected amqps:// for all nodes or for none: to fail over must not switch TLS off")
    return url


def check_management_url(url: str) -> str:
    """The URL of a management API. Raises `ValueError`."""
    try:
        split = _split(url, {"http", "https"})
        if not split.hostname:
            raise ValueError
    except ValueError:
        raise ValueError(f"expected a URL such as http://user:password@host:15672, {_ENCODING}") from None
    check_host(split.hostname)
    return url


def check_backend(url: str) -> str:
    """The URL of a result backend, any that Celery knows. Raises `ValueError`."""
    if "://" not in url:
        raise ValueError("expected a URL such as db+postgresql://user:password@host/database")
    return url


def without_password(url: str) -> str:
    """The URL for people. kombu's own way raises for a password that holds a slash, and cites it."""
    return re.sub(r"(://[^:/@]*):.*@", r"\1:**@", url)
