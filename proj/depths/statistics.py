"""Statistics of queues from the management API: unacknowledged messages, rates, ages of messages.

They are up to 5 seconds late, rates up to 10.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from proj.errors import ManagementUnavailable
from proj.rabbitmq.management import Management

#: Lengths and steps in seconds of the histories that RabbitMQ keeps of a queue: its default retention.
_RECORDS: Final = ((600, 5), (3600, 60))

_COLUMNS: Final = "name,messages_unacknowledged,message_stats"


@dataclass(frozen=True)
class Statistics:
    """Statistics of one queue.

    Rates are messages per second, and None when the broker's `rates_mode` is `none`.
    """

    #: None in the first seconds of a queue, until the API has counted.
    unacknowledged: int | None
    #: Excludes messages from a delay or a dead-letter exchange, which RabbitMQ does not count.
    published: float | None
    delivered: float | None
    acknowledged: float | None


def of_queues(management: Management) -> dict[str, Statistics]:
    """The statistics of all queues of the virtual host.

    Raises `ManagementUnavailable`, also when the broker is configured to keep none.
    """
    about = management.get("overview?columns=rates_mode,disable_stats")
    found = management.of_vhost("queues", columns=_COLUMNS)
    if not isinstance(about, dict) or not isinstance(found, list):
        raise ManagementUnavailable(
            f"the server at {management.url} is not a management API", "check PROJ_MANAGEMENT_URL"
        )
    if about.get("disable_stats"):
        raise ManagementUnavailable(
            f"the statistics of the management API at {management.url} are disabled",
            "see disable_stats and disable_metrics_collector in rabbitmq.conf",
        )
    return {queue["name"]: _statistics(queue, about.get("rates_mode") != "none") for queue in found}


def oldest(management: Management, queue: str) -> float:
    """A lower bound in seconds of the age of the queue's oldest message, up to an hour.

    RabbitMQ does not report the age in quorum queues (`head_message_timestamp` is for classic queues only),
    and reading the message counts as a delivery. So it is derived from the queue's history: when fewer
    messages were delivered since a moment than were ready at that moment, one of those is still waiting.
    Expired and purged messages make the result too high. Raises `ManagementUnavailable`.
    """
    waited = 0.0
    for length, step in _RECORDS:
        record = {
            f"{kind}_{what}": value
            for kind in ("lengths", "msg_rates")
            for what, value in (("age", length), ("incr", step))
        }
        found = management.of_vhost("queues", queue, **record)
        ready = _samples(found.get("messages_ready_details"))
        delivered = _samples((found.get("message_stats") or {}).get("deliver_get_details"))
        waited = max(waited, _waited(ready, delivered))
        if waited < length - 2 * step:
            break
    return waited


def alarms(management: Management) -> list[str]:
    """One sentence for each memory or disk alarm. Raises `ManagementUnavailable`."""
    return [
        f"node {node['name']} has a {what} alarm: the broker accepts no messages until it ends"
        for node in management.get("nodes")
        for what, key in (("memory", "mem_alarm"), ("disk", "disk_free_alarm"))
        if node.get(key)
    ]


def _statistics(queue: dict[str, Any], counted: bool) -> Statistics:
    rates = queue.get("message_stats") or {}

    def rate(what: str) -> float | None:
        return float(rates.get(f"{what}_details", {}).get("rate", 0)) if counted else None

    return Statistics(
        unacknowledged=queue.get("messages_unacknowledged"),
        published=rate("publish"),
        delivered=rate("deliver_get"),
        acknowledged=rate("ack"),
    )


def _samples(details: dict[str, Any] | None) -> dict[int, int]:
    """The history as samples by time, in milliseconds since 1970."""
    return {each["timestamp"]: each["sample"] for each in (details or {}).get("samples", ())}


def _waited(ready: dict[int, int], delivered: dict[int, int]) -> float:
    moments = sorted(ready.keys() & delivered.keys() if delivered else ready, reverse=True)
    first = None
    for moment in moments:
        since = delivered[moments[0]] - delivered[moment] if delivered else 0
        if since < 0 or ready[moment] <= since:  # negative after the broker reset its counter
            break
        first = moment
    if first is None:
        return 0.0
    # A sample has the time at which its step ends, which may still lie ahead.
    return max(0.0, min(moments[0] / 1000, time.time()) - first / 1000)
