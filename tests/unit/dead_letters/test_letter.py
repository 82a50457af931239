"""What a redriven message is made of."""

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
    assert not counted.keys() & headers.keys()
