"""How the queue of dead letters is read: nothing changes, nothing is lost, and little is held."""

import signal
from typing import Any

import amqp
import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost


def _without_counts(message: dict[str, Any]) -> dict[str, Any]:
    """What `show` says, but for the broker's own counts of how often it was handed out."""
    counts = {"x-delivery-count", "x-acquired-count"}
    headers = {name: value for name, value in message["headers"].items() if name not in counts}
    return message | {"headers": headers}


def test_looking_changes_nothing_however_often(bundle: Bundle) -> None:
    """After 10 looks of every kind each message is there, unchanged, in its place."""
    ids = dead.expire(bundle, 30)
    before = [_without_counts(dead.show(bundle, task_id)) for task_id in (ids[0], ids[-1])]

    limits = [1 + number * 7 % 40 for number in range(10)]
    looks = bundle.python(f"""
import json
from proj import app
from proj.dead_letters import Wanted, listing
print(json.dumps([[letter.id for letter in listing(app, Wanted(), limit)] for limit in {limits}]))
""")
    assert looks == [ids[:limit] for limit in limits]
    assert bundle.depth("proj.dead") == 30
    assert bundle.proj("dead", "redrive", "--all", "--dry-run").stderr == "30 would be redriven\n"
    assert bundle.proj("dead", "drop", "--all", "--dry-run").stderr == "30 would be dropped\n"
    assert bundle.proj("dead", "list", "--task", "nothing").returncode == 0

    assert dead.ids(bundle) == ids
    assert [_without_counts(dead.show(bundle, task_id)) for task_id in (ids[0], ids[-1])] == before


def test_looking_without_reading_on_turns_the_order(bundle: Bundle) -> None:
    """The control for the test above: the broker itself does not keep the order."""
    ids = dead.expire(bundle, 9)

    turned = bundle.python("""
import json
from proj import app, dead_letters
from proj.dead_letters.reader import _Reader
_Reader._read_before = property(lambda self: False, lambda self, value: None)
looks = [[letter.id for letter in dead_letters.listing(app, dead_letters.Wanted(), 3)] for _ in range(2)]
dead_letters.listing(app, dead_letters.Wanted(), 2)
print(json.dumps([letter.id for letter in dead_letters.listing(app, dead_letters.Wanted(), 9)]))
""")

    assert sorted(turned) == ids
    assert turned != ids


def test_list_reads_no_more_than_it_shows(bundle: Bundle) -> None:
    """Of 500 dead letters a list of 50 takes 50, and a few more for each time that it is repeated."""
    dead.expire_many(bundle, 500)

    assert len(dead.rows(bundle)) == 50
    assert sum(bool(message.delivery_info["redelivered"]) for message in _take_all(bundle)) == 50


def test_a_list_holds_only_what_it_shows(bundle: Bundle) -> None:
    """Of large dead letters that do not match, one is in memory at a time."""
    size, count = 2 * 2**20, 20
    dead.publish(bundle, b"x" * size, "proj.dead", count=count)
    dead.await_count(bundle, count)

    found, redriven, peak = bundle.python("""
import json, tracemalloc
from proj import app, dead_letters
app.connection_for_write().connect()  # what is imported does not matter
tracemalloc.start()
found = dead_letters.listing(app, dead_letters.Wanted(task="no.such"), 3)
redriven = dead_letters.redrive(app, dead_letters.Wanted(task="no.such")).done
print(json.dumps([found, redriven, tracemalloc.get_traced_memory()[1]]))
""")
    assert (found, redriven) == ([], 0)
    assert size < peak < 5 * size
    assert bundle.depth("proj.dead") == count


def test_repeated_lists_read_little_more(bundle: Bundle) -> None:
    """Ten lists of 50 take fewer than 70 of 500 dead letters."""
    dead.expire_many(bundle, 500)

    lengths = bundle.python("""
import json
from proj import app
from proj.dead_letters import Wanted, listing
print(json.dumps([len(listing(app, Wanted(), 50)) for _ in range(10)]))
""")
    assert lengths == [50] * 10
    assert sum(bool(message.delivery_info["redelivered"]) for message in _take_all(bundle)) < 70


def _take_all(bundle: Bundle) -> list[amqp.Message]:
    messages = dead.take(bundle, "proj.dead")
    assert len(messages) == 500
    return messages


def _impatient(bundle: Bundle) -> None:
    """Let the copy wait for another reader no longer than a look takes."""
    bundle.switch_off("dead_letters/reader.py", "_READER_INTERVAL = 5.0, 0.25", "_READER_INTERVAL = 0.5, 0.1")


def test_one_program_at_a_time(bundle: Bundle) -> None:
    """While one looks, another is told so and sees nothing, instead of half."""
    _impatient(bundle)
    ids = dead.expire(bundle, 4)
    code = """
import sys
from proj import app
from proj.dead_letters.reader import _reading
with _reading(app) as reader:
    print(next(reader.chunks(2, lambda letter: None)), flush=True)
    sys.stdin.read()
"""
    with bundle.start_python(code, text=False) as looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"2\n"
        refused = [
            bundle.proj("dead", *command)
            for command in (["list"], ["redrive", "--all"], ["drop", "--all", "--yes"])
        ]
        looking.communicate(timeout=90)

    for done in refused:
        assert (done.returncode, done.stdout) == (69, ""), done
        assert done.stderr == (
            "Error: another program is reading the dead letters (try again when it has ended)\n"
        )
    assert dead.ids(bundle) == ids


def test_foreign_consumer_is_told(bundle: Bundle) -> None:
    """A program of someone else that consumes the queue would take half of it, so nothing is read."""
    _impatient(bundle)
    dead.expire(bundle, 4)
    with bundle.channel() as channel:
        channel.basic_qos(0, 1, False)
        channel.basic_consume("proj.dead")
        done = bundle.proj("dead", "list")

    assert done.returncode == 69
    assert "another program is reading" in done.stderr


def test_look_that_is_killed_loses_nothing(bundle: Bundle) -> None:
    """A program that is killed while it looks gives everything back."""
    ids = dead.expire(bundle, 4)

    killed = dead.killed_at(bundle, "give_back", "dead_letters.listing(app, dead_letters.Wanted(), 3)")

    assert killed.returncode == -signal.SIGKILL
    dead.await_count(bundle, 4)
    assert sorted(dead.ids(bundle)) == ids
