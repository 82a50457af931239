"""`celery beat`: two that are one, and runs that are neither lost nor executed twice."""

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.lib import beats, stores
from tests.lib.bundle import Bundle
from tests.lib.proxy import Network, Proxy
from tests.lib.stores import Database, stopped
from tests.lib.waiting import eventually
from tests.lib.worker import Worker


@pytest.fixture
def ticking(bundle: Bundle) -> tuple[Bundle, Worker]:
    """An entry that is due each second, and a worker that executes its runs."""
    bundle.add_task(beats.TICK)
    bundle.declare()
    return bundle, bundle.worker().ready()


def all_are_executed(bundle: Bundle, worker: Worker) -> None:
    """Each second's run, from the first one to the last, is executed.

    A beat that ends may have enqueued one more than it remembers.
    """

    def without_a_gap() -> bool:
        found = beats.executed(worker).keys()
        return any(beats.last_runs(bundle, len(found), begin) == set(found) for begin in (0, -1))

    eventually("each due run is executed", without_a_gap, seen=worker.text)


def kill(leader: Worker, proxy: Proxy) -> None:
    leader.kill()


def cut(leader: Worker, proxy: Proxy) -> None:
    proxy.network = Network.SWALLOWS_ALL


@pytest.mark.used_vhost
@pytest.mark.long
@pytest.mark.parametrize("fault", [kill, cut])
def test_another_beat_takes_over(
    ticking: tuple[Bundle, Worker], fault: Callable[[Worker, Proxy], None]
) -> None:
    """Each due run is executed, in time, and once; only around the takeover one may be enqueued twice."""
    bundle, worker = ticking
    with Proxy(bundle.node.info.port) as proxy:
        leader = bundle.beat(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port)})
        leader.says("this beat leads")
        other = bundle.beat(log="other.log")
        other.says("this one stands by")
        eventually("some are executed", lambda: len(beats.executed(worker)) >= 3)
        assert beats.repeats(worker) <= beats.takeovers(leader, other)

        fault(leader, proxy)
        other.says("this beat leads")
        before = len(beats.executed(worker))
        eventually("more are executed", lambda: len(beats.executed(worker)) >= before + 5)
    other.terminate()
    all_are_executed(bundle, worker)
    assert beats.repeats(worker) <= beats.takeovers(leader, other)


@pytest.mark.celery_docs("Periodic Tasks: more than one beat")
@pytest.mark.used_vhost
def test_only_the_leader_enqueues(ticking: tuple[Bundle, Worker]) -> None:
    """Two beats enqueue each run once; a clean end hands over at once."""
    bundle, worker = ticking
    first, second = bundle.beat(log="first.log"), bundle.beat(log="second.log")

    def leads(beat: Worker) -> bool:
        return "this beat leads" in beat.text()

    eventually("one leads", lambda: leads(first) or leads(second))
    leader, other = (first, second) if leads(first) else (second, first)
    other.says("stands by")
    eventually("some are executed", lambda: len(beats.executed(worker)) >= 2)
    assert bundle.proj("health", "--beat").returncode == 0
    assert '"runs": true' in bundle.proj("health", "--beat", "--json").stdout

    leader.terminate()
    other.says("this beat leads")
    done = len(beats.executed(worker))
    eventually("others are executed", lambda: len(beats.executed(worker)) >= done + 2)
    assert beats.repeats(worker) <= beats.takeovers(first, second)
    other.terminate()
    assert bundle.proj("health", "--beat").returncode == 69


@pytest.mark.used_vhost
def test_without_a_leader_both_enqueue(ticking: tuple[Bundle, Worker]) -> None:
    """The control: each of two beats that hold queues of their own enqueues every run."""
    bundle, worker = ticking
    own_queue = 'f"{queues.BEAT_LEADER}-{threading.get_native_id()}"'
    bundle.switch_off(
        "beat/leader.py", "queue_declare(\n            queues.BEAT_LEADER", f"queue_declare({own_queue}"
    )
    for name in ("first", "second"):
        bundle.beat(log=f"{name}.log").says("this beat leads")
    eventually("runs are repeated", lambda: beats.repeats(worker) > 2, seen=worker.text)


@pytest.mark.celery_docs("Periodic Tasks: add_periodic_task, beat_schedule")
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "proj.tasks.ad", "schedule": 1.0}, "did you mean proj.tasks.add?"),
        ({"task": "proj.tasks.add", "schedule": 1.0, "args": ("one", 2)}, "x"),
        ({"task": "proj.tasks.add", "schedule": 1.0, "args": (1,)}, "y"),
        (
            {"task": "proj.tasks.add", "schedule": 1.0, "args": (1, 2), "options": {"missed": "al"}},
            "missed is one of: once, each",
        ),
        (
            {"task": "proj.tasks.add", "schedule": 1.0, "args": (1, 2), "options": {"queue": "slow"}},
            "there is no queue 'slow'",
        ),
        ({"task": "proj.tasks.add", "schedule": "*/5 * * * *", "args": (1, 2)}, "its schedule is seconds"),
    ],
    ids=["task", "type", "missing", "option", "queue", "schedule"],
)
def test_entry_that_cannot_be_enqueued_is_refused(bundle: Bundle, entry: object, words: str) -> None:
    """At the start, in one line with the entry's name."""
    bundle.add_task(f"app.conf.beat_schedule = {{'nightly': {entry!r}}}")
    done = bundle.celery("beat")

    (line,) = [line for line in done.stderr.splitlines() if "CRITICAL" in line]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "entry 'nightly' of the schedule" in line
    assert words in line


@pytest.mark.parametrize(
    ("url", "words"),
    [("db+firebird://u:s3cret@h/d", "no database 'firebird'"), ("nosuch://u:s3cret@h", "nosuch")],
)
def test_result_store_that_cannot_be_opened_ends_beat(bundle: Bundle, url: str, words: str) -> None:
    """At its start, in one line without the password."""
    done = bundle.celery("beat", env={"CELERY_RESULT_BACKEND": url})

    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    (line,) = [line for line in done.stderr.splitlines() if "CELERY_RESULT_BACKEND cannot be used" in line]
    assert words in line
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.used_vhost
def test_argument_that_cannot_be_computed_delays_its_entry_alone(ticking: tuple[Bundle, Worker]) -> None:
    """From the start of beat until it can be; the others are enqueued meanwhile."""
    bundle, worker = ticking
    first = bundle.folder / "first"
    bundle.add_task(f"""
        from celery.beat import BeatLazyFunc
        lazy = BeatLazyFunc(lambda: int(open({str(first)!r}).read()))
        app.add_periodic_task(1.0, add.s(lazy, 2), name="lazy")
    """)
    beat = bundle.beat()
    beat.says("beat: lazy is enqueued later: an argument cannot be computed: FileNotFoundError: ")
    eventually("others are executed", lambda: len(beats.executed(worker)) >= 2, seen=beat.text)
    assert beat.text().count("lazy is enqueued later") == 1

    first.write_text("40")
    worker.says("s: 42")


@pytest.mark.used_vhost
def test_beat_is_alive_however_many_entries_are_due(bundle: Bundle) -> None:
    """It writes its heartbeat for each of them; here what takes long is to compute an argument."""
    bundle.add_task("""
        from celery.beat import BeatLazyFunc
        from proj.health import heartbeat

        def slow():
            beats = heartbeat.read_all(str(app.settings.state_dir), heartbeat.BEAT)
            with open("beats", "a") as file:
                file.writelines(f"{each.beat}\\n" for each in beats)
            time.sleep(1.1)
            return ""

        for name in "abc":
            app.add_periodic_task(1.0, sleep_dots.s(BeatLazyFunc(slow)), name=name)
    """)
    beat, seen = bundle.beat(), bundle.folder / "beats"

    eventually("entries are due", lambda: seen.exists() and seen.read_text().count("\n") > 3, seen=beat.text)
    first = seen.read_text().split()[:4]
    assert len(set(first)) == len(first)


@pytest.mark.used_vhost
def test_store_that_is_down_delays_and_does_not_skip(
    database: Database, ticking: tuple[Bundle, Worker]
) -> None:
    """Here PostgreSQL. A beat that leads goes on, and records what ran last when the store is up again."""
    bundle, worker = ticking
    beat = bundle.beat()
    eventually("some are executed", lambda: len(beats.executed(worker)) >= 2)
    start = stopped(database)
    beat.says("what ran last is recorded later: the result store does not answer")
    start()
    before = len(beats.executed(worker))
    eventually("more are executed", lambda: len(beats.executed(worker)) >= before + 3)
    beat.terminate()
    all_are_executed(bundle, worker)


@pytest.mark.used_vhost
def test_store_that_hangs_delays_no_entry(database: Database, bundle: Bundle) -> None:
    """Not even those after an entry that is due again before the store has failed to record its run."""
    bundle.add_task(beats.TICK + '\napp.add_periodic_task(1.0, sleep_dots.s(""), name="other")')
    bundle.switch_off("results/engines.py", "ANSWER_TIMEOUT: Final = 10", "ANSWER_TIMEOUT: Final = 1")
    bundle.declare()
    beat = bundle.beat()

    def each_is_published_after(begin: float) -> bool:
        lines = [line for line in beat.lines("published") if line.at > begin]
        return Counter(line.task for line in lines).keys() == {"proj.tasks.add", "proj.tasks.sleep_dots"}

    eventually("each is published", lambda: each_is_published_after(0), seen=beat.text)
    with database.server.frozen(database.name), database.server.paused():
        beat.says("the result store does not answer")
        begin = time.time()
        eventually("each is published", lambda: each_is_published_after(begin), seen=beat.text)
        assert bundle.proj("health", "--beat").returncode == 0
    assert beat.text().count("the result store does not answer") <= 2  # its connection is cut, and no new one


@pytest.mark.used_vhost
def test_entry_without_a_name_may_have_long_arguments(database: Database, bundle: Bundle) -> None:
    """Its name is the call with its arguments, and PostgreSQL refuses a text that its column cannot hold."""
    bundle.add_task("""
        for end in "ab":
            app.add_periodic_task(1.0, sleep_dots.s(300 * " " + end))
    """)
    bundle.declare()
    beat = bundle.beat()
    eventually("both are published, again", lambda: len(beat.lines("published")) >= 4, seen=beat.text)
    rows = database.execute("SELECT entry FROM proj_beat")
    assert [entry.startswith("proj.tasks.sleep_dots(") for (entry,) in rows] == [True, True]


@pytest.mark.used_vhost
def test_store_that_takes_no_new_entry_delays_it(ticking: tuple[Bundle, Worker]) -> None:
    """It can be read, and not be written: SQLite while another program writes."""
    bundle, worker = ticking
    bundle.switch_off(
        "results/engines.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 1"
    )
    # The table is there, as another beat has left it.
    bundle.python("""
from proj import app
from proj.beat.history import History
print(len(History(app).read([])))
""")
    with closing(sqlite3.connect(stores.file(bundle))) as other:
        other.execute("BEGIN IMMEDIATE")
        beat = bundle.beat()
        beat.says("what ran last is recorded later: the result store does not answer: database is locked")
        assert "published" not in beat.text()
    eventually("some are executed", lambda: len(beats.executed(worker)) >= 2, seen=beat.text)


@pytest.mark.used_vhost
def test_broker_that_is_down_delays_and_does_not_skip(ticking: tuple[Bundle, Worker]) -> None:
    """A run that was due meanwhile is enqueued later, with the id that it had."""
    bundle, worker = ticking
    with Proxy(bundle.node.info.port) as proxy:
        beat = bundle.beat(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port), "PROJ_PUBLISH_TIMEOUT": "2"})
        eventually("some are executed", lambda: len(beats.executed(worker)) >= 2)
        proxy.network = Network.SWALLOWS_ALL
        beat.says("leads no more")
        proxy.network = Network.WORKS
        eventually("it leads again", lambda: beat.text().count("this beat leads\n") >= 2)
        before = len(beats.executed(worker))
        eventually("more are executed", lambda: len(beats.executed(worker)) >= before + 3)
    beat.terminate()
    all_are_executed(bundle, worker)
