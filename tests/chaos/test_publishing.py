"""Publishing never lies: a message is confirmed or refused, or its outcome is told to be unknown, in time."""

import os
import re
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kombu
import psutil
import pytest
from amqp.exceptions import AccessRefused

from proj import queues
from proj.broker import BrokerNode
from tests.bundle import BIN, COMMAND_TIMEOUT, Bundle, eventually
from tests.chaos.proxy import Network, Proxy
from tests.chaos.publisher import Outcome, Publisher

#: Seconds that a publish may take in the tests where something keeps it waiting.
TIMEOUT = 2

#: Seconds that it may take beyond: a process of a busy machine wakes up late.
SLACK = 1

#: What the messages of a test are asked for by, and what they are marked with.
ID, REPEAT = "id", "x-proj-repeat"

#: Bytes of a message that the module's own node takes.
MAX_SIZE = 1_000_000

#: Limits that are exceeded at once, and the usual ones.
ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.4")),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
}

#: The broker's own list of them.
ALARMS_ON = "rabbit_alarm:get_alarms()."


@pytest.fixture(scope="module")
def own_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node for alarms and freezes, of which the other tests must not know."""
    node = BrokerNode(tmp_path_factory.mktemp("own"), extra_config=f"max_message_size = {MAX_SIZE}")
    node.start()
    yield node
    node.kill()


@pytest.fixture
def own(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    with Bundle(own_node, vhost=re.sub(r"\W+", "-", request.node.name), folder=tmp_path) as bundle:
        hurry(bundle)
        yield bundle


def hurry(bundle: Bundle) -> None:
    """From now on a publish may take `TIMEOUT`; to declare what it needs, before, all the time it takes."""
    bundle.declare()
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = str(TIMEOUT)


@pytest.fixture
def proxy(bundle: Bundle) -> Iterator[Proxy]:
    """What the bundle's programs reach their broker through."""
    hurry(bundle)
    with Proxy(bundle.node.info.port) as proxy:
        bundle.env["CELERY_BROKER_URL"] = bundle.url.replace(f":{bundle.node.info.port}/", f":{proxy.port}/")
        yield proxy


def check(outcome: Outcome, kind: str, *words: str) -> None:
    """The publish ended in this way, said so in one line, and in time."""
    assert outcome.kind == kind, outcome
    assert outcome.seconds < outcome.limit + SLACK
    assert "\n" not in outcome.text
    for word in words:
        assert word in outcome.text


def headers(bundle: Bundle, queue: str = "proj.tasks") -> list[Any]:
    """The headers of the messages in the queue, in their order."""
    return [message["properties"]["headers"] for message in bundle.peek(queue)]


def ids(bundle: Bundle) -> list[str]:
    return [header[ID] for header in headers(bundle)]


# --- The broker does not listen


@contextmanager
def alarm(node: BrokerNode, kind: str) -> Iterator[None]:
    """Let the broker believe that it runs out of `kind`: it then reads nothing from whoever publishes."""
    on, off = ALARMS[kind]
    node.ctl(*on)
    try:
        eventually(f"the {kind} alarm is on", lambda: kind in node.ctl("eval", ALARMS_ON))
        yield
    finally:
        node.ctl(*off)
        eventually(f"the {kind} alarm is off", lambda: kind not in node.ctl("eval", ALARMS_ON))


@contextmanager
def freeze(node: BrokerNode) -> Iterator[None]:
    os.kill(node.pid, signal.SIGSTOP)
    try:
        process = psutil.Process(node.pid)
        eventually("the broker is frozen", lambda: process.status() == psutil.STATUS_STOPPED)
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


FAULTS = {"memory": partial(alarm, kind="memory"), "disk": partial(alarm, kind="disk"), "frozen": freeze}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("countdown", [None, 3600], ids=["now", "delayed"])
def test_broker_that_does_not_listen(own: Bundle, fault: str, countdown: int | None) -> None:
    """A used connection and a fresh one both end in time; what may have arrived is never called refused."""
    with Publisher(own) as used, Publisher(own) as fresh:
        check(used.publish(task_id="before", countdown=countdown), "confirmed")

        with FAULTS[fault](own.node):
            over_used = used.publish(task_id="used", countdown=countdown)
            over_fresh = fresh.publish(task_id="fresh", countdown=countdown)

        # A frozen broker does not even greet, nor answers what a delayed message needs: nothing was sent.
        unsent = fault == "frozen"
        check(over_used, "BrokerUnreachable" if unsent and countdown else "OutcomeUnknown")
        check(over_fresh, "BrokerUnreachable" if unsent else "OutcomeUnknown")
        if over_used.kind == "OutcomeUnknown":
            check(over_used, "OutcomeUnknown", "did not confirm message used", "--id used is safe")
        in_alarm = "takes no messages while its memory or its disk is short"
        assert [in_alarm in outcome.text for outcome in (over_used, over_fresh)] == [not unsent] * 2
        check(used.publish(task_id="after"), "confirmed")

    if countdown is None:
        # The broker may come to read what it was sent while nobody waits any more.
        found = ids(own)
        assert {"before", "after"} <= set(found) <= {"before", "after", "used", "fresh"}
        assert own.depth("proj.tasks") == len(set(found))
        if fault == "frozen":
            assert "fresh" not in found


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


# --- The network


def test_confirm_that_is_lost(bundle: Bundle, proxy: Proxy) -> None:
    """The network swallows the answers: the outcome is unknown, and the message is in the queue."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(task_id="before"), "confirmed")
        proxy.network = Network.SWALLOWS_ANSWERS
        check(publisher.publish(task_id="mine"), "OutcomeUnknown", "message mine")
    assert proxy.happened[Network.SWALLOWS_ANSWERS]
    assert ids(bundle) == ["before", "mine"]


def test_message_that_is_lost(bundle: Bundle, proxy: Proxy) -> None:
    """The network swallows all: the publisher sees the same, and the message is not in the queue."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(task_id="before"), "confirmed")
        proxy.network = Network.SWALLOWS_ALL
        check(publisher.publish(task_id="mine"), "OutcomeUnknown", "message mine")
    assert proxy.happened[Network.SWALLOWS_ALL]
    assert ids(bundle) == ["before"]


def test_ctrl_c_while_publishing(bundle: Bundle, proxy: Proxy) -> None:
    """It is not called enqueued, nor not enqueued."""
    proxy.network = Network.SWALLOWS_ALL
    command = [BIN / "proj", "enqueue", "add", "1", "2", "--id", "mine"]
    env = bundle.env | {"PROJ_PUBLISH_TIMEOUT": "60"}
    with subprocess.Popen(command, cwd=bundle.folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        eventually("it publishes", lambda: proxy.happened[Network.SWALLOWS_ALL])
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=COMMAND_TIMEOUT)

    assert process.returncode == 130
    assert "0 are enqueued, and one more may be; to repeat it with --id mine is safe" in stderr
    assert stderr.endswith("Interrupted.\n")


@pytest.mark.parametrize("network", [Network.SWALLOWS_ANSWERS, Network.SWALLOWS_ALL])
def test_network_that_swallows_a_new_connection(bundle: Bundle, proxy: Proxy, network: Network) -> None:
    """Before the connection is made, nothing was sent."""
    proxy.network = network
    with Publisher(bundle) as publisher:
        check(publisher.publish(task_id="mine"), "BrokerUnreachable", "does not answer in time")
    assert proxy.happened[network]
    assert bundle.depth("proj.tasks") == 0


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_name_server_that_does_not_answer(bundle: Bundle, protected: bool) -> None:
    """The time in which the broker's address is looked for is bounded too; it is not, if not in a thread."""
    if not protected:
        bundle.switch_off(
            "connection.py", "_resolve(connection.hostname, connection.connect_timeout)", "pass"
        )
    url = bundle.url.replace("127.0.0.1", "no-answer.invalid")
    bundle.env |= {"CELERY_BROKER_URL": url, "PROJ_PUBLISH_TIMEOUT": str(TIMEOUT)}
    program = textwrap.dedent(f"""
        import json, socket, time
        look_up = socket.getaddrinfo
        def slow(host, *args, **options):
            if host == "no-answer.invalid":
                time.sleep({4 * TIMEOUT})
                host = "127.0.0.1"
            return look_up(host, *args, **options)
        socket.getaddrinfo = slow
        from proj import errors
        from proj.tasks import add
        began = time.monotonic()
        try:
            ended = ["confirmed", add.delay(1, 2).id]
        except errors.ProjError as error:
            ended = [type(error).__name__, str(error)]
        print(json.dumps([*ended, time.monotonic() - began]))
    """)
    outcome = Outcome(*bundle.python(program), TIMEOUT)
    if protected:
        check(outcome, "BrokerUnreachable", "no-answer.invalid", "does not answer in time")
    else:
        assert outcome.seconds > TIMEOUT + SLACK


def test_connections_that_are_all_in_use(bundle: Bundle) -> None:
    """More threads than connections, each of which waits: nothing was sent, and that is told in time."""
    hurry(bundle)
    program = """
import json, time
from contextlib import ExitStack
from proj import app, errors
from proj.tasks import add
with ExitStack() as stack:
    for _ in range(app.conf.broker_pool_limit):
        stack.enter_context(app.producer_or_acquire())
    began = time.monotonic()
    try:
        ended = ["confirmed", add.delay(1, 2).id]
    except errors.ProjError as error:
        ended = [type(error).__name__, str(error)]
print(json.dumps([*ended, time.monotonic() - began]))
"""
    outcome = Outcome(*bundle.python(program), TIMEOUT)
    check(outcome, "BrokerUnreachable", "all 10 connections to the broker are in use", "fewer threads")
    assert bundle.depth("proj.tasks") == 0


def test_network_that_swallows_a_declaration(bundle: Bundle, proxy: Proxy) -> None:
    """A delayed message on a used connection declares first: when that is swallowed, nothing was sent."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(task_id="before"), "confirmed")
        proxy.network = Network.SWALLOWS_ALL
        check(publisher.publish(task_id="mine", countdown=1), "BrokerUnreachable", "does not answer in time")
    assert proxy.happened[Network.SWALLOWS_ALL]
    assert ids(bundle) == ["before"]


def test_connection_cut_before_the_confirm(bundle: Bundle, proxy: Proxy) -> None:
    """It is published again on a new connection, with the same id, and marked as a repeat."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "confirmed")
        proxy.network = Network.CUTS_AT_ANSWER
        outcome = publisher.publish()
    check(outcome, "confirmed")
    assert proxy.happened[Network.CUTS_AT_ANSWER] == 1
    _, first, second = headers(bundle)
    assert first[ID] == second[ID] == outcome.text
    assert (first.get(REPEAT), second.get(REPEAT)) == (None, True)


def test_connection_cut_before_the_confirm_and_nobody_answers_then(bundle: Bundle, proxy: Proxy) -> None:
    """That the second attempt did not even connect says nothing of the first: the outcome is unknown."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(task_id="before"), "confirmed")
        proxy.network, proxy.afterwards = Network.CUTS_AT_ANSWER, Network.SWALLOWS_ALL
        check(publisher.publish(task_id="mine"), "OutcomeUnknown", "message mine")
    assert proxy.happened[Network.CUTS_AT_ANSWER] == 1
    assert proxy.happened[Network.SWALLOWS_ALL]
    assert ids(bundle) == ["before", "mine"]


def _slow(bundle: Bundle, proxy: Proxy) -> Outcome:
    # Connecting takes three answers, and declaring many more.
    proxy.network, proxy.delay = Network.SLOW, TIMEOUT / 5
    with Publisher(bundle) as publisher:
        outcome = publisher.publish()
    assert proxy.happened[Network.SLOW] >= TIMEOUT / proxy.delay
    return outcome


def test_broker_that_answers_slowly(bundle: Bundle, proxy: Proxy) -> None:
    """Each answer comes in time, and all of them together do not: the time is bounded as a whole."""
    check(_slow(bundle, proxy), "BrokerUnreachable", "does not answer in time")


def test_control_slow_broker_without_the_cut(bundle: Bundle, proxy: Proxy) -> None:
    """With timeouts of the socket alone, the same takes as long as it takes."""
    bundle.switch_off("deadline.py", "    timer.start()\n", "")
    assert _slow(bundle, proxy).seconds > TIMEOUT + SLACK


# --- The broker says no


def _limit(bundle: Bundle) -> None:
    """Let the queue have room for one message."""
    policy = {"pattern": "^proj\\.tasks$", "definition": {"max-length": 1}, "apply-to": "queues"}
    bundle.management("PUT", f"policies/{quote(bundle.vhost)}/full", policy)
    eventually("the policy applies", lambda: bundle.of_vhost("queues", "/proj.tasks").get("policy"))


def _fill(bundle: Bundle, publisher: Publisher) -> Outcome:
    """Publish to a queue with room for one until something else than a confirm comes; or 20 times."""
    check(publisher.publish(), "confirmed")
    _limit(bundle)
    for number in range(20):
        outcome = publisher.publish(task_id=str(number))
        if outcome.kind != "confirmed":
            break
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


def test_some_of_many_that_are_refused(bundle: Bundle) -> None:
    """The command says which messages it has enqueued before, where it has not printed their ids."""
    bundle.declare()
    _limit(bundle)

    done = bundle.proj("enqueue", "add", "1", "2", "--count", "50", "--wait")

    assert (done.returncode, done.stdout) == (69, "")
    enqueued, error = done.stderr.splitlines()
    assert enqueued == f"Of 50 messages {len(ids(bundle))} are enqueued: {' '.join(ids(bundle))}"
    assert "the queue is full" in error


def test_control_full_queue_without_confirms(bundle: Bundle) -> None:
    """Without confirms, 21 publishes to the same queue succeed, and most of their messages are nowhere."""
    bundle.switch_off("config.py", '"confirm_publish": True', '"confirm_publish": False')
    with Publisher(bundle) as publisher:
        assert _fill(bundle, publisher).kind == "confirmed"
    assert len(ids(bundle)) < 21


@contextmanager
def _user(bundle: Bundle, **rights: str) -> Iterator[None]:
    """The bundle's programs are a user who has these rights, and no others."""
    user = f"user-{bundle.vhost}"
    bundle.management("PUT", f"users/{quote(user)}", {"password": "s3cret", "tags": ""})
    none = {"configure": "^$", "write": "^$", "read": "^$"}
    bundle.management("PUT", f"permissions/{quote(bundle.vhost)}/{quote(user)}", none | rights)
    bundle.env["CELERY_BROKER_URL"] = bundle.url.replace("guest:guest", f"{user}:s3cret")
    try:
        yield
    finally:
        bundle.management("DELETE", f"users/{quote(user)}")


def test_virtual_host_without_room(bundle: Bundle) -> None:
    """What is not allowed for another reason than the user is told in the broker's words."""
    limit = f"vhost-limits/{quote(bundle.vhost)}/max-connections"
    bundle.management("PUT", limit, {"value": 0})
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "BrokerRefused", "may not use virtual host", "limit (0) is reached")


def test_user_without_rights(bundle: Bundle) -> None:
    """A user who may not publish is told who he is and what he lacks."""
    assert bundle.proj("enqueue", "add", "1", "2").returncode == 0
    with _user(bundle), Publisher(bundle) as publisher:
        outcome = publisher.publish()
        check(outcome, "BrokerRefused", f"user 'user-{bundle.vhost}' lacks a right", "exchange 'proj'")
        assert "s3cret" not in outcome.text
    assert bundle.depth("proj.tasks") == 1


@pytest.mark.parametrize("countdown", [None, 1], ids=["now", "delayed"])
def test_user_who_may_only_publish(bundle: Bundle, countdown: int | None) -> None:
    """Where the topology is in place, the right to write to the exchanges is enough."""
    assert bundle.proj("enqueue", "add", "1", "2", "--countdown", "1").returncode == 0
    eventually("the delayed message arrives", lambda: bundle.depth("proj.tasks") == 1)
    rights = "^(proj|celery_delayed_27)$"
    with _user(bundle, write=rights), Publisher(bundle) as publisher:
        check(publisher.publish(task_id="first", countdown=countdown), "confirmed")
        check(publisher.publish(task_id="second", countdown=countdown), "confirmed")
    eventually("both arrive", lambda: bundle.depth("proj.tasks") == 3)
    assert set(ids(bundle)) >= {"first", "second"}


def test_user_who_may_only_publish_and_nothing_is_in_place(bundle: Bundle) -> None:
    """Then the publish itself says what is missing."""
    with _user(bundle, write=".*"), Publisher(bundle) as publisher:
        check(publisher.publish(), "BrokerRefused", "no exchange 'proj'")
        check(publisher.publish(countdown=1), "BrokerRefused", "no exchange 'celery_delayed_27'")


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


def test_control_unroutable_without_mandatory(bundle: Bundle) -> None:
    """Without `mandatory` the same message is confirmed, and is in no queue."""
    bundle.switch_off("enqueue.py", "mandatory = True", "mandatory = False")
    with Publisher(bundle) as publisher:
        check(publisher.publish(exchange="proj", routing_key="nowhere"), "confirmed")
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
        check(publisher.publish(), "confirmed")
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
options += [{"serializer": "x"}, {"serializer": "pickle"}, {"compression": "x"}]
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
    assert "JSON cannot carry the arguments: Object of type set is not JSON serializable" in refused[1]
    assert confirmed == [True] * 4
    assert bundle.depth("proj.tasks") == 4


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
    add.apply_async((3, 3), connection=connection)
print("true")
"""
    assert bundle.python(code) is True
    assert bundle.depth("proj.tasks") == 3


# --- The topology goes away behind a producer that has declared it


@pytest.mark.parametrize(
    ("gone", "kind"), [("proj.tasks", "queues"), ("proj", "exchanges"), ("proj.dead", "exchanges")]
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

    eventually("it is in the queue", lambda: "mine" in ids(bundle))
    assert ids(bundle).count("mine") == 1


def test_declaring_delays_leaves_no_channel_open(bundle: Bundle) -> None:
    """Whether they are missing, in place, or refused: RabbitMQ has room for 2047 channels a connection."""

    def declare() -> None:
        with kombu.Connection(bundle.env["CELERY_BROKER_URL"]) as connection:
            before = set(connection.connection.channels)
            try:
                queues.declare_delays(connection)
            finally:
                assert set(connection.connection.channels) == before

    with _user(bundle), pytest.raises(AccessRefused):
        declare()
    bundle.env["CELERY_BROKER_URL"] = bundle.url
    assert bundle.proj("enqueue", "add", "1", "2").returncode == 0
    declare()
    assert bundle.has("celery_delayed_27")
    declare()


# --- What is published again with the same id


def test_message_whose_id_is_given_may_be_a_repeat(bundle: Bundle) -> None:
    """An id that the caller gave is marked, one that was made is not; the caller's headers are kept."""
    with Publisher(bundle) as publisher:
        check(publisher.publish(), "confirmed")
        check(publisher.publish(task_id="mine", headers={"theirs": "kept"}), "confirmed")
    made, given = headers(bundle)
    assert REPEAT not in made
    assert (given[ID], given[REPEAT], given["theirs"]) == ("mine", True, "kept")


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
    code = "from proj import tasks, results; print(str(tasks.again.delay().get(timeout=30)).lower())"
    assert bundle.python(code) is True
