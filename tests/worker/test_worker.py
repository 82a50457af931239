"""What workers do with work: who gets it, who gets it again, and when a worker gives up."""

import functools
import json
import logging
import signal
from unittest.mock import Mock

import kombu
import psutil
import pytest

from proj.worker.message import Message
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.ports import free_port
from tests.lib.proxy import Proxy
from tests.lib.waiting import PATIENCE, eventually

pytestmark = pytest.mark.used_vhost

#: Tasks that take no time, behind one that does not end.
SHORT = 8


@pytest.mark.parametrize("options", [(), ("--pool=solo", "--concurrency=4")], ids=["prefork", "solo"])
def test_no_worker_idles_while_a_task_is_ready(bundle: Bundle, options: tuple[str, ...]) -> None:
    """Two workers of one slot, one of them at a long task: the other executes all that there is.

    A worker with `-P solo` has one slot, whatever it is told.
    """
    assert _waiting_behind_a_long_task(bundle, *options) == 0


@pytest.mark.celery_docs("Workers: --prefetch-multiplier")
def test_prefetching_worker_lets_the_other_idle(bundle: Bundle) -> None:
    """The control for the test above: with four messages a slot, some wait behind the long task."""
    assert _waiting_behind_a_long_task(bundle, "--prefetch-multiplier=4") > 0


def _waiting_behind_a_long_task(bundle: Bundle, *options: str) -> int:
    """How many short tasks a worker holds that executes a long one, when the other has no more to do."""
    bundle.add_task(GATED_TASK)
    gate = bundle.folder / "gate"
    workers = [bundle.worker(*options, log=f"{n}.log").ready() for n in "ab"]
    bundle.python(f"""
from proj.tasks import add, gated
gated.delay({str(gate)!r})
for n in range({SHORT}): add.delay(n, n)
print(0)
""")
    (busy,) = eventually(
        "one is busy", lambda: [worker for worker in workers if worker.lines(f"Received {str(gate)!r}")]
    )
    (other,) = (worker for worker in workers if worker is not busy)

    def held() -> int:
        return len(busy.lines("received")) - 1

    eventually("the other has no more to do", lambda: held() + len(other.lines("Result of")) == SHORT)
    waiting = held()
    gate.touch()
    eventually("all is done", lambda: len(busy.lines("Result of")) == waiting)
    return waiting


def test_task_of_a_killed_worker_is_executed_by_the_other(bundle: Bundle) -> None:
    """SIGKILL in the middle of a task: the other worker starts the same message, from its beginning.

    The process that executes the task ends with its worker, so nothing is executed twice at once.
    """
    victim = bundle.worker(log="victim.log").ready()
    bundle.enqueue("sleep-dots", "600", "--id", "survivor")
    victim.started("survivor")
    other = bundle.worker(log="other.log").ready()
    pool = victim.children()
    assert pool

    victim.kill()

    other.started("survivor")
    assert not victim.lines("Done after")
    assert psutil.wait_procs(pool, PATIENCE)[1] == []


def test_task_of_a_worker_that_is_silent_is_executed_by_the_other(bundle: Bundle) -> None:
    """As when its machine is gone, and no connection is closed: the broker misses its heartbeats."""
    bundle.switch_off(
        "celeryconfig.py", '"task_acks_late": True,', '"task_acks_late": True, "broker_heartbeat": 2,'
    )
    victim = bundle.worker(log="victim.log").ready()
    bundle.enqueue("sleep-dots", "600", "--id", "survivor")
    victim.started("survivor")
    other = bundle.worker(log="other.log").ready()

    victim.process.send_signal(signal.SIGSTOP)

    other.started("survivor")
    assert psutil.Process(victim.process.pid).status() == psutil.STATUS_STOPPED


def test_broker_misses_a_worker_that_is_silent(bundle: Bundle) -> None:
    """The control for the test above: unless told otherwise, workers promise heartbeats, within minutes."""
    bundle.worker().ready()

    def consuming() -> list[int]:
        return [each["timeout"] for each in bundle.of_vhost("vhosts", "/connections") if each.get("timeout")]

    assert 0 < max(eventually("the broker tells", consuming)) <= 120


def test_task_of_a_killed_pool_process_is_executed_again(bundle: Bundle) -> None:
    """When the system kills only the process of a task, its worker goes on, and executes it again."""
    worker = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "600", "--id", "again")
    worker.started("again")
    (child,) = worker.children()

    child.kill()

    eventually("the task starts again", lambda: len(worker.lines("Received ")) == 2)
    assert {line.id for line in worker.lines("Received ")} == {"again"}


def test_message_that_kills_its_workers_becomes_a_dead_letter(bundle: Bundle) -> None:
    """After the delivery limit such a message stops going round, and is kept."""
    worker = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "600", "--id", "killer")

    def started(times: int) -> bool:
        return len(worker.lines("Received ")) == times

    for attempt in range(1, 7):
        eventually("it is started", functools.partial(started, attempt), seen=worker.text)
        for child in worker.children():
            child.kill()

    eventually("the message is in proj.dead", lambda: bundle.depth("proj.dead"))
    (message,) = bundle.peek("proj.dead")
    assert message["properties"]["headers"]["id"] == "killer"
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "delivery_limit"
    assert bundle.depth("proj.tasks") == 0


def test_worker_waits_for_a_broker_that_is_down(bundle: Bundle) -> None:
    """A worker says that it waits, and works once its broker is there; again when that was gone."""
    port = free_port()
    worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url_at(port)})
    worker.says(f"Cannot connect to amqp://guest:**@127.0.0.1:{port}")
    worker.says("Trying again in")
    with Proxy(bundle.node.info.port, port):
        assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    worker.says("Connection to broker lost")
    with Proxy(bundle.node.info.port, port):
        assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"
    assert "Traceback" not in worker.text()


def test_worker_ends_when_the_broker_says_no(bundle: Bundle) -> None:
    """What waiting does not mend ends the worker, with one line and the exit code of the contract."""
    there = f"127.0.0.1:{bundle.node.info.port}"
    refusals = {
        f"amqp://guest:wrong@{there}/{bundle.vhost}": "refused user 'guest' and its password",
        f"amqp://guest:guest@{there}/nowhere": "has no virtual host 'nowhere'",
    }

    workers = [
        (bundle.worker(env={"CELERY_BROKER_URL": url}, log=f"{n}.log"), said)
        for n, (url, said) in enumerate(refusals.items())
    ]

    for worker, said in workers:
        assert worker.ends() == 69
        assert said in worker.text()
        assert "wrong" not in worker.text()
        assert "Traceback" not in worker.text()


def test_worker_outlives_a_connection_that_only_the_broker_believes_in(bundle: Bundle) -> None:
    """Cut on the worker's side alone, it owns the worker's queue for commands: the worker takes another."""
    bundle.switch_off("worker/consumer.py", "LOCK_INTERVAL: Final = 2", "LOCK_INTERVAL: Final = 0.2")
    with Proxy(bundle.node.info.port) as proxy:
        there = {"CELERY_BROKER_URL": bundle.url_at(proxy.port)}
        worker = bundle.worker(env=there).ready()

        proxy.cut_for_programs()
        worker.says("the broker has not noticed the lost connection yet")

        # One may be delivered to the connection that is lost, which has a slot.
        bundle.enqueue("add", "3", "4", "--count", "2")
        worker.says("succeeded")
        assert "pong" in bundle.celery("inspect", f"--timeout={PATIENCE}", f"-d{worker.name}", "ping").stdout
        proxy.cut_for_broker()
        assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"
        assert "Traceback" not in worker.text()


def test_connection_that_is_lost_at_once_is_dropped(bundle: Bundle) -> None:
    """Before the first turn of Celery's event loop: the worker connects anew, and logs no traceback."""
    bundle.add_task("""
        from celery.signals import worker_ready

        @worker_ready.connect
        def cut(sender, **_):  # Celery sends it once
            sender.connection.connection.sock.shutdown(2)
    """)
    worker = bundle.worker().ready()

    worker.says("Connection to broker lost")

    assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"
    assert "Traceback" not in worker.text()


def test_task_that_ends_after_its_connection_was_lost(bundle: Bundle) -> None:
    """Its message cannot be acknowledged any more: one line says that it is given back, and no traceback."""
    bundle.add_task(GATED_TASK)
    gate = bundle.folder / "gate"
    with Proxy(bundle.node.info.port) as proxy:
        there = {"CELERY_BROKER_URL": bundle.url_at(proxy.port)}
        worker = bundle.worker("-P", "threads", "-c", "1", env=there).ready()
        bundle.enqueue("task", "proj.tasks.gated", json.dumps(str(gate)))
        worker.says("Received")

        proxy.cut()
        worker.says("Connection to broker lost")
        gate.touch()

        worker.says("is a duplicate")
        assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"
    assert len(worker.lines("given back: connection lost")) == 1
    assert "Traceback" not in worker.text()


def test_handler_that_raises_when_the_connection_was_lost(bundle: Bundle) -> None:
    """Celery calls `on_retry` without a traceback; the task is executed again, whatever that handler does."""
    bundle.add_task("""
        class Told(app.Task):
            def on_retry(self, exc, task_id, args, kwargs, einfo):
                return einfo.traceback

        @app.task(name="proj.tasks.told", base=Told)
        def told():
            from pathlib import Path
            if not Path("begun").exists():
                Path("begun").touch()
                log.info("Received")
                time.sleep(600)
    """)
    with Proxy(bundle.node.info.port) as proxy:
        worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port)}).ready()
        bundle.enqueue("task", "proj.tasks.told", "--id", "it")
        worker.says("Received")

        proxy.cut()

        worker.says("on_retry of proj.tasks.told[it] raised AttributeError")
        worker.says("[it] succeeded")


def test_message_that_cannot_be_acknowledged(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """One event says that it is given back, however often it is settled; Celery gets `BrokenPipeError`."""
    bundle.enqueue("add", "3", "4", "--id", "it")
    with kombu.Connection(bundle.url) as connection:
        channel = connection.channel()
        channel.Message = Message
        message = channel.message_to_python(channel.basic_get("proj.tasks"))
        connection.close()

        for settle in (message.ack_log_error, message.reject_log_error):
            settle(logging.getLogger(), connection.connection_errors)

    (record,) = caplog.records
    assert record.getMessage() == "Task proj.tasks.add[it] given back: connection lost"
    assert not record.exc_info
    message.is_given_back = False
    message.ack = Mock(side_effect=BrokenPipeError)
    with pytest.raises(BrokenPipeError):
        message.ack_log_error(logging.getLogger(), connection.connection_errors)
    assert len(caplog.records) == 2


def test_worker_leaves_no_connection_behind_when_it_connects_anew(bundle: Bundle) -> None:
    """As when an answer is late: the end of the old one would later be taken for the loss of the new one."""
    bundle.switch_off(
        "worker/consumer.py",
        "topology.ensure(conn, self.app.settings.topology)\n",
        # Something keeps it, so that Python does not close it by itself.
        "topology.ensure(conn, self.app.settings.topology)\n"
        "                if not self.restart_count: self.kept = conn; raise TimeoutError('late')\n",
    )
    with Proxy(bundle.node.info.port) as proxy:
        worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port)})
        worker.says("late. Trying to reconnect...")
        worker.ready()

        eventually("the old one is closed", lambda: proxy.first_has_ended)


@pytest.mark.celery_docs("Workers: two workers of one name")
def test_second_worker_of_the_same_name_ends(bundle: Bundle) -> None:
    """With one line that says so; the first goes on."""
    bundle.worker("-n", "twin@here").ready()

    twin = bundle.worker("-n", "twin@here", log="twin.log")

    assert twin.ends() == 69
    assert "another worker with the name twin@here is connected" in twin.text()
    assert "Traceback" not in twin.text()
    assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"


def test_worker_of_a_queue_that_does_not_exist_ends(bundle: Bundle) -> None:
    """A slip in the name given to -Q is told, with the names that there are."""
    worker = bundle.worker("-Q", "proj.task")

    assert worker.ends() == 2
    assert worker.text() == "Error: there is no queue 'proj.task' (did you mean proj.tasks?)\n"


def test_worker_ends_when_a_queue_has_other_arguments(bundle: Bundle) -> None:
    """A work queue that was declared otherwise ends the worker with one line that names the queue."""
    with bundle.channel() as channel:
        channel.queue_delete("proj.tasks")
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False)

    worker = bundle.worker()

    assert worker.ends() == 69
    assert "queue 'proj.tasks'" in worker.text()
    assert "Traceback" not in worker.text()


def test_worker_puts_a_topology_in_place_that_is_gone(bundle: Bundle) -> None:
    """A worker that connects anew finds, or makes, every queue, the dead-letter side included."""
    worker = bundle.worker().ready()
    with bundle.channel() as channel:
        # The worker's queue last: with RabbitMQ 4.3, it connects anew as soon as that is deleted.
        for queue in ("proj.dead", "proj.tasks"):
            channel.queue_delete(queue)

    bundle.node.ctl("close_all_connections", "--vhost", bundle.vhost, "test")

    worker.says("Connection to broker lost")
    eventually("the queues are there", lambda: bundle.has("proj.tasks") and bundle.has("proj.dead"))


@pytest.mark.used_vhost
def test_processes_are_forked(bundle: Bundle) -> None:
    """Also where billiard would start new programs, as on macOS."""
    bundle.add_task("""
        import billiard
        billiard.set_start_method("spawn", force=True)
    """)
    bundle.worker()

    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
