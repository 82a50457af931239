"""What `proj queues` shows."""

import json
from typing import Any

from tests.lib.bundle import Bundle

COLUMNS = ["queue", "ready", "unacknowledged", "consumers", "oldest", "in", "delivered", "acknowledged"]


def look(bundle: Bundle, *names: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What `proj queues --json` prints, its rows by their queues."""
    done = bundle.proj("queues", "--json", *names, env=env)
    assert done.returncode == 0, done.stderr
    snapshot: dict[str, Any] = json.loads(done.stdout)
    return snapshot | {"queues": {row["queue"]: row for row in snapshot["queues"]}}


def number(bundle: Bundle, queue: str, what: str, env: dict[str, str] | None = None) -> Any:
    return look(bundle, env=env)["queues"][queue][what]
