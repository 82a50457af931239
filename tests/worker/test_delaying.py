"""What must not be executed yet waits in the broker, in no slot of a worker."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import amqp
import pytest
from kombu import Consumer, Exchange, Queue

from proj import queues
from proj.rabbitmq import topology
from proj.worker.delaying import _queue_of
from tests.lib.alarm import alarm
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

#: Seconds that no test waits for.
LATER: Final = 3600

BODY: Final = b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


@pytest.fixture(scope="module")
def bundle(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("delaying")) as bundle:
        bundle.add_task("""
            @app.task(name="proj.tasks.slow", rate_limit="30/m")
            def slow(x: int, y: int) -> int:
                return x + y

            @app.task(name="proj.tasks.quick", rate_limit="2/s")
            def quick(x: int, y: int) -> int:
                return x + y

            @app.task(name="proj.tasks.calm", rate_limit="0.5/h")
            def calm(x: int, y: int) -> int:
                return x + y

            @app.task(name="proj.tasks.killer")
            def killer(x: int, y: int) -> None:
                import os
                os.kill(os.getpid(), 9)
        """)
        yield bundle


@pytest.fixture(scope="module")
def worker(bundle: Bundle) -> Worker:
    """One slot: whatever holds it is seen by the next message."""
    bundle.declare()
    return bundle.worker().ready()


def _publish(
    bundle: Bundle, *ids: str, task: str = "proj.tasks.add", deliveries: int | None = None, **headers: Any
) -> None:
    """Publish as Celery's clients do that know of no delay queues."""
    if deliveries is not None:
        headers[queues.DELIVERIES_HEADER] = deliveries
    with bundle.channel() as channel:
        for task_id in ids:
            channel.basic_publish_confirm(
                amqp.Message(
                    BODY,
                    content_type="application/json",
                    content_encoding="utf-8",
                    application_headers={"id": task_id, "task": task, "lang": "py", "retries": 0} | headers,
                    delivery_mode=queues.PERSISTENT,
                    priority=3,
                ),
                exchange="proj",
                routing_key="proj.tasks",
            )


def _in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _delayed(bundle: Bundle) -> list[str]:
    """The queues that delayed messages wait in, one for each message."""
    with bundle.channel() as channel:
        depths = {name: topology.look(channel, name).message_count for name in queues.DELAY_QUEUES}
    return [name for name, depth in depths.items() for _ in range(depth)]


def _is_free(bundle: Bundle, worker: Worker, task_id: str) -> None:
    """The only slot executes a message that comes later."""
    bundle.enqueue("add", "1", "2", "--id", task_id)
    worker.says(f"[{task_id}] succeeded")


def _logged(worker: Worker, line: re.Pattern[str]) -> bool:
    return bool(line.search(worker.text()))


def test_message_with_an_eta_waits_in_the_broker(bundle: Bundle, worker: Worker) -> None:
    """The slots of those that wait are free, and the copy is the message, with what it must keep."""
    _publish(bundle, "eta-1", "eta-2", "eta-3", eta=_in(LATER), own="kept", deliveries=2)

    _is_free(bundle, worker, "after-eta")

    eventually("all are delayed", lambda: len(_delayed(bundle)) == 3)
    copies = bundle.peek(_delayed(bundle)[0])
    assert {copy["properties"]["headers"]["id"] for copy in copies} <= {"eta-1", "eta-2", "eta-3"}
    headers, properties = copies[0]["properties"]["headers"], copies[0]["properties"]
    assert copies[0]["payload"] == BODY.decode()
    assert (headers["own"], headers[queues.DELIVERIES_HEADER], properties["priority"]) == ("kept", 2, 3)
    assert (properties["content_type"], properties["delivery_mode"]) == ("application/json", 2)
    assert headers[queues.DUE_HEADER] > time.time()
    assert bundle.depth("proj.tasks") == 0


@pytest.mark.long
def test_message_with_an_eta_is_executed_when_it_is_due(bundle: Bundle, worker: Worker) -> None:
    due = time.time() + 10
    _publish(bundle, "due", eta=_in(10))

    worker.says("[due] succeeded")

    (line,) = [line for line in worker.lines("succeeded") if line.id == "due"]
    assert line.at > due - 0.1
    assert len([line for line in worker.lines("delayed for") if line.id == "due"]) == 1


def test_message_with_an_eta_that_is_over_is_executed_at_once(bundle: Bundle, worker: Worker) -> None:
    _publish(bundle, "over", eta=_in(-LATER))

    worker.says("[over] succeeded")

    assert not [line for line in worker.lines("delayed for") if line.id == "over"]


@pytest.mark.celery_docs("Tasks: rate_limit")
def test_rate_limit_gives_each_message_one_turn(bundle: Bundle, worker: Worker) -> None:
    """Thirty a minute: each has a turn of its own, two seconds after the one before."""
    ids = [f"turn-{n}" for n in range(4)]
    _publish(bundle, *ids, task="proj.tasks.slow")

    _is_free(bundle, worker, "after-turns")
    for task_id in ids:
        worker.says(f"[{task_id}] succeeded")

    (begin,) = [line.at for line in worker.lines("received") if line.id == ids[0]]
    at = [line.at for line in worker.lines("succeeded") if line.id in ids]
    assert at[-1] - begin > 5
    # One that a busy worker receives after its turn is not delayed.
    delayed = {line.id for line in worker.lines("delayed for")} & {*ids}
    assert ids[-1] in delayed
    assert delayed <= {*ids[1:]}


def test_backlog_under_a_rate_limit_holds_no_slot(bundle: Bundle, worker: Worker) -> None:
    """Each of a backlog is published once more, to its own turn."""
    ids = [f"calm-{n}" for n in range(20)]
    before = len(_delayed(bundle))
    _publish(bundle, *ids, task="proj.tasks.calm")

    _is_free(bundle, worker, "after-calm")

    worker.says("[calm-0] succeeded")
    eventually("all others are delayed", lambda: len(_delayed(bundle)) == before + 19)
    seconds = sorted(
        int(line.text.split()[2]) for line in worker.lines("delayed for") if line.id.startswith("calm")
    )
    assert [round(each / 7200) for each in seconds] == list(range(1, 20))


def test_rate_limit_above_one_a_second_waits_in_the_slot(bundle: Bundle, worker: Worker) -> None:
    """A delay queue counts whole seconds."""
    ids = [f"quick-{n}" for n in range(4)]
    _publish(bundle, *ids, task="proj.tasks.quick")

    for task_id in ids:
        worker.says(f"[{task_id}] succeeded")

    at = [line.at for line in worker.lines("succeeded") if line.id in ids]
    assert at[-1] - at[0] > 1
    assert not [line for line in worker.lines("delayed for") if line.id in ids]


@pytest.mark.celery_docs("Workers: control rate_limit")
def test_rate_limit_of_a_running_worker(bundle: Bundle, worker: Worker) -> None:
    """`celery control rate_limit` is obeyed as well, and so is its end."""

    def limit(rate: str) -> None:
        bundle.control(worker, "rate_limit", "proj.tasks.add", rate)

    limit("1/h")
    _publish(bundle, "limited-1", "limited-2", "limited-3")
    worker.says("[limited-1] succeeded")
    for task_id, seconds in {"limited-2": r"(3600|35\d\d)", "limited-3": r"(7200|71\d\d)"}.items():
        line = re.compile(rf"\[{task_id}\] delayed for {seconds} s: rate limit")
        eventually(line.pattern, partial(_logged, worker, line), seen=worker.text)

    limit("0")
    _is_free(bundle, worker, "after-limit")


def test_queue_of_a_delivery_is_known(bundle: Bundle) -> None:
    """Whatever its routing key is, and when the queue's consumer is cancelled before the delivery is read."""
    names = ["other", "cancelled"]
    found: list[str] = []
    with bundle.channel() as channel, bundle.channel() as looking:
        consumed = [Queue(name, Exchange("mine", "fanout"), durable=True)(channel) for name in names]
        for queue in consumed:
            queue.declare()
        channel.basic_publish_confirm(amqp.Message("it"), "mine", "any key")
        with Consumer(channel, consumed, on_message=lambda message: found.append(_queue_of(message))) as its:
            # Nothing that comes after the broker's answer to the last `basic_consume` is read yet.
            eventually(
                "all are delivered",
                lambda: not any(topology.look(looking, name).message_count for name in names),
            )
            assert "cancelled" not in found

            its.cancel_by_queue("cancelled")

            assert "cancelled" in found
            while len(found) < 2:
                channel.connection.drain_events(timeout=PATIENCE)
    assert sorted(found) == sorted(names)


def test_copy_keeps_the_count_of_its_deliveries(bundle: Bundle, worker: Worker) -> None:
    """A killer of its processes must not begin anew with each copy."""
    _publish(bundle, "killer", task="proj.tasks.killer", deliveries=queues.DELIVERY_LIMIT)

    worker.says("[killer] became a dead letter: delivery limit: given back 6 times")

    assert len([line for line in worker.lines("given back: worker lost") if line.id == "killer"]) == 1

    def result() -> str:
        return bundle.proj("result", "killer", "--json").stdout

    error = '"error": "NotExecuted: delivery limit: given back 6 times"'
    eventually("its end is stored", lambda: error in result(), seen=result)


def test_message_waits_in_its_slot_while_the_broker_confirms_nothing(own: Bundle) -> None:
    """In an alarm no copy is confirmed: the worker goes on, and delays the message when the alarm is over."""
    own.declare()
    own.add_task(GATED_TASK)
    own.switch_off("worker/delaying.py", "FIRST_BACKOFF: Final = 1.0", "FIRST_BACKOFF: Final = 0.2")
    worker = own.worker(env={"PROJ_PUBLISH_TIMEOUT": "1"}).ready()
    gate = own.folder / "gate"
    own.enqueue("task", "proj.tasks.gated", json.dumps(str(gate)))
    worker.says("Received")
    _publish(own, "patient", eta=_in(LATER))
    with alarm(own.node, "memory"):
        gate.touch()
        worker.says("A message could not be delayed, retrying in 0.2 s")
        worker.says("retrying in 0.4 s")
        assert worker.process.poll() is None

    eventually("it is delayed", lambda: _delayed(own), seen=worker.text)
    _is_free(own, worker, "after-alarm")
    assert "given back" not in worker.text()
    assert own.depth("proj.dead") == 0
