"""The version of a broker, as it says it when a connection is opened."""

import re
from typing import Any


def text(connection: Any) -> str:
    """Such as `4.0.5`, of a kombu connection that is open; empty when the broker does not say it."""
    return str(connection.connection.server_properties.get("version", ""))


def of(connection: Any) -> tuple[int, ...]:
    """The series, such as `(4, 0)`, of a kombu connection that is open; `(0, 0)` when it is not known."""
    return parse(text(connection))


def parse(words: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", words)
    return tuple(map(int, found.groups())) if found else (0, 0)
