"""A batch: each request ends confirmed, refused or unknown, in its order, whatever happens meanwhile."""

import json
import threading
from collections import Counter
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from proj import queues
from tests.lib.alarm import ALARMS, alarm
from tests.lib.batches import PAUSE, enqueue, taken, taken_headers
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import ID, MAX_SIZE, REPEAT, SLACK, TIMEOUT, hurry, limit, user
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

_ONE: dict[str, object] = {}


def test_requests_of_all_kinds(bundle: Bundle) -> None:
    """Each has its outcome in its place; the messages are those that Celery publishes for the same calls."""
    code = """
import json
from celery import group
from proj import app, errors
from proj.enqueue import enqueue_many
from proj.tasks import add, sleep_dots
calls = [
    add.s(1, 2), add.s(1, y=2), add.s(1, 2).set(task_id="mine", priority=3, ignore_result=True),
    add.s(3, 4).set(headers={"theirs": "kept"}, expires=3600, link=sleep_dots.si("x")),
    app.signature("other.program", [1]),
]
wrong = [add.s("x", 2), add.s(1, 2).set(queue="nowhere"), 5, {"task": 1}, group(add.s(1, 2), add.s(3, 4)),
    add.s(1, 2).set(task_id=""), add.s(1, 2) | add.s(3), add.s(float("nan"), 1)]
for call in calls:
    call.apply_async()
outcomes = [[each.status, each.id, str(each.error or "")] for each in enqueue_many(
    call for pair in zip(calls + [add.s(5, 6)] * 3, wrong) for call in pair
)]
refused = []
for requests in (add.s(1, 2), "add", 5):
    try:
        enqueue_many(requests)
    except errors.BadInput as error:
        refused.append(str(error))
print(json.dumps([outcomes, refused]))
"""
    outcomes, refused = bundle.python(code)

    assert [status for status, _, _ in outcomes] == ["confirmed", "refused"] * 8
    reasons = [why for status, _, why in outcomes if status == "refused"]
    expected = (
        "argument x",
        "no queue 'nowhere'",
        "got 5",
        "got {",
        "more than one",
        "1 to 155",
        "more than one",
        "got nan",
    )
    for words, why in zip(expected, reasons, strict=True):
        assert words in why, reasons
        assert "\n" not in why
    assert len(refused) == 3
    # RabbitMQ 4.3 delivers a lower priority last.
    mine: list[Any] = []
    others: list[Any] = []
    for message in bundle.peek("proj.tasks"):
        (mine if message["properties"]["headers"][ID] == "mine" else others).append(message)
    messages = [*others[:2], mine[0], *others[2:6], mine[1], *others[6:]]
    assert [message["properties"]["headers"][ID] for message in messages[5:]] == [
        task_id for status, task_id, _ in outcomes if status == "confirmed"
    ]
    for ordinary, batched in zip(messages[:5], messages[5:10], strict=True):
        for message in (ordinary, batched):
            headers = message["properties"]["headers"]
            for changing in ("id", "root_id", "expires", "origin", queues.DUE_HEADER):
                headers.pop(changing)
            for changing in ("correlation_id", "reply_to", "expiration"):
                message["properties"].pop(changing, None)
            for changing in ("message_count", "redelivered", "delivery_tag"):
                message.pop(changing, None)
        assert batched == ordinary
    assert [REPEAT in message["properties"]["headers"] for message in messages[5:]] == [
        *(False, False, True, False, False, False, False, False)
    ]


def test_iterable_that_raises(bundle: Bundle) -> None:
    """What was taken from it is yielded, and then its error is raised; who stops early loses nothing.

    It raises while a whole window is in flight.
    """
    code = """
import json
from itertools import count, islice
from proj.enqueue import enqueue_many
from proj.tasks import add
def requests():
    for number in range(2_500):
        yield add.s(number, 1)
    raise LookupError("no more")
ended, raised = [], ""
try:
    for each in enqueue_many(requests()):
        ended.append(each.status)
except LookupError as error:
    raised = str(error)
some = [each.status for each in islice(enqueue_many((add.s(n, 1) for n in count()), window=5), 20)]
print(json.dumps([ended, raised, some, list(enqueue_many([]))]))
"""
    ended, raised, some, none = bundle.python(code)
    assert (ended, raised) == (["confirmed"] * 2_500, "no more")
    assert (some, none) == (["confirmed"] * 20, [])
    assert 2_520 <= bundle.depth("proj.tasks") <= 2_520 + 2 * 5


def test_threads_and_a_process_forked_in_between(bundle: Bundle) -> None:
    """Each thread has a batch of its own; a forked process cannot go on with one, and does not harm it."""
    code = """
import json, os, threading
from proj import app
from proj.enqueue import enqueue_many
from proj.tasks import add
ended = []
def run(number):
    ended.extend(each.status for each in enqueue_many((add.s(number, n) for n in range(100)), window=7))
threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
batch = enqueue_many((add.s(1, n) for n in range(100)), window=10)
ended += [next(batch).status for _ in range(20)]
read, write = os.pipe()
if not os.fork():
    try:
        list(batch)
    except RuntimeError as error:
        said = str(error)
    batch.close()
    del batch
    add.delay(1, 2)
    os.write(write, said.encode())
    os._exit(0)
os.wait()
ended += [each.status for each in batch]
free = [app.pool.acquire(block=True, timeout=1) for _ in range(app.pool.limit)]
print(json.dumps([ended, os.read(read, 1000).decode(), len(free)]))
"""
    ended, said, free = bundle.python(code)
    assert ended == ["confirmed"] * 500
    assert "forked" in said
    assert free == 10
    assert bundle.depth("proj.tasks") == 501


def test_full_queue_is_waited_for(bundle: Bundle) -> None:
    """While a worker makes room, all are confirmed; when nobody does, the others are refused in time."""
    hurry(bundle)
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

    given_up = enqueue(bundle, (200, _ONE), window=50)
    assert given_up.statuses["confirmed"] + given_up.statuses["refused"] == 200
    assert given_up.statuses["refused"] >= 100
    assert "the queue is full" in given_up.outcomes[-1].text
    assert TIMEOUT <= given_up.seconds < TIMEOUT + SLACK
    assert taken(bundle) == Counter(given_up.ids())
    bundle.management("DELETE", policy)


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
        threading.Timer(0.3, evaluate, (own.node, off)).start()

    batch = enqueue(own, (3, _ONE), PAUSE, (30, _ONE), faults=(short,))
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


def test_caller_that_takes_its_time(bundle: Bundle) -> None:
    """The time between two outcomes is not the broker's: answers that came meanwhile count."""
    hurry(bundle)
    code = f"""
import json, time
from proj.enqueue import enqueue_many
from proj.tasks import add
ended = []
for each in enqueue_many((add.s(n, 1) for n in range(40)), window=10):
    if len(ended) == 20:
        time.sleep({TIMEOUT + 0.5})
    ended.append(each.status)
print(json.dumps(ended))
"""
    assert bundle.python(code) == ["confirmed"] * 40
    assert json.dumps(bundle.depth("proj.tasks")) == "40"
