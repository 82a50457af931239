"""When a worker sends events about tasks: while somebody receives them."""

from contextlib import ExitStack, suppress
from types import SimpleNamespace

import kombu
import pytest

from proj import app
from proj.rabbitmq import connection
from proj.worker.watchers import Producer, WatchersStep
from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.proxy import Proxy
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.watcher import watching

pytestmark = pytest.mark.used_vhost


@pytest.mark.celery_docs("Monitoring: Receiver, events in real time")
def test_events_follow_their_watchers(bundle: Bundle) -> None:
    """They begin with the first watcher, and end with the last one, and begin again."""
    worker = bundle.worker().ready()
    with ExitStack() as second:
        with watching(bundle) as watcher:
            worker.watched()
            bundle.enqueue("add", "1", "2", "--id", "one")
            watcher.sees_the_end_of("one")
            assert watcher.events("one") == ["task-received", "task-started", "task-succeeded"]
            other = second.enter_context(watching(bundle))
        # The first one is gone.
        bundle.enqueue("add", "1", "2", "--id", "two")
        other.sees_the_end_of("two")
        assert "Events about tasks are off" not in worker.text()
    worker.says("Events about tasks are off")

    with watching(bundle) as watcher:
        eventually("they are on again", lambda: worker.text().count("Events about tasks are on") == 2)
        bundle.enqueue("add", "1", "2", "--id", "three")
        watcher.sees_the_end_of("three")


@pytest.mark.celery_docs("Workers: control enable_events, disable_events")
def test_events_that_nobody_receives_end(bundle: Bundle) -> None:
    """Also when they were enabled by remote control."""
    worker = bundle.worker().ready()
    bundle.control(worker, "enable_events")
    worker.says("enabled by remote")
    worker.says("Events about tasks are off")


def test_worker_without_events_works(bundle: Bundle) -> None:
    """It has no connection for them, and asks for no watchers."""
    worker = bundle.worker("--without-gossip", "--without-heartbeat")

    assert bundle.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60").stdout == "3\n"

    assert worker.terminate() == 0


def test_a_worker_that_reconnects_is_seen(bundle: Bundle) -> None:
    """With its events about tasks, since the watcher is still there."""
    with Proxy(bundle.node.info.port) as proxy, ExitStack() as stack:
        watcher = stack.enter_context(watching(bundle))
        worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port)})
        worker.watched()
        proxy.cut_for_programs()
        proxy.cut_for_broker()
        eventually("it reconnects", lambda: worker.text().count("Connected to") == 2)
        bundle.enqueue("add", "1", "2", "--id", "after")
        watcher.sees_the_end_of("after")
        stack.close()
        worker.says("Events about tasks are off")


def test_watcher_that_has_enabled_them_itself_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """As Flower does, perhaps before the worker has looked: who waits for the line would wait in vain."""
    consumer = SimpleNamespace(
        hub=object(),
        app=SimpleNamespace(conf=SimpleNamespace(event_exchange="celeryev")),
        event_dispatcher=SimpleNamespace(groups={"worker", "task"}),
        hostname="w@here",
    )
    step = WatchersStep(consumer)
    step._consumer = consumer  # as a probe sets it

    with caplog.at_level("INFO"):
        step._on_answer()
        step._on_answer()

    assert caplog.messages == ["Events about tasks are on: somebody receives them"]


@pytest.mark.celery_docs("Workers: -E")
def test_events_that_are_not_switched() -> None:
    """With -E they stay on: neither the connection nor the loop is asked for anything."""
    consumer = SimpleNamespace(app=SimpleNamespace(conf=SimpleNamespace(event_exchange="celeryev")))
    step = WatchersStep(consumer, task_events=True)

    with kombu.Connection("memory://") as conn:
        step.open(conn)
    step.register_with_event_loop(consumer, None)


def test_events_of_an_alarm_are_dropped(own: Bundle) -> None:
    """The broker does not read them: else the buffers would be full, and the connection be given up."""
    with own.channel() as channel, kombu.Connection(own.url) as conn:
        queue = channel.queue_declare("", exclusive=True).queue
        conn.connect()
        connection.listen_for_alarms(conn)
        producer = Producer(conn, auto_declare=False)
        producer.publish("before", routing_key=queue)
        with alarm(own.node, "memory"):
            producer.publish("first", routing_key=queue)
            with suppress(TimeoutError):
                conn.drain_events(timeout=PATIENCE)
            assert connection.is_blocked(conn)
            for _ in range(20_000):
                producer.publish("x" * 1000, routing_key=queue)
        with suppress(TimeoutError):
            conn.drain_events(timeout=PATIENCE)
        producer.publish("after", routing_key=queue)

        eventually("they come", lambda: channel.queue_declare(queue, passive=True).message_count == 3)


def test_full_buffer_of_events_is_left_to_the_event_loop() -> None:
    """The threads of a pool fill it, and none of them uses the connection."""
    asked: list[int] = []
    published: list[int] = []
    with kombu.Connection("memory://") as connection:
        dispatcher = app.events.Dispatcher(
            connection, buffer_group=["task"], on_send_buffered=lambda: asked.append(1)
        )
        dispatcher.publisher = SimpleNamespace(publish=lambda events, **_: published.append(len(events)))
        consumer = SimpleNamespace(app=app, event_dispatcher=dispatcher)
        WatchersStep(consumer, task_events=True).start(consumer)
        dispatcher.publisher = SimpleNamespace(publish=lambda events, **_: published.append(len(events)))

        for _ in range(100):
            dispatcher.send("task-started", uuid="it")
        assert (len(asked), published) == (100, [])

        dispatcher.flush()
        assert published == [100]
