"""A batch while the broker or the network is in trouble: each request ends confirmed, refused or unknown."""

import threading
from collections import Counter
from urllib.parse import quote

import psutil
import pytest

from tests.lib.alarm import ALARMS, alarm
from tests.lib.batches import PAUSE, enqueue, taken, taken_headers
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import ANSWERED, ID, MAX_SIZE, REPEAT, SLACK, TIMEOUT, fill, hurry, limit, user
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

_ONE: dict[str, object] = {}

#: Whether a connection has sent a message in an alarm, which the broker does not read.
_BLOCKED = (
    "lists:member([{state, blocked}],"
    " [catch rabbit_reader:info(P, [state]) || P <- rabbit_networking:connections()])"
)


def test_full_queue_is_waited_for(bundle: Bundle) -> None:
    """While a worker makes room, all are confirmed; when nobody does, the others are refused in time."""
    bundle.declare()
    policy = limit(bundle)
    made_room: Counter[str] = Counter()
    stop = threading.Event()

    def drain() -> None:
        while not stop.wait(0.05):
            made_room.update(taken(bundle))

    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        waited = enqueue(bundle, (60, _ONE), window=5)
    finally:
        stop.set()
        drainer.join()
    assert waited.statuses == {"confirmed": 60}
    assert made_room + taken(bundle) == Counter(waited.ids())

    hurry(bundle, ANSWERED)
    given_up = enqueue(bundle, (200, _ONE), window=50)
    assert given_up.statuses["confirmed"] + given_up.statuses["refused"] == 200
    assert given_up.statuses["refused"] >= 100
    assert "the queue is full" in given_up.outcomes[-1].text
    assert ANSWERED <= given_up.seconds < ANSWERED + SLACK
    assert taken(bundle) == Counter(given_up.ids())
    bundle.management("DELETE", policy)


def test_full_queue_behind_a_slow_network(bundle: Bundle, proxy: Proxy) -> None:
    """What is in flight when the time is over is waited for while the broker answers, and is not unknown."""
    limit(bundle)
    hurry(bundle, ANSWERED)
    proxy.delay = TIMEOUT / 3

    def fault() -> None:
        proxy.network = Network.SLOW

    batch = enqueue(bundle, (5, _ONE), PAUSE, (20, _ONE), faults=(fault,))

    assert proxy.happened[Network.SLOW]
    assert batch.statuses == {"confirmed": len(batch.ids()), "refused": 25 - len(batch.ids())}
    assert {each.text for each in batch.outcomes if each.status == "refused"} == {batch.outcomes[-1].text}
    assert "the queue is full" in batch.outcomes[-1].text
    assert taken(bundle) == Counter(batch.ids())


def test_queue_that_is_deleted(bundle: Bundle) -> None:
    """Messages that come back are sent again once everything is declared anew; without the right, refused."""
    bundle.declare()
    path = f"queues/{quote(bundle.vhost)}/proj.tasks"

    batch = enqueue(bundle, (3, _ONE), PAUSE, (50, _ONE), faults=(lambda: bundle.management("DELETE", path),))
    assert batch.statuses == {"confirmed": 53}
    # Those before the pause were in the queue that was deleted, if they were there.
    assert set(batch.ids()[3:]) <= set(taken(bundle)) <= set(batch.ids())

    with user(bundle, write=".*"):
        bundle.management("DELETE", path)
        batch = enqueue(bundle, (30, _ONE), window=10)
    assert batch.statuses == {"refused": 30}
    assert "no queue takes the message" in batch.outcomes[0].text


def test_exchange_that_is_deleted(bundle: Bundle) -> None:
    """It is declared again, by whoever has the right, and takes all messages."""
    bundle.declare()
    path = f"exchanges/{quote(bundle.vhost)}/proj.direct"

    batch = enqueue(bundle, (3, _ONE), PAUSE, (50, _ONE), faults=(lambda: bundle.management("DELETE", path),))
    assert batch.statuses == {"confirmed": 53}
    in_queue = taken(bundle)
    assert set(in_queue) == set(batch.ids())
    # Those before the pause are sent again if they were not confirmed when the channel was closed.
    assert {in_queue[each] for each in batch.ids()[3:]} == {1}

    with user(bundle, write=".*"):
        bundle.management("DELETE", path)
        batch = enqueue(bundle, (5, _ONE))
    assert batch.statuses == {"refused": 5}
    assert "no exchange 'proj.direct'" in batch.outcomes[0].text


def test_first_delayed_message_behind_one_that_is_refused(bundle: Bundle) -> None:
    """What it needs is declared while nothing is in flight: the error of another is not its own."""
    # Of a size that is written at once.
    nowhere = {"size": 2**16, "options": {"exchange": "nowhere", "routing_key": "somewhere"}}

    batch = enqueue(bundle, (5, _ONE), (1, nowhere), (1, {"options": {"countdown": 3600}}), (5, _ONE))

    assert [each.status for each in batch.outcomes] == ["confirmed"] * 5 + ["refused"] + ["confirmed"] * 6
    assert "no exchange 'nowhere'" in batch.outcomes[5].text


def test_user_without_the_right_to_publish(bundle: Bundle) -> None:
    """Each is refused, over a channel of its own in the end."""
    bundle.declare()
    with user(bundle):
        batch = enqueue(bundle, (5, _ONE))
    assert batch.statuses == {"refused": 5}
    assert "lacks a right" in batch.outcomes[0].text


def test_message_that_is_too_large(own: Bundle) -> None:
    """It is refused, and only it: the broker closes the channel with the others in flight."""
    batch = enqueue(own, (20, _ONE), (1, {"size": MAX_SIZE + 1}), (20, _ONE))
    assert batch.statuses == {"confirmed": 40, "refused": 1}
    assert batch.outcomes[20].status == "refused"
    assert "too large" in batch.outcomes[20].text
    in_queue = taken(own)
    assert set(in_queue) == set(batch.ids())


@pytest.mark.parametrize("kind", ALARMS)
def test_alarm(own: Bundle, kind: str) -> None:
    """One that ends in time is waited for; one that lasts leaves unknown what was sent."""
    on, off = ALARMS[kind]
    own.env["PROJ_PUBLISH_TIMEOUT"] = "60"

    def short() -> None:
        evaluate(own.node, on)
        eventually("the alarm is on", lambda: kind in evaluate(own.node, "rabbit_alarm:get_alarms()"))
        ending.start()

    def end() -> None:
        try:
            eventually("a message waits", lambda: evaluate(own.node, _BLOCKED) == "true")
        finally:
            evaluate(own.node, off)

    ending = threading.Thread(target=end)
    batch = enqueue(own, (3, _ONE), PAUSE, (30, _ONE), faults=(short,))
    ending.join()
    assert batch.statuses == {"confirmed": 33}
    assert taken(own) == Counter(batch.ids())

    own.env["PROJ_PUBLISH_TIMEOUT"] = str(TIMEOUT)
    with alarm(own.node, kind):
        batch = enqueue(own, (30, _ONE), window=10)
    assert set(batch.statuses) <= {"unknown", "refused"}
    assert batch.statuses["unknown"] >= 1
    assert "since its memory or disk alarm is on" in batch.outcomes[0].text
    assert batch.seconds < TIMEOUT + SLACK
    assert set(taken(own)) <= set(batch.ids("unknown"))


@pytest.mark.parametrize("network", [Network.SWALLOWS_ALL, Network.SWALLOWS_ANSWERS])
def test_network_that_swallows(bundle: Bundle, proxy: Proxy, network: Network) -> None:
    """What was sent is unknown after the timeout, and what follows is refused at once."""

    def fault() -> None:
        proxy.network = network

    batch = enqueue(bundle, (5, _ONE), PAUSE, (500, _ONE), faults=(fault,), window=20)
    assert proxy.happened[network]
    assert [each.status for each in batch.outcomes[:5]].count("refused") == 0
    assert batch.statuses["unknown"] >= 1
    assert batch.statuses["confirmed"] <= 5
    assert batch.statuses["refused"] >= 400
    assert {each.kind for each in batch.outcomes if each.status == "refused"} == {"BrokerUnreachable"}
    assert batch.seconds < 2 * TIMEOUT + SLACK
    in_queue = set(taken(bundle))
    assert set(batch.ids()) <= in_queue <= set(batch.ids()) | set(batch.ids("unknown"))


def test_loop_that_polls_learns_of_silence(bundle: Bundle, proxy: Proxy) -> None:
    """What is not answered is unknown after the timeout, although nobody waits for it."""

    def fault() -> None:
        proxy.network = Network.SWALLOWS_ANSWERS

    batch = enqueue(bundle, (5, _ONE), PAUSE, (20, _ONE), faults=(fault,), polling=True)

    assert proxy.happened[Network.SWALLOWS_ANSWERS]
    assert set(batch.statuses) <= {"confirmed", "unknown"}
    assert batch.statuses["unknown"] >= 20
    assert TIMEOUT <= batch.seconds < TIMEOUT + SLACK


def test_loop_that_polls_learns_of_a_full_queue(bundle: Bundle) -> None:
    """What finds no room until the timeout is refused."""
    hurry(bundle, ANSWERED)
    fill(bundle)

    batch = enqueue(bundle, (50, _ONE), polling=True)

    assert batch.statuses == {"refused": 50}
    assert "the queue is full" in batch.outcomes[-1].text
    assert ANSWERED <= batch.seconds < ANSWERED + SLACK


def test_connection_that_is_cut(bundle: Bundle, proxy: Proxy) -> None:
    """What it leaves open is sent again under its id, marked as a repeat; nothing else is marked."""

    def fault() -> None:
        proxy.network = Network.CUTS_AT_ANSWER

    batch = enqueue(bundle, (20, _ONE), PAUSE, (200, _ONE), faults=(fault,), window=20)

    assert proxy.happened[Network.CUTS_AT_ANSWER] == 1
    assert batch.statuses == {"confirmed": 220}
    marks: dict[str, list[bool]] = {}
    for header in taken_headers(bundle):
        marks.setdefault(header[ID], []).append(REPEAT in header)
    assert marks.keys() == set(batch.ids())
    assert 1 <= sum(map(any, marks.values())) <= 20
    assert all(marked in ([False], [True], [False, True]) for marked in marks.values())


def test_cut_and_nobody_answers_then(bundle: Bundle, proxy: Proxy) -> None:
    """What was in flight is unknown, and what was not sent is refused."""
    proxy.afterwards = Network.SWALLOWS_ALL

    def fault() -> None:
        proxy.network = Network.CUTS_AT_ANSWER

    batch = enqueue(bundle, (5, _ONE), PAUSE, (50, _ONE), faults=(fault,), window=10)
    assert proxy.happened[Network.CUTS_AT_ANSWER] == 1
    assert proxy.happened[Network.SWALLOWS_ALL]
    assert batch.statuses["unknown"] >= 1
    assert batch.statuses["refused"] >= 20
    in_queue = set(taken(bundle))
    assert set(batch.ids()) <= in_queue <= set(batch.ids()) | set(batch.ids("unknown"))


def test_broker_that_freezes(own: Bundle) -> None:
    """Its connections stay, and it answers nothing: what was sent is unknown after the timeout."""
    process = psutil.Process(own.node.pid)

    def freeze() -> None:
        process.suspend()
        eventually("the broker is frozen", lambda: process.status() == psutil.STATUS_STOPPED)

    own.declare()
    hurry(own)
    try:
        batch = enqueue(own, (5, _ONE), PAUSE, (500, _ONE), faults=(freeze,), window=20)
    finally:
        process.resume()

    assert [each.status for each in batch.outcomes[:5]].count("refused") == 0
    assert 1 <= batch.statuses["unknown"] <= 20
    assert batch.statuses["confirmed"] <= 5
    assert batch.statuses["refused"] >= 480
    assert batch.seconds < 2 * TIMEOUT + SLACK
    in_queue = set(taken(own))
    assert set(batch.ids()) <= in_queue <= set(batch.ids()) | set(batch.ids("unknown"))


def test_broker_that_is_not_there(bundle: Bundle) -> None:
    """Nothing was sent, and that is said at once."""
    bundle.env["CELERY_BROKER_URL"] = bundle.url_at(1)
    batch = enqueue(bundle, (1_000, _ONE))
    assert batch.statuses == {"refused": 1_000}
    assert "no broker answers at" in batch.outcomes[0].text
    assert batch.seconds < SLACK
    assert {each.text for each in batch.outcomes} == {batch.outcomes[0].text}


def test_refusals_that_follow_each_other_need_no_memory(bundle: Bundle) -> None:
    """Many have one error, which does not grow with each of them."""
    bundle.env["CELERY_BROKER_URL"] = bundle.url_at(1)
    code = """
import json, traceback
from proj.enqueue import enqueue_many
from proj.tasks import add
ended = list(enqueue_many(add.s(n, 1) for n in range(500)))
errors = {id(each.error): each.error for each in ended}.values()
print(json.dumps([len(list(traceback.walk_tb(error.__traceback__))) for error in errors]))
"""
    steps = bundle.python(code)
    assert len(steps) < 100
    assert max(steps) < 10


def test_refused_after_it_has_arrived(bundle: Bundle, proxy: Proxy) -> None:
    """Its connection was lost, and its exchange is gone when it is sent again: it may be in the queue."""
    bundle.declare()
    with bundle.channel() as channel:
        channel.exchange_declare("theirs", "direct", durable=True, auto_delete=False)
        channel.queue_bind("proj.tasks", "theirs", "key")

    def swallow() -> None:
        proxy.network = Network.SWALLOWS_ANSWERS

    def lose() -> None:
        eventually("it has arrived", lambda: bundle.depth("proj.tasks") == 2)
        with bundle.channel() as channel:
            channel.exchange_delete("theirs")
        proxy.network = Network.WORKS
        proxy.cut()

    theirs = {"options": {"exchange": "theirs", "routing_key": "key"}}
    batch = enqueue(bundle, (1, _ONE), PAUSE, (1, theirs), PAUSE, faults=(swallow, lose), polling=True)

    assert [each.status for each in batch.outcomes] == ["confirmed", "unknown"]
    assert taken(bundle)[batch.outcomes[1].id] == 1


def test_message_for_several_queues_of_which_one_is_full(bundle: Bundle) -> None:
    """The others have it: it is not refused, and what is sent again is marked."""
    hurry(bundle, ANSWERED)
    with bundle.channel() as channel:
        channel.exchange_declare("theirs", "fanout", durable=True, auto_delete=False)
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare("full", durable=True, auto_delete=False, arguments=full)
        channel.queue_declare("other", durable=True, auto_delete=False)
        for queue in ("full", "other"):
            channel.queue_bind(queue, "theirs")
    theirs = {"options": {"exchange": "theirs"}}

    batch = enqueue(bundle, (3, theirs))
    code = """
import json
from proj import errors
from proj.tasks import add
try:
    add.apply_async((1, 2), exchange="theirs")
except errors.OutcomeUnknown as error:
    print(json.dumps(str(error)))
"""
    one = bundle.python(code)

    assert batch.statuses == {"confirmed": 1, "unknown": 2}
    assert "since one of its queues is full" in batch.outcomes[-1].text
    assert "since one of its queues is full" in one
    headers = taken_headers(bundle, "other")
    marks = [[REPEAT in each for each in headers if each[ID] == ended.id] for ended in batch.outcomes[1:]]
    assert all(not first and repeats and all(repeats) for first, *repeats in marks)
