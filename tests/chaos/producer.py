"""A program that publishes, and writes each attempt and each outcome into its ledger before the next step.

It reads from its stdin how many messages more it owes, a number a line, and ends at its end. `bulk` publishes
with `enqueue_many`; `single` calls `.delay()` all the time, at a pace, whatever it owes.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

from celery.canvas import Signature

from proj.enqueue import Status, enqueue_many
from proj.errors import BrokerRefused, BrokerUnreachable, OutcomeUnknown
from tests.chaos.ledger import FOLDER, Kind, Ledger
from tests.chaos.orders import CHUNK, Orders
from tests.chaos.tasks import mark, silent

#: Messages of one `enqueue_many` after one that the broker has not confirmed.
_ATTEMPT: Final = 10

#: Seconds between two single publishes, so that they leave the processor to others; and after one that the
#: broker did not confirm.
_PACE: Final = 0.01
_PAUSE: Final = 0.25

_OUTCOMES: Final = {
    Status.CONFIRMED: Kind.CONFIRMED,
    Status.REFUSED: Kind.REFUSED,
    Status.UNKNOWN: Kind.UNKNOWN,
}


def bulk(ledger: Ledger, orders: Orders) -> None:
    """Publish what is owed, until all of it is confirmed."""

    def requests(count: int) -> Iterator[Signature]:
        for number in range(count):
            token = uuid4().hex
            ledger.write(Kind.ATTEMPTED, token)
            # Half of them store no result, as tasks whose caller does not wait for one.
            yield (silent if number % 2 else mark).s(token)

    most = CHUNK
    while not orders.ended:
        orders.look(None)
        while orders.owed and not orders.ended:
            confirmed = 0
            chunk = min(orders.owed, most)
            for outcome in enqueue_many(requests(chunk)):
                ledger.write(_OUTCOMES[outcome.status], outcome.request.args[0])
                confirmed += outcome.status is Status.CONFIRMED
            orders.owed -= confirmed
            fine = confirmed == chunk
            most = CHUNK if fine else _ATTEMPT
            orders.look(0 if fine else _PAUSE)


def single(ledger: Ledger, orders: Orders) -> None:
    """Publish one message after the other."""
    pause = _PACE
    while not orders.ended:
        orders.look(pause)
        token = uuid4().hex
        ledger.write(Kind.ATTEMPTED, token)
        try:
            mark.delay(token)
            outcome = Kind.CONFIRMED
        except (BrokerUnreachable, BrokerRefused):
            outcome = Kind.REFUSED
        except OutcomeUnknown:
            outcome = Kind.UNKNOWN
        ledger.write(outcome, token)
        pause = _PACE if outcome is Kind.CONFIRMED else _PAUSE


def main() -> None:
    ways = {"bulk": bulk, "single": single}
    ways[sys.argv[1]](Ledger(Path(os.environ[FOLDER]), sys.argv[1]), Orders())


if __name__ == "__main__":
    main()
