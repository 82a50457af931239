"""Publishing never lies: a message is confirmed or refused, or its outcome is told to be unknown, in time."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import amqp
import kombu
import psutil
import pytest
from amqp.exceptions import AccessRefused, ChannelError

from proj import queues
from proj.private_node.node import BrokerNode
from proj.rabbitmq import topology
from proj.rabbitmq.transport import PlainTransport
from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.publisher import ID, REPEAT, Publisher, check, headers, ids, user
from tests.lib.waiting import eventually

# --- The broker does not listen


@contextmanager
def freeze(node: BrokerNode) -> Iterator[None]:
    os.kill(node.pid, signal.SIGSTOP)
    try:
        process = psutil.Process(node.pid)
        eventually("the broker is frozen", lambda: process.status() == psutil.STATUS_STOPPED)
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


FAULTS: dict[str, Callable[[BrokerNode], AbstractContextManager[None]]] = {
    "memory": partial(alarm, kind="memory"),
    "disk": partial(alarm, kind="disk"),
    "frozen": freeze,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("countdown", [None, 3600], ids=["now", "delayed"])
def test_broker_that_does_not_listen(own: Bundle, fault: str, countdown: int | None) -> None:
    """A used connection and a fresh one both end in time; what may have arrived is never called refused."""
    with Publisher(own) as used, Publisher(own) as fresh:
        used.succeeds(task_id="before", countdown=countdown)

        with FAULTS[fault](own.node):
            with ThreadPoolExecutor() as at_once:
                ended = [
                    at_once.submit(publisher.publish, task_id=task_id, countdown=countdown)
                    for publisher, task_id in ((used, "used"), (fresh, "fresh"))
                ]
            over_used, over_fresh = (each.result() for each in ended)

        # A frozen broker does not even greet, nor answers what a delayed message needs: nothing was sent.
        unsent = fault == "frozen"
        check(over_used, "BrokerUnreachable" if unsent and countdown else "OutcomeUnknown")
        check(over_fresh, "BrokerUnreachable" if unsent else "OutcomeUnknown")
        if over_used.kind == "OutcomeUnknown":
            check(over_used, "OutcomeUnknown", "did not confirm message used", "--id used is safe")
        in_alarm = "since its memory or disk alarm is on"
        assert [in_alarm in outcome.text for outcome in (over_used, over_fresh)] == [not unsent] * 2
        used.succeeds(task_id="after", countdown=countdown)

    # The broker may come to read what it was sent while nobody waits any more.
    queue = "proj.tasks" if countdown is None else queues.DELAY_QUEUES[countdown.bit_length() - 1]
    found = ids(own, queue)
    outcomes = {"used": over_used, "fresh": over_fresh}
    unknown = {task_id for task_id, outcome in outcomes.items() if outcome.kind == "OutcomeUnknown"}
    assert {"before", "after"} <= set(found) <= {"before", "after"} | unknown
    assert len(found) == len(set(found))


def test_what_is_done_meanwhile(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is in flight then, and confirmed when the publish returns, or else the error is raised.

    The broker, which may wait for the same core, has it first.
    """
    with kombu.Connection(bundle.url, transport=PlainTransport) as connection:
        channel: Any = connection.channel()
        queue = channel.queue_declare(exclusive=True).queue
        publish = partial(channel.basic_publish_confirm, amqp.Message(b""), mandatory=True)
        assert publish(routing_key=queue, meanwhile=lambda: len(channel._window)) == 1
        assert len(channel._window) == 0
        done: list[str] = []
        with pytest.raises(ChannelError, match="NO_ROUTE"):
            publish(routing_key="nowhere", meanwhile=lambda: done.append("it"))
        assert done == ["it"]
        assert publish(routing_key=queue) is None
        monkeypatch.setattr("os.sched_yield", lambda: done.append(f"yield with {len(channel._window)}"))
        publish(routing_key=queue, meanwhile=lambda: done.append("it"))
        assert done == ["it", "yield with 1", "it"]


def test_command_says_that_the_outcome_is_unknown(own: Bundle) -> None:
    """`proj enqueue` ends with 75, and repeats safely with the same id: marked, it is not executed twice."""
    command = ("enqueue", "add", "1", "2", "--id", "mine")
    with alarm(own.node, "memory"):
        done = own.proj(*command)
    assert (done.returncode, done.stdout) == (75, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert "to repeat it with --id mine is safe" in done.stderr

    assert own.proj(*command).returncode == 0

    assert {(header[ID], header[REPEAT]) for header in headers(own)} == {("mine", True)}


# --- The topology goes away behind a producer that has declared it


@pytest.mark.parametrize(
    ("gone", "kind"),
    [
        ("proj.tasks", "queues"),
        ("proj.direct", "exchanges"),
        ("proj", "exchanges"),
        ("proj.dead", "exchanges"),
    ],
)
@pytest.mark.parametrize("countdown", [None, 1], ids=["now", "delayed"])
def test_deleted_behind_a_producer(bundle: Bundle, gone: str, kind: str, countdown: int | None) -> None:
    """A queue or an exchange that was deleted is declared anew, and the message is in the queue."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "confirmed")
        if countdown:
            check(publisher.publish(countdown=3600), "confirmed")
        bundle.management("DELETE", f"{kind}/{quote(bundle.vhost)}/{gone}")
        assert gone not in {each["name"] for each in bundle.of_vhost(kind)}

        check(publisher.publish(task_id="mine", countdown=countdown), "confirmed")
        if gone != "proj.dead":
            check(publisher.publish(task_id="next"), "confirmed")

    # Not by looking at them again and again: each look is a delivery, of which a message has six.
    expected = 1 + (gone != "proj.tasks") + (gone != "proj.dead")
    eventually("all are in the queue", lambda: bundle.depth("proj.tasks") == expected)
    assert ids(bundle).count("mine") == 1


def test_declaring_delays_leaves_no_channel_open(bundle: Bundle) -> None:
    """Whether they are missing, in place, or refused: RabbitMQ has room for 2047 channels a connection."""

    def declare() -> None:
        with kombu.Connection(bundle.env["CELERY_BROKER_URL"]) as connection:
            before = set(connection.connection.channels)
            try:
                topology.declare_delays(connection, queues.Topology())
            finally:
                assert set(connection.connection.channels) == before

    with user(bundle), pytest.raises(AccessRefused):
        declare()
    bundle.env["CELERY_BROKER_URL"] = bundle.url
    assert bundle.proj("enqueue", "add", "1", "2").returncode == 0
    declare()
    assert bundle.has("celery_delayed_27")
    declare()


def test_producer_of_the_caller(bundle: Bundle) -> None:
    """A producer that is passed, as Celery's beat does, works again after its connection was lost."""
    code = """
from proj import app
from proj.tasks import add
with app.connection_for_write() as connection:
    producer = app.amqp.Producer(connection, auto_declare=False)
    add.apply_async((1, 1), producer=producer)
    connection.connection.sock.shutdown(2)
    add.apply_async((2, 2), producer=producer)
    connection.connection.sock.close()
    add.apply_async((3, 3), connection=connection)
add.apply_async((4, 4), producer=None, connection=None)
print("true")
"""
    assert bundle.python(code) is True
    assert bundle.depth("proj.tasks") == 4


@pytest.mark.parametrize("given", ["connection=connection", "producer=connection.Producer()"])
def test_connection_of_the_caller(bundle: Bundle, given: str) -> None:
    """What goes over a connection that the application did not make is confirmed too, or refused."""
    code = f"""
import json, kombu, os
from proj.errors import BrokerRefused
from proj.tasks import add
with kombu.Connection(os.environ["CELERY_BROKER_URL"]) as connection:
    connection.Producer().publish(0, routing_key="nowhere")  # its owner has used it before
    add.apply_async((1, 1), {given})
    connection.default_channel.queue_delete("proj.tasks")
    add.apply_async((2, 2), {given})
    try:
        add.apply_async((3, 3), {given}, routing_key="nowhere")
    except BrokerRefused as error:
        print(json.dumps(str(error)))
"""
    assert bundle.python(code).startswith("proj.tasks.add: no queue takes the message")
    assert bundle.depth("proj.tasks") == 1


# upstream: not reported; remove when Celery forgets its connections after os.fork too
def test_process_that_is_forked_has_a_connection_of_its_own(bundle: Bundle) -> None:
    """Two processes on one connection would take each other's confirms; the parent's stays as it is."""
    code = """
import json, os
from proj import app
from proj.tasks import add
def port():
    with app.pool.acquire() as connection:
        return connection.connection.sock.getsockname()[1]
add.delay(1, 1)
before, (read, write) = port(), os.pipe()
if not os.fork():
    add.delay(2, 2)
    os.write(write, str(port()).encode())
    os._exit(0)
os.wait()
add.delay(3, 3)
print(json.dumps([before, int(os.read(read, 5)), port()]))
"""
    before, of_child, after = bundle.python(code)

    assert of_child != before
    assert after == before
    assert bundle.depth("proj.tasks") == 3


# --- What is published again with the same id


def test_message_whose_id_is_given_may_be_a_repeat(bundle: Bundle) -> None:
    """An id that the caller gave is marked, one that was made is not; the caller's headers are kept."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "confirmed")
        check(publisher.publish(task_id="mine", headers={"theirs": "kept"}), "confirmed")
    made, given = headers(bundle)
    assert REPEAT not in made
    assert (given[ID], given[REPEAT], given["theirs"]) == ("mine", True, "kept")


@pytest.mark.used_vhost
def test_message_from_a_template_arrives_as_celerys(bundle: Bundle) -> None:
    """All that the broker delivers is the same, but for the id."""
    text = 'it\'s a "back\\slash" é'
    with Publisher(bundle) as publisher:
        outcomes = [publisher.publish(text, by_celery=by_celery) for by_celery in (False, True)]

    found = bundle.peek("proj.tasks")
    for message, outcome in zip(found, outcomes, strict=True):
        check(outcome, "confirmed")
        properties = message["properties"]
        for place, key in (
            (properties, "correlation_id"),
            (properties["headers"], "id"),
            (properties["headers"], "root_id"),
        ):
            assert place.pop(key) == outcome.text
        del message["message_count"], message["redelivered"], properties["headers"][queues.DUE_HEADER]
    assert found[0] == found[1]
    assert json.loads(found[0]["payload"])[0] == [text]


_WAYS = """\
from celery import group

from proj.celery import app
from proj.enqueue import enqueue_many
from proj.tasks import add

add.delay(1, 2)
add.apply_async((1, 2), queue="proj.tasks", priority=1, expires=60)
app.send_task("proj.tasks.add", (1, 2))
group(add.s(1, 2), add.s(3, 4))()
list(enqueue_many([add.s(1, 2), add.s(1, 2).set(expires=60)]))
add.apply_async((1, 2), exchange="proj", routing_key="proj.tasks")
add.apply_async((1, 2), countdown=1)
"""


@pytest.mark.used_vhost
def test_only_what_is_delayed_or_says_so_takes_the_exchange_with_patterns(bundle: Bundle) -> None:
    """Whatever publishes: to be routed by patterns takes the broker as long as all the rest."""
    done = bundle.run_python(_WAYS)
    assert done.returncode == 0, done.stderr
    eventually("the delayed one arrives", lambda: bundle.depth("proj.tasks") == 9)
    exchanges = Counter(message["exchange"] for message in bundle.peek("proj.tasks"))
    assert exchanges == {"proj.direct": 7, "proj": 1, queues.DELAY_EXCHANGE: 1}


@pytest.mark.used_vhost
def test_task_that_is_tried_again_is_a_repeat(bundle: Bundle) -> None:
    """`Task.retry` publishes the same id once more, and marks it."""
    bundle.add_task(
        """
        @app.task(name="test.again", bind=True)
        def again(self):
            if not self.request.retries:
                raise self.retry(countdown=0)
            return bool(self.request.get("x-proj-repeat"))
        """
    )
    bundle.worker()
    code = "from proj import tasks, results; print(str(tasks.again.delay().get(timeout=90)).lower())"
    assert bundle.python(code) is True


def test_process_that_can_start_no_thread(bundle: Bundle) -> None:
    """Nothing would bound its waits: it is refused, until a thread can be started again."""
    code = """
import _thread, json
from proj import errors
from proj.tasks import add
start, said = _thread.start_new_thread, []
def fail(*_):
    raise RuntimeError("can't start new thread")
for _thread.start_new_thread in (fail, start):
    try:
        said.append(add.delay(1, 2).id and "confirmed")
    except errors.BrokerUnreachable as error:
        said.append(str(error))
print(json.dumps(said))
"""
    refused, then = bundle.python(code, forked=False)
    assert "nothing can bound the wait for the broker at 127.0.0.1:" in refused
    assert "can't start new thread (is the memory used up, or the number of processes?)" in refused
    assert then == "confirmed"
    assert bundle.depth("proj.tasks") == 1
