"""What a redriven message is made of."""

import time

import amqp

from proj import queues
from proj.dead_letters.letter import DeadLetter


def test_redriven_message_begins_anew() -> None:
    """The broker's and the workers' counts of its deliveries are gone; what its publisher wrote is kept."""
    counted = {queues.DELIVERIES_HEADER: 6, queues.TURN_HEADER: 1, "x-delivery-count": 2}
    letter = DeadLetter(
        amqp.Message(b"[[], {}, {}]", application_headers={"own": "kept", "id": "it"} | counted)
    )

    headers = letter.again().properties["application_headers"]

    assert headers["own"] == "kept"
    assert queues.DUE_HEADER not in headers
    assert not counted.keys() & headers.keys()


def test_redriven_message_waits_from_its_redrive_on() -> None:
    """Not from when it was published, which may be days ago."""
    letter = DeadLetter(amqp.Message(b"[[], {}, {}]", application_headers={queues.DUE_HEADER: 1.5}))
    before = time.time()

    assert before <= letter.again().properties["application_headers"][queues.DUE_HEADER] <= time.time()
