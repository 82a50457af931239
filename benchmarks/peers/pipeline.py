"""Bare py-amqp with pipelined confirms: how fast it can be when nothing is matched."""

from collections.abc import Iterable
from typing import Final

import amqp

#: Messages in flight.
WINDOW: Final = 1000


def publish(channel: amqp.Channel, queue: str, messages: Iterable[amqp.Message], exchange: str = "") -> int:
    """Publish messages on a new channel, and return their number when all are confirmed.

    An exchange passes messages with the name of the queue on to it, as AMQP's nameless one does.
    """
    confirmed = 0

    def on_ack(tag: int, multiple: bool) -> None:
        nonlocal confirmed
        confirmed = max(confirmed, tag)  # of one queue, acks come in order

    channel.confirm_select()
    channel.events["basic_ack"].add(on_ack)
    sent = 0
    for message in messages:
        channel.basic_publish(message, exchange, queue, mandatory=True)
        sent += 1
        while sent - confirmed > WINDOW:
            channel.connection.drain_events()
    while sent > confirmed:
        channel.connection.drain_events()
    return sent
