"""Priorities: the larger number is served first, as far as the broker knows priorities.

Quorum queues ignore them before RabbitMQ 4.0. From 4.0 they have two classes, above 4 and the others. From
4.3 on each number is a level (https://www.rabbitmq.com/docs/quorum-queues#priorities).
"""

import logging
from functools import cache
from typing import Any, Final

from proj.rabbitmq import version

log = logging.getLogger(__name__)

#: The priorities that a message can have; without one, RabbitMQ takes it for 0 or, from 4.0, for normal.
PRIORITIES: Final = range(10)

#: The first series whose quorum queues look at priorities.
KNOWN_SINCE: Final = (4, 0)


def warn_if_ignored(broker: Any) -> None:
    """Log once in a process that the broker of this connection ignores priorities."""
    if version.of(broker) < KNOWN_SINCE:
        _warn(version.text(broker))


@cache
def _warn(series: str) -> None:
    log.warning("RabbitMQ %s ignores the priority of messages in quorum queues; 4.0 and later do not", series)
