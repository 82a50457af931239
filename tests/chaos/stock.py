"""Celery as it comes, for controls that must lose: its application, and a program that publishes with it."""

import enum
import os
from typing import Any, Final
from uuid import uuid4

import celery
import kombu

from tests.chaos import acts
from tests.chaos.ledger import Kind, Ledger
from tests.chaos.orders import Orders

#: The setting with the kind of application, and the prefix of its queue's name.
KIND: Final = "CHAOS_STOCK"


class Stock(enum.StrEnum):
    """How it differs from Celery's defaults."""

    DEFAULTS = "defaults"
    #: Late acknowledgements, and the publisher's usual way: it awaits no confirm.
    UNCONFIRMED = "unconfirmed"
    #: Late acknowledgements, and a queue that does not outlive the broker.
    TRANSIENT = "transient"

    @property
    def queue(self) -> str:
        return f"stock-{self.value}"


_KIND: Final = Stock(os.environ.get(KIND, Stock.DEFAULTS))

app = celery.Celery("stock", broker=os.environ.get("CHAOS_BROKER", "amqp://nowhere.invalid"))
app.conf.task_default_queue = _KIND.queue
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_enable_remote_control = False
if _KIND is not Stock.DEFAULTS:
    app.conf.task_acks_late = True
    app.conf.worker_prefetch_multiplier = 1
if _KIND is Stock.TRANSIENT:
    app.conf.task_queues = [kombu.Queue(_KIND.queue, routing_key=_KIND.queue, durable=False)]
    app.conf.task_default_delivery_mode = "transient"


@app.task(name="stock.mark", bind=True)
def mark(self: Any, token: str) -> None:
    acts.executed(self.request, token)


@app.task(name="stock.hold", bind=True)
def hold(self: Any, token: str) -> None:
    acts.hold(self.request, token)


def publish(ledger: Ledger, orders: Orders, task: Any) -> None:
    """Publish what is owed; a publish that returns counts as confirmed, as its caller believes."""
    while not orders.ended:
        orders.look(0 if orders.owed else None)
        if orders.owed:
            token = uuid4().hex
            ledger.write(Kind.ATTEMPTED, token)
            try:
                task.delay(token)
            except kombu.exceptions.OperationalError:
                ledger.write(Kind.UNKNOWN, token)
                orders.look(0.1)
            else:
                ledger.write(Kind.CONFIRMED, token)
                orders.owed -= 1


if __name__ == "__main__":
    from tests.chaos import stock  # the module, whose tasks have the names that workers know

    tasks = {Stock.DEFAULTS: stock.hold}
    publish(Ledger(acts.folder(), "stock"), Orders(), tasks.get(_KIND, stock.mark))
