"""What workers do with work: who gets it, who gets it again, and when a worker gives up."""

import signal
from pathlib import Path

import psutil
import pytest

from proj.private_node.node import BrokerNode
from tests.bundle import Bundle, Worker, eventually
from tests.chaos.proxy import Proxy
from tests.ports import free_port

#: Seconds of work in a long task. A worker that idles behind one idles for about as long.
LONG = 6


def test_no_worker_idles_while_a_task_is_ready(bundle: Bundle) -> None:
    """Two workers of one slot, odd tasks long and even ones short: whoever is free takes the next."""
    assert _longest_idling(bundle) < LONG / 2


def test_prefetching_worker_lets_the_other_idle(bundle: Bundle) -> None:
    """The control for the test above: with four messages a slot a worker idles while tasks are ready."""
    assert _longest_idling(bundle, "--prefetch-multiplier=4") > LONG / 2


def _longest_idling(bundle: Bundle, *options: str) -> float:
    """Seconds that a worker was without work while a task was ready, at the longest."""
    workers = [bundle.worker(*options, log=f"{n}.log").ready() for n in "ab"]
    texts = ["." * LONG, ""] * 4
    bundle.python(f"""
from proj.tasks import sleep_dots
for text in {texts!r}: sleep_dots.delay(text)
print(0)
""")

    def all_done() -> bool:
        return sum(len(worker.lines("Done after")) for worker in workers) == len(texts)

    eventually("all tasks are done", all_done)
    return max(_idling(worker, until=_last_start(workers)) for worker in workers)


def _last_start(workers: list[Worker]) -> float:
    """Until then a task was ready."""
    return max(line.at for worker in workers for line in worker.lines("Received "))


def _idling(worker: Worker, until: float) -> float:
    """The longest time between the end of a task and the start of the next, or `until`."""
    starts = [line.at for line in worker.lines("Received ")]
    ends = [line.at for line in worker.lines("Done after")]
    gaps = [min(begin, until) - end for end, begin in zip(ends, [*starts[1:], until], strict=True)]
    return max(gaps)


def test_task_of_a_killed_worker_is_executed_by_the_other(bundle: Bundle) -> None:
    """SIGKILL in the middle of a task: the other worker starts the same message, from its beginning."""
    victim = bundle.worker(log="victim.log").ready()
    assert bundle.proj("enqueue", "sleep-dots", "600", "--id", "survivor").returncode == 0
    victim.started("survivor")
    other = bundle.worker(log="other.log").ready()

    victim.kill()

    other.started("survivor")
    assert not victim.lines("Done after")


def test_task_of_a_worker_that_is_silent_is_executed_by_the_other(bundle: Bundle) -> None:
    """As when its machine is gone, and no connection is closed: the broker misses its heartbeats."""
    bundle.switch_off(
        "celeryconfig.py", '"task_acks_late": True,', '"task_acks_late": True, "broker_heartbeat": 3,'
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


def test_pool_process_does_not_outlive_its_killed_worker(bundle: Bundle) -> None:
    """The process that executes the task ends with its worker, so nothing is executed twice at once."""
    victim = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "600", "--id", "orphan")
    victim.started("orphan")
    pool = victim.children()
    assert pool

    victim.kill()

    eventually("the pool processes end", lambda: not any(_lives(process) for process in pool))
    assert eventually("the message is back", lambda: bundle.depth("proj.tasks")) == 1


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

    def dead() -> bool:
        if bundle.depth("proj.dead"):
            return True
        busy = len(worker.lines("Received "))
        if busy > len(killed):
            for child in worker.children():
                killed.append(child.pid)
                child.kill()
        return False

    killed: list[int] = []
    eventually("the message is in proj.dead", dead)
    (message,) = bundle.peek("proj.dead")
    assert message["properties"]["headers"]["id"] == "killer"
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "delivery_limit"
    assert bundle.depth("proj.tasks") == 0


def test_worker_waits_for_a_broker_that_is_down(bundle: Bundle, rabbitmq: None, tmp_path: Path) -> None:
    """A worker says that it waits, and works once its broker is there; again after the broker's crash."""
    port = free_port()
    node = BrokerNode(tmp_path / "late", port=port)
    there = {"CELERY_BROKER_URL": f"amqp://127.0.0.1:{port}"}
    worker = bundle.worker(env=there)
    worker.says("Cannot connect to amqp://guest:**@127.0.0.1:")
    worker.says("Trying again in")
    with node:
        assert bundle.proj("enqueue", "add", "1", "2", "--wait", env=there).stdout == "3\n"
        node.kill()
        worker.says("Connection to broker lost")
        node.start()
        assert bundle.proj("enqueue", "add", "3", "4", "--wait", env=there).stdout == "7\n"
    assert "Traceback" not in worker.text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "guest:wrong"}, "refused user 'guest' and its password"),
        ({"vhost": "nowhere"}, "has no virtual host 'nowhere'"),
    ],
    ids=["password", "vhost"],
)
def test_worker_ends_when_the_broker_says_no(bundle: Bundle, change: dict[str, str], said: str) -> None:
    """What waiting does not mend ends the worker, with one line and the exit code of the contract."""
    user, vhost = change.get("user", "guest:guest"), change.get("vhost", bundle.vhost)
    url = f"amqp://{user}@127.0.0.1:{bundle.node.info.port}/{vhost}"

    worker = bundle.worker(env={"CELERY_BROKER_URL": url})

    assert worker.ends() == 69
    assert said in worker.text()
    assert "wrong" not in worker.text()
    assert "Traceback" not in worker.text()


def test_worker_outlives_a_connection_that_only_the_broker_believes_in(bundle: Bundle) -> None:
    """Cut on the worker's side alone, it keeps the worker from its own queue until the broker notices."""
    with Proxy(bundle.node.info.port) as proxy:
        there = {"CELERY_BROKER_URL": bundle.url_at(proxy.port)}
        worker = bundle.worker(env=there).ready()

        proxy.cut_for_programs()
        worker.says("the broker has not noticed yet")
        proxy.cut_for_broker()

        assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"
        assert "Traceback" not in worker.text()


def test_worker_leaves_no_connection_behind_when_it_connects_anew(bundle: Bundle) -> None:
    """As when an answer is late: the end of the old one would later be taken for the loss of the new one."""
    bundle.switch_off(
        "worker/consumer.py",
        "topology.ensure(conn)\n",
        "topology.ensure(conn)\n                if not self.restart_count: raise TimeoutError('late')\n",
    )
    worker = bundle.worker()
    worker.says("late. Trying to reconnect...")
    worker.ready()

    def channels() -> list[int]:
        """Of each connection; the management API tells up to 5 s late, and at first nothing."""
        return [each.get("channels", 0) for each in bundle.of_vhost("vhosts", "/connections")]

    eventually("each is in use", lambda: channels() and all(channels()), seen=lambda: str(channels()))


def test_second_worker_of_the_same_name_ends(bundle: Bundle) -> None:
    """With one line that says so; the first goes on."""
    bundle.worker("-n", "twin@here").ready()

    twin = bundle.worker("-n", "twin@here", log="twin.log")

    assert twin.ends() == 69
    assert "a worker with the name twin@here is connected already" in twin.text()
    assert "Traceback" not in twin.text()
    assert bundle.proj("enqueue", "add", "3", "4", "--wait").stdout == "7\n"


def test_worker_of_a_queue_that_does_not_exist_ends(bundle: Bundle) -> None:
    """A slip in the name given to -Q is told, with the names that there are."""
    worker = bundle.worker("-Q", "proj.task")

    assert worker.ends() == 2
    assert worker.text() == "Error: there is no queue 'proj.task' (there is: proj.tasks)\n"


def test_worker_ends_when_a_queue_has_other_arguments(bundle: Bundle) -> None:
    """A work queue that was declared otherwise ends the worker with one line that names the queue."""
    with bundle.channel() as channel:
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False)

    worker = bundle.worker()

    assert worker.ends() == 69
    assert "queue 'proj.tasks'" in worker.text()
    assert "Traceback" not in worker.text()


def test_worker_puts_a_topology_in_place_that_is_gone(bundle: Bundle) -> None:
    """A worker that connects anew finds, or makes, every queue, the dead-letter side included."""
    worker = bundle.worker().ready()
    with bundle.channel() as channel:
        for queue in ("proj.tasks", "proj.dead"):
            channel.queue_delete(queue)

    bundle.node.ctl("close_all_connections", "--vhost", bundle.vhost, "test")

    worker.says("Connection to broker lost")
    eventually("the queues are there", lambda: bundle.has("proj.tasks") and bundle.has("proj.dead"))


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
