"""A foreign message that is rubbish is kept and sent back as it came, whatever it holds."""

from datetime import datetime
from typing import Any

import amqp
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from proj import queues
from proj.dead_letters import foreign
from proj.dead_letters.letter import DeadLetter
from proj.dead_letters.reasons import Reason

BODY = b"\xff\x00 not text"

#: What py-amqp reads from the headers of others, some of which it cannot write.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats() | st.binary(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=300), inside, max_size=3),
    max_leaves=5,
)


def letter(body: bytes = BODY, **properties: Any) -> DeadLetter:
    message = amqp.Message(body, **properties)
    return DeadLetter(foreign.dead_letter(message, "it", "task_queue", Reason.UNREADABLE, "no text", {}))


def test_a_dead_letter_says_where_it_came_from_and_why() -> None:
    found = letter(expiration="1", headers={})

    assert (found.id, found.queue, found.reason, found.attempts) == ("it", "task_queue", "unreadable", 0)
    assert (found.task, found.body) == (None, BODY)
    assert found.first == found.last is not None
    assert found.foreign
    assert found.foreign.problem == "no text"


def test_what_would_delete_or_misroute_it_is_not_a_property_of_the_copy() -> None:
    dangers: dict[str, Any] = {
        "expiration": "1",
        "user_id": "somebody",
        "delivery_mode": 1,
        "application_headers": {"CC": ["x"]},
    }
    found = letter(content_type="text/plain", **dangers)

    assert found.properties.keys() == {"message_id", "delivery_mode", "application_headers"}
    assert found.properties["delivery_mode"] == queues.PERSISTENT
    assert found.foreign
    assert found.foreign.properties["expiration"] == "1"
    assert found.foreign.headers == {"CC": ["x"]}
    again = found.again()
    assert again.properties.keys() == {"content_type", "delivery_mode", "application_headers"}
    assert not {"CC", "BCC"} & again.properties["application_headers"].keys()


def test_a_redrive_gives_the_original_back() -> None:
    """Its bytes and its properties; how often it was redriven is counted, and known when it comes back."""
    given: dict[str, Any] = {
        "content_type": "text/plain",
        "message_id": "m",
        "reply_to": "r",
        "timestamp": 5,
        "priority": 200,
    }
    first = letter(**given, application_headers={"own": 1})
    again = first.again()

    assert again.body == BODY
    assert {name: again.properties[name] for name in given} == given
    headers = again.properties["application_headers"]
    assert headers == {"own": 1, queues.REDRIVES_HEADER: 1, foreign.FIRST_DEATH: first.first}

    second = DeadLetter(foreign.dead_letter(again, "it", "task_queue", Reason.INVALID, "x", {}))
    assert (second.redrives, second.first) == (1, first.first)


@given(st.dictionaries(st.text(max_size=300), VALUES, max_size=5))
def test_any_headers_can_be_written(headers: dict[str, Any]) -> None:
    """Those that py-amqp cannot write are left out, and all others kept."""
    found = letter(message_id="m", application_headers=headers)

    dumps("F", (found.properties["application_headers"],))
    dumps("F", (found.again().properties["application_headers"],))
    assert found.foreign
    assert found.foreign.properties == {"message_id": "m"}
    assert found.foreign.headers.items() <= headers.items()


def test_headers_that_fit_no_frame_with_ours_are_dropped() -> None:
    """They were as large as a frame, and the copy has more."""
    large = {"large": "x" * 130_000, "small": "x"}
    found = letter(application_headers=large)

    assert found.foreign
    assert found.foreign.headers == {"small": "x"}
    assert letter(application_headers={str(n): "x" * 50_000 for n in range(3)}).foreign


@given(st.dictionaries(st.sampled_from([name for name, _ in amqp.Message.PROPERTIES]), VALUES))
def test_forged_properties_are_never_sent(original: dict[str, Any]) -> None:
    """Whoever may publish to `proj.dead` may write what they like into the headers."""
    headers = {foreign.ORIGIN: "q", foreign.REASON: "invalid", foreign.ORIGINAL: original}
    again = DeadLetter(amqp.Message(b"", application_headers=headers)).again()

    del again.properties["application_headers"]
    assert isinstance(again._serialize_properties(), bytes)


def test_other_dead_letters_are_not_taken_for_foreign_ones() -> None:
    """Nor one that the broker made of a message with such headers."""
    headers: dict[str, Any] = {foreign.ORIGIN: "q", foreign.REASON: "invalid", foreign.ORIGINAL: {}}
    death = {"queue": "proj.tasks", "reason": "rejected", "time": datetime(2026, 1, 1)}

    assert DeadLetter(amqp.Message(b"", application_headers=headers)).foreign
    assert not DeadLetter(amqp.Message(b"", application_headers=headers | {"x-death": [death]})).foreign
    assert not DeadLetter(amqp.Message(b"", application_headers={foreign.ORIGIN: "q"})).foreign
