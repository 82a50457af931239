"""Rubbish neither stops the queue nor is lost: it is a dead letter, shown and sent back byte for byte."""

import pytest

from proj.ingest.routes import MAX_BODY
from tests.lib import dead, foreign
from tests.lib.bundle import Bundle
from tests.lib.publisher import MAX_SIZE

#: Bodies for the queue `add`, each with its reason and what is said of it.
RUBBISH = {
    "no UTF-8": (b"\xff\xfe{}", "unreadable", "not UTF-8"),
    "no JSON": (b"221 + 345", "unreadable", "not JSON"),
    "no object": (b"[221, 345]", "unreadable", "must be a JSON object"),
    "wrong keys": (b'{"a": 221, "b": 345}', "invalid", "argument x is missing"),
    "wrong types": (b'{"Number1": "221", "Number2": 345}', "invalid", "expected a number"),
    "beyond 64 bits": (b'{"Number1": 18446744073709551616, "Number2": 1}', "unreadable", "beyond 64 bits"),
    "infinite": (b'{"Number1": 1e400, "Number2": 1}', "unreadable", "beyond 64 bits"),
    "empty": (b"", "unreadable", "empty"),
    "too long": (b'{"Number1": "' + b"x" * MAX_BODY + b'"}', "unreadable", f"more than {MAX_BODY:,}"),
    "nested": (b'{"Number1": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "unreadable", "too deep"),
    "byte-order mark": (b'\xef\xbb\xbf{"Number1": 1, "Number2": 2}', "unreadable", "byte-order mark"),
}

GOOD = b'{"Number1": 1, "Number2": 2}'


@pytest.mark.used_vhost
def test_rubbish_is_kept_with_its_reason_and_sent_back(bundle: Bundle) -> None:
    """The good message behind it is served; a redrive brings back each byte, and counts."""
    bodies = [body for body, _, _ in RUBBISH.values()]
    properties = {
        "expiration": "600000",
        "message_id": "m",
        "content_type": "text/plain",
        "headers": {"own": 1},
    }
    ingest = foreign.start(bundle).consumes()
    foreign.publish(bundle, [*bodies, GOOD], "add", **properties)
    foreign.settle(bundle, ingest, queues=("add",))

    assert [argument for _, argument in foreign.tasks(bundle)] == [{"x": 1, "y": 2}]
    rows = dead.rows(bundle)
    for row, (_, reason, words) in zip(rows, RUBBISH.values(), strict=True):
        assert row["reason"].startswith(f"{reason}: ")
        assert words in row["exception"]
        assert row["task"] == "a foreign message"
    shown = dead.show(bundle, rows[1]["id"])
    assert (shown["queue"], shown["body"], shown["headers"]) == ("add", "221 + 345", {"own": 1})
    assert shown["properties"]["expiration"] == "600000"
    assert len(dead.rows(bundle, "--reason", "invalid")) == 2

    letters = dead.take(bundle, "proj.dead")  # changes their order
    assert sorted(letter.body or b"" for letter in letters) == sorted(bodies)
    assert {letter.properties.get("expiration") for letter in letters} == {None}

    done = bundle.proj("dead", "redrive", "--all")
    assert (done.returncode, bundle.depth("proj.dead")) == (0, 0), done.stderr
    back = dead.take(bundle, "add")
    assert sorted(message.body or b"" for message in back) == sorted(bodies)
    for message in back:
        assert message.properties["content_type"] == "text/plain"
        assert message.properties["application_headers"]["own"] == 1
        assert "expiration" not in message.properties

    again = foreign.start(bundle, "again.log").consumes()
    foreign.settle(bundle, again, queues=("add",))
    assert {row["redrives"] for row in dead.rows(bundle)} == {1}
    assert sorted(row["id"] for row in dead.rows(bundle)) == sorted(row["id"] for row in rows)


@pytest.mark.used_vhost
def test_without_the_protection_rubbish_ends_ingest(bundle: Bundle) -> None:
    """The control for the test above: its decoding errors would reach the loop."""
    for caught in ("Rubbish", "Exception"):
        bundle.switch_off("ingest/composing.py", f"except {caught} as", "except ZeroDivisionError as")
    ingest = foreign.start(bundle).consumes()
    foreign.publish(bundle, [b"\xff", GOOD], "add")
    assert ingest.ends() == 1
    assert bundle.depth("proj.dead") == 0


def test_a_message_that_is_too_large_as_a_task_becomes_a_dead_letter(own: Bundle) -> None:
    """As JSON it is larger than the broker accepts, which closes the channel; the others are sent again."""
    ingest = foreign.start(own).consumes()
    large = "\x01" * (MAX_SIZE // 3)
    foreign.publish(own, ["before", large, "after", large, "end"])
    ingest.says("became a dead letter", 2)
    ingest.says("published", 3)
    foreign.settle(own, ingest)

    assert {argument for _, argument in foreign.tasks(own)} == {"before", "after", "end"}
    letters = dead.take(own, "proj.dead")
    assert [letter.body for letter in letters] == [large.encode()] * 2
    assert {letter.properties["application_headers"]["x-proj-reason"] for letter in letters} == {"invalid"}
