"""A batch: its requests, in their order; its iterable, its caller, and its processes."""

import json
from typing import Any

import pytest

from proj import queues
from tests.lib.batches import taken_headers
from tests.lib.bundle import Bundle
from tests.lib.publisher import ID, REPEAT, TIMEOUT, hurry

pytestmark = pytest.mark.used_vhost


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


def test_quick_requests_leave_little_to_the_garbage_collector(bundle: Bundle) -> None:
    """Their outcomes come one for one. With those of hundreds at once, it would run many times as often."""
    code = """
import gc, itertools, json
from proj.enqueue import batch, enqueue_many
from proj.tasks import add
def run():
    before = gc.get_stats()[0]["collections"]
    statuses = {each.status for each in enqueue_many(add.s(2, 3) for _ in range(10_000))}
    return gc.get_stats()[0]["collections"] - before, list(statuses)
run()
batch._QUICK = batch._SLOW = float("inf")  # however busy this machine is
one_for_one = run()
ended, calls = batch.Batch.ended, itertools.count(1)
batch.Batch.ended = lambda self, most=None: [] if next(calls) % 500 else ended(self)
print(json.dumps([one_for_one, run()]))
"""
    (few, statuses), (many, same) = bundle.python(code)
    assert statuses == same == ["confirmed"]
    assert 3 * few < many


def test_task_that_publishes_in_its_own_way(bundle: Bundle) -> None:
    """Its `apply_async` makes the message; where it raises, what was taken before is yielded first."""
    code = """
import json
import celery
from proj import app
from proj.enqueue import enqueue_many
class Tenant(celery.Task):
    def apply_async(self, args=None, kwargs=None, **options):
        if args[0] == 7:
            return None
        if args[0] == 8:
            raise PermissionError("a quota")
        return super().apply_async(args, kwargs, **{**options, "headers": {"tenant": "acme"}})
@app.task(base=Tenant, name="tenant")
def tenant(x: int): pass
@app.task(name="usual")
def usual(x: int): pass
ended = []
try:
    calls = [tenant.s(1), tenant.s(7), *(usual.s(n) for n in range(100)), tenant.s(8), usual.s(1)]
    for each in enqueue_many(calls):
        ended.append([each.status, str(each.error or "")])
except PermissionError as error:
    ended.append(str(error))
with app.connection_for_write() as connection:
    [other] = enqueue_many([usual.s(1).set(connection=connection)])
print(json.dumps([ended, str(other.error)]))
"""
    [first, nothing, *usual, raised], other = bundle.python(code)
    assert first == ["confirmed", ""]
    assert nothing == ["refused", "tenant: its apply_async publishes no message"]
    assert (usual, raised) == ([["confirmed", ""]] * 100, "a quota")
    assert other == "usual: many messages share one connection (leave out connection)"
    headers = taken_headers(bundle)
    assert [each.get("tenant") for each in headers] == ["acme"] + [None] * 100


def test_batch_that_an_exception_has_ended(bundle: Bundle) -> None:
    """It takes nothing any more, and can be closed."""
    code = """
import json
from proj import app
from proj.enqueue import Batch
from proj.tasks import add
def interrupt(now):
    raise KeyboardInterrupt
said = []
with Batch(app) as batch:
    batch.put(add.s(1, 2))
    said += [each.status for each in batch.settle()]
    batch._sender._send = interrupt
    for act in (lambda: [batch.put(add.s(1, 2)) for _ in range(100)], batch.settle, batch.poll, batch.settle):
        try:
            act()
        except (KeyboardInterrupt, RuntimeError) as error:
            said.append(str(error) or "interrupted")
free = [app.pool.acquire(block=True, timeout=1) for _ in range(app.pool.limit)]
print(json.dumps([said, batch.open, len(free)]))
"""
    said, still_open, free = bundle.python(code)
    assert (
        said == ["confirmed", "interrupted"] + ["the batch was ended by an exception, make another one"] * 3
    )
    assert (still_open, free) == (0, 10)
