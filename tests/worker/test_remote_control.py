"""What workers do when they are told to: `celery control`, and what becomes of messages then."""

import json
import signal
from collections.abc import Iterator

import amqp
import pytest

from tests.lib import dead, stores
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

pytestmark = pytest.mark.used_vhost

TWICE = """
    @app.task(name="proj.tasks.twice", bind=True, retry_backoff=8, retry_jitter=False)
    def twice(self):
        if not self.request.retries:
            raise ConnectionError("come again")
"""


@pytest.mark.celery_docs("Workers: control shutdown")
def test_shutdown_ends_tasks_and_is_no_error(bundle: Bundle) -> None:
    """`control shutdown` is SIGTERM: the last task ends, the worker is live meanwhile, and it is no error."""
    bundle.add_task(GATED_TASK)
    worker = bundle.worker()
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.gated", f'"{gate}"', "--id", "last")
    eventually("the task starts", lambda: "[last]: Received" in worker.text(), seen=worker.text)

    assert "OK" in bundle.control(worker, "shutdown")
    eventually("the worker shuts down", lambda: "Got shutdown from remote" in worker.text())

    def health() -> str:
        return bundle.proj("health", "--ready").stdout

    eventually("it says so", lambda: health().endswith(" is stopping\n"), seen=health)
    assert bundle.proj("health", "--live").returncode == 0
    gate.touch()
    assert worker.ends() == 0
    assert bundle.proj("result", "last").returncode == 0


def test_commands_that_one_queue_does_not_take(bundle: Bundle) -> None:
    """As that of a worker on a lost node: a worker starts, and answers."""
    _refuse_commands(bundle)

    worker = bundle.worker(mingle=True).ready()

    # One that stalls for a second is not waited for.
    eventually("it answers", lambda: "pong" in bundle.celery("inspect", "ping").stdout)
    assert "OK" in bundle.control(worker, "cancel_consumer", "proj.tasks")


def test_control_of_commands_that_one_queue_does_not_take(bundle: Bundle) -> None:
    """The broker refuses them: kombu would connect anew, and try again without end."""
    bundle.switch_off("rabbitmq/channel.py", " and not exchange.endswith(_REMOTE_CONTROL)", "")
    _refuse_commands(bundle)

    done = bundle.run_python("""
from kombu import Producer
from proj import app
with app.connection_for_write() as connection:
    Producer(connection).publish({}, exchange="celery.pidbox")
""")

    assert "publishing.Nacked" in done.stderr


def _refuse_commands(bundle: Bundle) -> None:
    """Bind a queue that takes nothing to the exchange of commands to all workers."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with bundle.channel() as channel:
        channel.exchange_declare("celery.pidbox", "fanout", durable=False, auto_delete=False)
        channel.queue_declare("full", auto_delete=False, durable=True, arguments=full)
        channel.queue_bind("full", "celery.pidbox")
        for _ in range(2):
            channel.basic_publish(amqp.Message("{}"), "celery.pidbox")
    eventually("it is full", lambda: bundle.depth("full") == 1)


def test_shutdown_is_bounded(bundle: Bundle) -> None:
    """A task that outlives the grace period is given back."""
    worker = bundle.worker(env={"PROJ_SHUTDOWN_GRACE": "0.2"})
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    bundle.control(worker, "shutdown")
    worker.ends()
    assert bundle.kept("proj.tasks") == 1


def test_restart_is_bounded(bundle: Bundle) -> None:
    """The next worker of this process executes the task that outlived the grace period."""
    worker = bundle.worker(env={"PROJ_SHUTDOWN_GRACE": "0.2"})
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    worker.process.send_signal(signal.SIGHUP)

    eventually("it starts again", lambda: len(worker.lines("Received ")) == 2, seen=worker.text)


def test_message_that_waits_for_a_thread_may_be_revoked(bundle: Bundle) -> None:
    """A pool of threads takes all that the worker fetches."""
    bundle.add_task(GATED_TASK)
    worker = bundle.worker("--pool=threads", "--prefetch-multiplier=2")
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.gated", f'"{gate}"', "--id", "first")
    # Its id is not given: else it might be a repeat, for which the store is asked.
    waits = bundle.proj("enqueue", "add", "1", "2").stdout.strip()
    worker.says(f"[{waits}] received")
    bundle.control(worker, "revoke", waits)
    gate.touch()

    worker.says(f"[{waits}] ignored")

    _are_revoked(bundle, waits)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_arguments_that_a_task_changes_are_shown_as_they_came(bundle: Bundle, pool: str) -> None:
    bundle.add_task("""
        @app.task(name="proj.tasks.changes")
        def changes(gate: str, items):
            items.append("own")
            log.info("Changed")
            while not Path(gate).exists():
                time.sleep(0.05)

        from pathlib import Path
    """)
    worker = bundle.worker(f"--pool={pool}", "--concurrency=1")
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.changes", f'"{gate}"', "[1]", "--id", "one")
    eventually("the task changes them", lambda: "[one]: Changed" in worker.text(), seen=worker.text)

    answer = bundle.celery("inspect", "active", "--json", f"--destination={worker.name}").stdout

    assert [each["args"] for active in json.loads(answer).values() for each in active] == [[str(gate), [1]]]
    gate.touch()


def test_message_that_waits_for_its_turn_in_a_slot_is_reserved(bundle: Bundle) -> None:
    bundle.add_task("""
        @app.task(name="proj.tasks.quick", rate_limit="61/m")
        def quick():
            pass
    """)
    worker = bundle.worker("--concurrency=20")
    last = "19"
    for number in range(20):
        bundle.enqueue("task", "proj.tasks.quick", "--id", str(number))
    worker.says(f"[{last}] received")

    answer = bundle.celery("inspect", "reserved", "--json", f"--destination={worker.name}").stdout

    assert last in {message["id"] for messages in json.loads(answer).values() for message in messages}


def _are_revoked(bundle: Bundle, *task_ids: str) -> None:
    """The worker answers before it has stored this."""
    revoked = dict.fromkeys(task_ids, "REVOKED")
    eventually(f"{task_ids} are revoked", lambda: revoked.items() <= stores.states(bundle).items())


def _revoked(bundle: Bundle) -> Worker:
    """A delayed message and a dead letter that were revoked; the worker that comes then never heard of it."""
    # Else the end of the dead letter may be stored before it is revoked.
    bundle.switch_off("worker/lookout.py", "INTERVAL: Final = 5.0", "INTERVAL: Final = 3600.0")
    dead.publish_task(bundle, "letter", 1, 2, expiration="0")
    first = bundle.worker()
    # So that it takes none of them itself, however late the revocation is.
    assert "OK" in bundle.control(first, "cancel_consumer", "proj.tasks")
    dead.await_count(bundle, 1)
    bundle.enqueue("add", "1", "2", "--id", "delayed", "--countdown", "1")
    bundle.control(first, "revoke", "delayed", "letter")
    _are_revoked(bundle, "delayed", "letter")
    first.kill()
    return bundle.worker(log="next.log")


@pytest.mark.celery_docs("Workers: control revoke")
def test_revocation_outlives_workers(bundle: Bundle) -> None:
    """It is stored, and a worker acknowledges the message without executing it; a redrive overrides it."""
    bundle.declare()
    worker = _revoked(bundle)
    worker.says("[delayed] received")
    worker.says("[delayed] ignored")

    assert bundle.proj("dead", "redrive", "letter").returncode == 0
    worker.says("[letter] succeeded")

    assert worker.terminate() == 0
    assert bundle.kept("proj.tasks") == bundle.depth("proj.dead") == 0
    delayed = json.loads(bundle.proj("result", "delayed", "--json").stdout)
    # The name says that its message has come, so the revocation ages.
    assert (delayed["state"], delayed["task"]) == ("REVOKED", "proj.tasks.add")
    assert "[delayed] succeeded" not in worker.text()


def _publish_twice(bundle: Bundle, task_id: str) -> None:
    """Publish a message that is a dead letter at once."""
    dead.publish(
        bundle,
        [[], {}, {}],
        application_headers={"id": task_id, "task": "proj.tasks.twice", "lang": "py", "retries": 0},
        content_type="application/json",
        content_encoding="utf-8",
        expiration="0",
    )


@pytest.mark.long
def test_redrive_overrides_what_workers_remember(bundle: Bundle) -> None:
    """A worker that heard of the revocation executes the message all the same. A later revocation counts."""
    bundle.add_task(TWICE)
    # Else the end of the dead letter may be stored before it is revoked.
    bundle.switch_off("worker/lookout.py", "INTERVAL: Final = 5.0", "INTERVAL: Final = 3600.0")
    _publish_twice(bundle, "it")
    worker = bundle.worker().ready()
    dead.await_count(bundle, 1)
    bundle.control(worker, "revoke", "it")

    assert bundle.proj("dead", "redrive", "it").returncode == 0

    worker.says("Retry in 8s")
    bundle.control(worker, "revoke", "it")
    worker.says("[it] revoked")


@pytest.mark.long
def test_revocation_since_a_redrive_counts_for_all_workers(bundle: Bundle) -> None:
    """Also for one that never had the message, whether or not that was revoked before."""
    bundle.add_task(TWICE)
    bundle.switch_off("worker/lookout.py", "INTERVAL: Final = 5.0", "INTERVAL: Final = 3600.0")
    ids = {"before", "never"}
    for task_id in ids:
        _publish_twice(bundle, task_id)
    worker = bundle.worker("--concurrency=2").ready()
    dead.await_count(bundle, 2)
    bundle.control(worker, "revoke", "before")
    _are_revoked(bundle, "before")
    assert bundle.proj("dead", "redrive", *ids).returncode == 0
    eventually("both wait", lambda: {line.id for line in worker.lines("Retry in 8s")} == ids)

    bundle.control(worker, "revoke", *ids)
    _are_revoked(bundle, *ids)
    worker.kill()
    other = bundle.worker("--concurrency=2", log="other.log")

    eventually(
        "both are revoked", lambda: {line.id for line in other.lines("ignored")} == ids, seen=other.text
    )
    assert not other.lines("succeeded")


def test_revocation_that_nobody_looks_for(bundle: Bundle) -> None:
    """Control: without the look, the message is executed."""
    bundle.declare()
    bundle.switch_off("worker/task.py", "        revocation.check(self, request)\n", "")
    _revoked(bundle).says("[delayed] succeeded")


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
        bundle.switch_off("results/patience.py", "\nPATIENCE: Final = 2", "\nPATIENCE: Final = 0.2")
        bundle.add_task(GATED_TASK)
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    """One worker for what leaves it as it was."""
    return shared.worker()


def test_revocation_replaces_no_end(shared: Bundle, worker: Worker) -> None:
    """What has ended stays as it ended."""
    assert shared.proj("enqueue", "add", "1", "2", "--id", "done", "--wait").stdout == "3\n"

    shared.control(worker, "revoke", "done", "after-done")

    _are_revoked(shared, "after-done")
    assert shared.proj("result", "done").returncode == 0


def test_revocation_leaves_a_task_that_runs(shared: Bundle, worker: Worker) -> None:
    """It goes on, and whoever waits for it gets its result."""
    gate = shared.folder / "gate"
    shared.enqueue("task", "proj.tasks.gated", f'"{gate}"', "--id", "runs")
    worker.started("runs")

    shared.control(worker, "revoke", "runs", "after-runs")

    _are_revoked(shared, "after-runs")
    assert "runs" not in stores.states(shared)
    gate.touch()
    eventually("it ends", lambda: stores.states(shared).get("runs") == "SUCCESS")


@pytest.mark.celery_docs("Workers: control time_limit", "Workers: control add_consumer, cancel_consumer")
def test_what_would_lose_messages_is_refused(shared: Bundle, worker: Worker) -> None:
    """A time limit that the broker does not wait for, and a queue whose dead letters would go nowhere."""
    for command, answer in (
        (("time_limit", "proj.tasks.add", "10", "1800"), "consumer_timeout, got 1800 and 1800"),
        (("time_limit", "proj.tasks.add", "5000"), "below the broker's consumer_timeout"),
        (("time_limit", "proj.tasks.add", "nan"), "a number of seconds, got nan"),
        (
            ("add_consumer", "other"),
            "there is no queue 'other' (known queues: proj.tasks; PROJ_QUEUES adds more)",
        ),
    ):
        assert answer in shared.control(worker, *command)
    assert not shared.has("other")

    assert "OK" in shared.control(worker, "time_limit", "proj.tasks.add", "10", "20")
    assert "OK" in shared.control(worker, "cancel_consumer", "proj.tasks")
    assert "OK" in shared.control(worker, "add_consumer", "proj.tasks")
    assert shared.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60").stdout == "3\n"
    assert worker.process.poll() is None


def test_revocation_that_cannot_be_stored_is_logged(shared: Bundle, worker: Worker) -> None:
    """It holds for as long as the worker runs, and the worker goes on."""
    worker.ready()
    stores.garbage(shared)

    assert "flagged as revoked" in shared.control(worker, "revoke", "it", "other")
    worker.says("Revoked only until this worker ends: the result store cannot be")
    assert shared.control(worker, "revoke", "it")


def test_revocations_wait_for_no_store(bundle: Bundle) -> None:
    """The worker answers while the store does not, and so goes on with all else."""
    bundle.switch_off("results/engines.py", "ANSWER_TIMEOUT: Final = 10", "ANSWER_TIMEOUT: Final = 1000")
    with stores.LoginOnly() as server:
        worker = bundle.worker(env={"CELERY_RESULT_BACKEND": "db+" + server.url})

        assert "OK" in bundle.control(worker, "revoke", "one", "two")
        eventually("the store is asked", lambda: server.asked)
        assert "OK" in bundle.control(worker, "terminate", "SIGTERM", "three")
