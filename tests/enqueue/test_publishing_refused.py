"""What the broker says no to, or cannot be sent, is refused, and is certainly not in a queue."""

from urllib.parse import quote

import pytest

from tests.lib.bundle import Bundle
from tests.lib.publisher import ANSWERED, MAX_SIZE, Outcome, Publisher, check, hurry, ids, limit, user
from tests.lib.waiting import eventually


def _fill(bundle: Bundle, publisher: Publisher, *, by_celery: bool = False) -> Outcome:
    """Publish to a queue with room for one until something else than a confirm comes; or 20 times."""
    check(publisher.publish(by_celery=by_celery), "confirmed")
    limit(bundle)
    for number in range(20):
        outcome = publisher.publish(task_id=str(number), by_celery=by_celery)
        if outcome.kind != "confirmed":
            break
        if number == 0:
            # The broker tells publishers that the queue is full when it has one message too many.
            eventually("the queue is full", lambda: bundle.depth("proj.tasks") >= 2)
    return outcome


def test_queue_that_is_full(bundle: Bundle) -> None:
    """What a full queue refuses is refused, and each confirmed message is in it, once."""
    with Publisher(bundle) as publisher:
        outcome = _fill(bundle, publisher)
        check(outcome, "BrokerRefused", "the queue is full")
        found = ids(bundle)
        assert found[1:] == [str(number) for number in range(len(found) - 1)]

        bundle.management("DELETE", f"queues/{quote(bundle.vhost)}/proj.tasks/contents")
        eventually("there is room", lambda: bundle.depth("proj.tasks") == 0)
        check(publisher.publish(task_id="again"), "confirmed")
    assert ids(bundle) == ["again"]


@pytest.mark.used_vhost
def test_some_of_many_that_are_refused(bundle: Bundle) -> None:
    """The command says which messages it has enqueued before, where it has not printed their ids."""
    hurry(bundle, ANSWERED)
    limit(bundle)

    done = bundle.proj("enqueue", "add", "1", "2", "--count", "3000", "--wait")

    assert (done.returncode, done.stdout) == (69, "")
    enqueued, error = done.stderr.splitlines()
    found = ids(bundle)
    assert enqueued == f"{len(found)} of 3000 messages are enqueued: {' '.join(found)}"
    assert "the queue is full" in error


def test_control_full_queue_without_confirms(bundle: Bundle) -> None:
    """Without confirms, 21 publishes to the same queue succeed, and most of their messages are nowhere.

    (A message from a template is always confirmed.)
    """
    bundle.switch_off("celeryconfig.py", '"confirm_publish": True', '"confirm_publish": False')
    with Publisher(bundle) as publisher:
        assert _fill(bundle, publisher, by_celery=True).kind == "confirmed"
    assert len(ids(bundle)) < 21


def test_virtual_host_without_room(bundle: Bundle) -> None:
    """What is not allowed for another reason than the user is told in the broker's words."""
    limit = f"vhost-limits/{quote(bundle.vhost)}/max-connections"
    bundle.management("PUT", limit, {"value": 0})
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "BrokerRefused", "may not use virtual host", "limit (0) is reached")


@pytest.mark.used_vhost
def test_user_without_rights(bundle: Bundle) -> None:
    """A user who may not publish is told who he is and what he lacks."""
    assert bundle.proj("enqueue", "add", "1", "2").returncode == 0
    with user(bundle), Publisher(bundle) as publisher:
        outcome = publisher.publish()
        check(outcome, "BrokerRefused", f"user 'user-{bundle.vhost}' lacks a right", "exchange 'proj.direct'")
        assert "s3cret" not in outcome.text
    assert bundle.depth("proj.tasks") == 1


@pytest.mark.used_vhost
@pytest.mark.parametrize("countdown", [None, 1], ids=["now", "delayed"])
def test_user_who_may_only_publish(bundle: Bundle, countdown: int | None) -> None:
    """Where the topology is in place, the right to write to the exchanges is enough."""
    assert bundle.proj("enqueue", "add", "1", "2", "--countdown", "1").returncode == 0
    eventually("the delayed message arrives", lambda: bundle.depth("proj.tasks") == 1)
    rights = "^(proj.direct|celery_delayed_27)$"
    with user(bundle, write=rights), Publisher(bundle) as publisher:
        check(publisher.publish(task_id="first", countdown=countdown), "confirmed")
        check(publisher.publish(task_id="second", countdown=countdown), "confirmed")
    eventually("both arrive", lambda: bundle.depth("proj.tasks") == 3)
    assert set(ids(bundle)) >= {"first", "second"}


def test_user_who_may_only_publish_and_nothing_is_in_place(bundle: Bundle) -> None:
    """Then the publish itself says what is missing."""
    with user(bundle, write=".*"), Publisher(bundle) as publisher:
        check(publisher.publish(), "BrokerRefused", "no exchange 'proj.direct'")
        check(publisher.publish(countdown=1), "BrokerRefused", "no exchange 'celery_delayed_27'")


@pytest.mark.used_vhost
def test_message_that_no_queue_takes(bundle: Bundle) -> None:
    """An unroutable message is refused, on a used connection as on a new one, and so is one to nowhere."""
    with Publisher(bundle) as publisher:
        for _ in range(2):
            unroutable = publisher.publish(exchange="proj", routing_key="nowhere")
            check(unroutable, "BrokerRefused", "no queue takes the message")
            check(publisher.publish(), "confirmed")
            to_nowhere = publisher.publish(exchange="nowhere", routing_key="proj.tasks")
            check(to_nowhere, "BrokerRefused", "no exchange 'nowhere'")
            check(publisher.publish(), "confirmed")
    assert bundle.depth("proj.tasks") == 4


def test_queue_that_nobody_declared(bundle: Bundle) -> None:
    """It is refused by its name and as a `kombu.Queue`, by every caller; nothing declares it."""
    code = """
import json
from kombu import Queue
from proj import app, errors
from proj.tasks import add
def ended(publish):
    try:
        publish()
    except errors.BadInput as error:
        return str(error)
print(json.dumps([ended(each) for each in (
    lambda: add.apply_async((1, 2), queue="mine"),
    lambda: add.apply_async((1, 2), queue=Queue("mine")),
    lambda: app.send_task("elsewhere.task", queue=Queue("mine")),
)]))
"""
    for line in bundle.python(code):
        assert "there is no queue 'mine'" in line
    assert not bundle.has("mine")


def test_control_unroutable_without_mandatory(bundle: Bundle) -> None:
    """Without `mandatory` the same message is confirmed, and is in no queue."""
    bundle.switch_off("enqueue/app.py", '["mandatory"] = True', '["mandatory"] = False')
    with Publisher(bundle) as publisher:
        check(publisher.publish(exchange="proj", routing_key="nowhere"), "confirmed")
    assert bundle.depth("proj.tasks") == 0


def test_option_that_the_broker_refuses(bundle: Bundle) -> None:
    """It is told in the broker's words, and not taken for a queue with other arguments."""
    with Publisher(bundle) as publisher:
        outcome = publisher.publish(expiration=10**12)
        check(outcome, "BrokerRefused", "refused the request", "invalid expiration")
    assert bundle.depth("proj.tasks") == 0


def test_large_message(bundle: Bundle) -> None:
    """20 MB are confirmed and there, or refused for their size: that is the broker's to decide."""
    with Publisher(bundle) as publisher:
        outcome = publisher.publish(size=20_000_000)
        assert publisher.publish().kind == "confirmed"
    if outcome.kind == "confirmed":
        assert bundle.depth("proj.tasks") == 2
    else:
        assert outcome.kind == "BrokerRefused"
        assert "too large" in outcome.text
        assert bundle.depth("proj.tasks") == 1


def test_message_that_is_too_large(own: Bundle) -> None:
    """Larger than the broker takes: refused for its size, and the next one is fine."""
    with Publisher(own) as publisher:
        check(publisher.publish(size=2 * MAX_SIZE), "BrokerRefused", "too large", str(MAX_SIZE))
        publisher.succeeds()
    assert own.depth("proj.tasks") == 1


def test_arguments_and_options_that_cannot_be_sent(bundle: Bundle) -> None:
    """What JSON or AMQP cannot carry is bad input, in one line, and what Celery's JSON can is confirmed."""
    bundle.add_task(
        """
        @app.task(name="test.anything")
        def anything(value):
            pass
        """
    )
    code = """
import datetime, json
from proj import errors
from proj.tasks import anything
def outcome(value, **options):
    try:
        return bool(anything.apply_async((value,), **options).id)
    except errors.BadInput as error:
        return str(error)
wrong = [object(), {1}, [[float("nan")]], "\\ud800", {(1, 2): 3}, 10 ** 5000]
options = [{"headers": {"x": object()}}, {"priority": 999}, {"exchange": "proj", "routing_key": "x" * 300}]
options += [{"serializer": "x"}, {"serializer": "pickle"}, {"compression": "x"}, {"expiration": float("inf")}]
options += [{"countdown": "5"}, {"eta": "now"}, {"task_id": 5}]
right = [b"\\xff", datetime.datetime.now(), "é", {"1": [None, 1.5]}]
print(json.dumps([
    [outcome(value) for value in wrong] + [outcome(1, **each) for each in options],
    [outcome(value) for value in right],
]))
"""
    refused, confirmed = bundle.python(code)
    for line in refused:
        assert isinstance(line, str), refused
        assert "\n" not in line
    assert "JSON cannot carry argument value: Object of type set is not JSON serializable" in refused[1]
    assert confirmed == [True] * 4
    assert bundle.depth("proj.tasks") == 4
