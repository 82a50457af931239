"""`proj queues` looks how long dead letters have lain, and is in nobody's way."""

import time

import pytest

from tests.lib.bundle import MANAGEMENT_OFF, Bundle
from tests.lib.snapshots import look
from tests.lib.waiting import eventually


@pytest.mark.used_vhost
def test_dead_letters_say_how_long_the_oldest_lies(bundle: Bundle) -> None:
    """To the second, since a dead letter knows when it died; also without the management API."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    died = bundle.peek("proj.dead")[0]["properties"]["headers"]["x-death"][0]["time"]
    bundle.enqueue("add", "1", "2", "--expires", "2")
    eventually("there is another one", lambda: bundle.depth("proj.dead") == 2)

    before = time.time()
    row = look(bundle, env=MANAGEMENT_OFF)["queues"]["proj.dead"]

    assert row["ready"] == 2
    assert before - died - 1 <= row["oldest"] <= time.time() - died + 1


@pytest.mark.used_vhost
def test_dead_letters_that_another_program_reads_have_no_age(bundle: Bundle) -> None:
    """Only one may look at a time; the counts come all the same."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))

    with bundle.channel() as channel:
        channel.queue_declare("proj.dead.reader", exclusive=True, durable=False, auto_delete=True)
        seen = look(bundle)

    assert (seen["queues"]["proj.dead"]["ready"], seen["queues"]["proj.dead"]["oldest"]) == (1, None)
    assert "another program is reading the dead letters" in " ".join(seen["problems"])


@pytest.mark.used_vhost
def test_dead_letters_are_looked_at_anew_when_some_have_left(bundle: Bundle) -> None:
    """A watch holds up `proj dead` no more often than it must, and not at all when there are many."""
    bundle.env |= MANAGEMENT_OFF
    for task_id in ("first", "second"):
        bundle.enqueue("add", "1", "2", "--expires", "0.1", "--id", task_id)
    eventually("both are dead letters", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead") == 2)

    looks, ages, many, problems = bundle.python("""
import json
from proj import app, dead_letters, depths
from proj.dead_letters.letter import Wanted
looks, listing = [], dead_letters.listing
def counted(*args, **options):
    looks.append(1)
    return listing(*args, **options)
dead_letters.listing = counted
seen = []
def look(reader):
    snapshot = reader.snapshot()
    seen.append(len(looks))
    return snapshot.depths[0].oldest, snapshot.problems
with depths.Reader(app, ["proj.dead"]) as reader:
    ages = [look(reader)[0], look(reader)[0]]
    dead_letters.drop(app, Wanted(ids={"first"}))
    ages.append(look(reader)[0])
depths.reader._MAX_DEAD = 0
with depths.Reader(app, ["proj.dead"]) as reader:
    many, problems = look(reader)
print(json.dumps([seen, ages, many, problems]))
""")

    assert looks == [1, 1, 2, 2]
    assert None not in ages
    assert many is None
    assert "there are more than 0 messages (see: proj dead list --limit 1)" in " ".join(problems)


def test_dead_letters_are_not_looked_at_when_that_would_declare(bundle: Bundle) -> None:
    """A queue of ours that was deleted stays so."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    with bundle.channel() as channel:
        channel.queue_delete("proj.tasks")

    seen = look(bundle)

    assert seen["queues"]["proj.tasks"]["ready"] is None
    assert seen["queues"]["proj.dead"]["oldest"] is None
    assert "part of the topology is missing" in " ".join(seen["problems"])
    assert not bundle.has("proj.tasks")
