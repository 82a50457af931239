"""No foreign message is lost, whatever is killed; how often its task runs depends on its `message_id`."""

import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from proj.ingest.source import PREFETCH
from tests.lib import foreign
from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.one_node import start
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import limit
from tests.lib.waiting import eventually

COUNT = 1000

#: Characters of a text, of which a hundred take longer to be written than a turn of ingest's loop.
LARGE = 2**18

#: A message that takes its worker five seconds.
LONG = "message 50....."

#: What RabbitMQ 4 does in a cluster while the node is down that has the queue.
DOES_NOT_ANSWER = (
    "            self._channel.queue_declare(self.queue, passive=True)",
    "            if self.queue == 'task_queue':\n                raise TimeoutError('timed out')\n"
    "            self._channel.queue_declare(self.queue, passive=True)",
)

#: Lets ingest stand still in the middle of the messages, once: it takes a tenth of a second for all of them.
STANDS_STILL = (
    "        self.deliveries.append(delivery)",
    f"        if message.delivery_tag == {COUNT // 2}:\n"
    "            import contextlib, os, signal\n"
    "            with contextlib.suppress(FileExistsError):\n"
    "                os.close(os.open('stood', os.O_CREAT | os.O_EXCL))\n"
    "                os.kill(os.getpid(), signal.SIGSTOP)\n"
    "        self.deliveries.append(delivery)",
)

#: Ends ingest as SIGKILL does, between the confirm and the acknowledgement of a message.
DIES_BEFORE_ACK = (
    "            self._channel.basic_ack(last.tag, multiple=True)",
    "            import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
)


def _publish(bundle: Bundle, *, with_ids: bool, confirmed: bool = False, has_long: bool = False) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(bundle.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("task_queue", durable=True)
        if confirmed:
            channel.confirm_delivery()
        for number in range(COUNT):
            properties = pika.BasicProperties(delivery_mode=2, message_id=f"m-{number}" if with_ids else None)
            text = LONG if has_long and number == 50 else f"message {number}"
            channel.basic_publish("", "task_queue", text, properties)


def _fill(bundle: Bundle, ingest: foreign.Ingest, count: int) -> None:
    """Publish texts, the first ones by themselves: a quorum queue that is full says so a moment later."""
    foreign.publish(bundle, ["0", "1"])
    ingest.says("published", 2)
    foreign.publish(bundle, map(str, range(2, count)))


def _begin(bundle: Bundle, log: str) -> foreign.Ingest:
    """Start ingest, which stands still in the middle of the messages."""
    bundle.switch_off("ingest/source.py", *STANDS_STILL)
    ingest = foreign.start(bundle, log)
    process = psutil.Process(ingest.process.pid)
    eventually("it stands still", lambda: process.status() == psutil.STATUS_STOPPED, seen=ingest.text)
    assert COUNT // 10 < len(ingest.rows()) < COUNT
    return ingest


@pytest.mark.parametrize("with_ids", [True, False], ids=["message_id", "none"])
@pytest.mark.used_vhost
def test_ingest_is_killed_in_the_middle(bundle: Bundle, with_ids: bool) -> None:
    """Each message is there at least once. Of those with a `message_id`, a second has the id of the first."""
    _publish(bundle, with_ids=with_ids)
    victim = _begin(bundle, "victim.log")
    victim.kill()
    ingest = foreign.start(bundle).consumes()
    foreign.settle(bundle, ingest)

    made = foreign.tasks(bundle)
    assert {argument for _, argument in made} == {f"message {number}" for number in range(COUNT)}
    assert len(made) - COUNT <= PREFETCH
    if with_ids:
        assert len({task_id for task_id, _ in made}) == COUNT
    assert max(Counter(argument for _, argument in made).values()) <= 2


@pytest.mark.parametrize("message_id", ["m-1", None], ids=["message_id", "none"])
@pytest.mark.used_vhost
def test_ingest_is_killed_between_confirm_and_acknowledgement(bundle: Bundle, message_id: str | None) -> None:
    """With a `message_id`, the task's effect happens once; without, twice."""
    bundle.switch_off("ingest/source.py", *DIES_BEFORE_ACK)
    victim = foreign.start(bundle, "victim.log").consumes("task_queue")
    foreign.publish(bundle, ["effect"], message_id=message_id)
    assert victim.ends() == -signal.SIGKILL
    assert bundle.depth("proj.tasks") == 1
    bundle.heal()
    ingest = foreign.start(bundle).consumes()
    foreign.settle(bundle, ingest)
    worker = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "last")
    worker.says("Received 'last'")

    assert worker.text().count("Received 'effect'") == (1 if message_id else 2)


def test_without_the_wait_for_confirms_messages_are_lost(own: Bundle) -> None:
    """The control: acknowledged whatever the answer is, what a full queue refuses is gone."""
    own.switch_off("ingest/source.py", "and sent.answered:", "and True:")
    own.switch_off("ingest/source.py", "if sent.refusal:", "if False:")
    limit(own)
    ingest = foreign.start(own).consumes()
    _fill(own, ingest, 100)
    foreign.settle(own, ingest)
    assert own.depth("proj.tasks") < 100


@pytest.mark.used_vhost
def test_a_full_work_queue_is_waited_for(bundle: Bundle) -> None:
    """Nothing is lost; when there is room, all goes on."""
    bundle.declare()
    path = limit(bundle)
    ingest = foreign.start(bundle).consumes()
    _fill(bundle, ingest, 20)
    ingest.says("queue task_queue waits: the broker does not take its messages: the work queue is full")

    bundle.management("DELETE", path)

    ingest.says("queue task_queue goes on")
    foreign.settle(bundle, ingest)
    assert sorted(int(text) for _, text in foreign.tasks(bundle)) == list(range(20))


@pytest.mark.used_vhost
def test_ingest_is_told_to_stop_while_the_queue_is_full(bundle: Bundle) -> None:
    bundle.declare()
    limit(bundle)
    ingest = foreign.start(bundle).consumes()
    _fill(bundle, ingest, 20)
    ingest.says("queue task_queue waits")
    assert ingest.terminate() == 0
    assert bundle.kept("task_queue") + bundle.depth("proj.tasks") == 20


@pytest.mark.parametrize("kind", ["queue", "exchange"])
def test_where_tasks_go_is_deleted(bundle: Bundle, kind: str) -> None:
    """It is declared again, and no message is lost."""
    ingest = foreign.start(bundle).consumes()
    with bundle.channel() as channel:
        if kind == "queue":
            channel.queue_delete("proj.tasks")
        else:
            channel.exchange_delete("proj.direct")
    foreign.publish(bundle, ["a", "b"])
    ingest.says("published", 2)
    foreign.settle(bundle, ingest)
    assert [text for _, text in foreign.tasks(bundle)] == ["a", "b"]


def test_an_alarm_of_the_broker_is_waited_out(own: Bundle) -> None:
    """The broker reads nothing meanwhile, not even an acknowledgement."""
    ingest = foreign.start(own).consumes()
    foreign.publish(own, map(str, range(5)))
    ingest.says("published", 5)
    with own.channel() as channel:
        channel.queue_declare("held", durable=True, auto_delete=False)
    foreign.publish(own, map(str, range(5, 300)))
    with alarm(own.node, "memory"):
        pass
    foreign.settle(own, ingest)
    assert {int(text) for _, text in foreign.tasks(own)} == set(range(300))


def test_the_broker_is_killed(own: Bundle) -> None:
    """SIGKILL while ingest is at a thousand messages: it connects again, and none is lost.

    A broker that is killed may lose what it has not confirmed.
    """
    _publish(own, with_ids=True, confirmed=True)
    ingest = _begin(own, "ingest.log")
    own.node.kill()
    ingest.process.send_signal(signal.SIGCONT)
    ingest.says("; trying again")
    start(own.node)
    ingest.says("connected to", 2)
    foreign.settle(own, ingest)

    made = foreign.tasks(own)
    assert {argument for _, argument in made} == {f"message {number}" for number in range(COUNT)}
    assert len({task_id for task_id, _ in made}) == COUNT


@pytest.mark.used_vhost
def test_a_broker_that_takes_a_burst_in_slowly(bundle: Bundle, proxy: Proxy) -> None:
    """Seconds for what was delivered at once: each is sent once, and not all is composed meanwhile."""
    texts = [f"{number:03}{'x' * LARGE}" for number in range(100)]
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "30"
    ingest = foreign.start(bundle).consumes()
    before = _most_memory(ingest)
    ingest.process.send_signal(signal.SIGSTOP)
    foreign.publish(bundle, texts)
    proxy.network, proxy.delay = Network.NARROW, 0.01
    ingest.process.send_signal(signal.SIGCONT)
    ingest.says("published", len(texts))
    grown = _most_memory(ingest) - before
    foreign.settle(bundle, ingest)

    assert proxy.happened[Network.NARROW] > len(texts)
    assert "trying again" not in ingest.text()
    assert [text for _, text in foreign.tasks(bundle)] == texts
    assert grown < len(texts) * LARGE


def _most_memory(ingest: foreign.Ingest) -> int:
    """The most bytes of memory that it has had."""
    status = Path(f"/proc/{ingest.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.used_vhost
def test_the_worker_is_killed(bundle: Bundle) -> None:
    """SIGKILL in the middle of a thousand tasks: another worker executes the rest, and one of them again."""
    _publish(bundle, with_ids=True, has_long=True)
    ingest = foreign.start(bundle).consumes()
    victim = bundle.worker(log="victim.log")
    victim.says(f"Received {LONG!r}")
    victim.kill()
    done = [line.id for line in victim.lines("succeeded in")]
    assert 0 < len(done) < COUNT
    worker = bundle.worker().ready()

    def executed() -> list[str]:
        return done + [line.id for line in worker.lines("succeeded in")]

    def ended() -> set[str]:
        # Of the last one, its victim may have stored the success and not said so.
        return {*executed(), *(line.id for line in worker.lines("is a duplicate"))}

    eventually("the rest is executed", lambda: len(ended()) == COUNT, seen=worker.text, progress=ended)
    foreign.settle(bundle, ingest)
    assert len(executed()) <= COUNT + 1
    assert ended() == {task_id for _, task_id in ingest.rows()}


@pytest.mark.used_vhost
def test_a_queue_for_which_the_broker_does_not_answer(bundle: Bundle) -> None:
    """It ends the connection; the next one serves the other queues."""
    bundle.switch_off("ingest/source.py", *DOES_NOT_ANSWER)
    ingest = foreign.start(bundle)

    ingest.says("queue task_queue cannot be consumed, and is tried again: the broker does not answer")
    ingest.says("consuming queue add")
