"""A result is read soon after it is stored, however long its task took, and waiting costs next to nothing."""

import inspect
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import celery.exceptions
import pytest
from celery import Celery, states
from celery.backends import base
from celery.result import AsyncResult, GroupResult

from proj import results
from proj.errors import NoResultYet
from proj.results import polling
from proj.results.store import open_store


class _Time:
    """A clock that moves when somebody sleeps, and stores the results of tasks when they are due."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: dict[str, float] = {}
        self.store: Any = None
        self.queries: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += max(seconds, 1e-9)  # as any clock, it moves
        for task_id in [task_id for task_id, due in self.due.items() if due <= self.now]:
            del self.due[task_id]
            self.store.store_result(task_id, task_id, states.SUCCESS)

    def pauses(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.queries)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Time:
    clock = _Time()
    monkeypatch.setattr(polling, "time", clock)
    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=clock.sleep))
    return clock


@pytest.fixture
def app(clock: _Time) -> Iterator[Any]:
    """An application whose store is polled, and counts the queries."""
    app = Celery("waiting", set_as_current=False)
    app.backend_cls = "proj.results.store:open_store+cache+memory://"
    store = clock.store = open_store(app, "cache+memory://")
    store.client.cache.clear()  # one for all applications
    read = store.get_task_meta

    def counted(*args: Any, **options: Any) -> Any:
        clock.queries.append(clock.now)
        return read(*args, **options)

    store.get_task_meta = counted
    app._backend_cache = store
    yield app
    app.close()


@pytest.mark.parametrize("took", [0.0005, 0.02, 0.5, 3, 60, 3600])
def test_result_is_read_soon_and_seldom_asked_for(app: Any, clock: _Time, took: float) -> None:
    """An eighth of the task's time later at most, half a second at most, and by few queries."""
    clock.due["it"] = clock.now + took
    began = clock.now

    assert app.AsyncResult("it").get() == "it"

    late = clock.now - began - took
    assert 0 <= late <= max(polling.SHORTEST, min(took / 8, 0.5)) * 1.001
    # Two a second, and those of the first four.
    assert len(clock.queries) <= 70 + 2 * took


def test_results_of_a_group_are_read_soon(app: Any, clock: _Time) -> None:
    """Each of them, whichever is stored first."""
    clock.due = {"a": clock.now + 0.02, "b": clock.now + 0.01, "c": clock.now + 0.1}
    group = GroupResult("group", [app.AsyncResult(name) for name in "abc"], app=app)

    assert group.join() == ["a", "b", "c"]

    assert clock.now < 1000.12


def test_interval_of_the_caller_is_kept(app: Any, clock: _Time) -> None:
    """Who asks each two seconds, or each millisecond, does."""
    for interval in (2.0, 0.001):
        clock.queries.clear()
        with pytest.raises(celery.exceptions.TimeoutError):
            app.AsyncResult("any").get(timeout=5, interval=interval)

        assert clock.pauses()[:2] == pytest.approx([interval] * 2)


@pytest.mark.parametrize("timeout", [0, -1, 0.0001, 1.7])
def test_wait_ends_at_its_timeout(app: Any, clock: _Time, timeout: float) -> None:
    """It asks at once and, if there is time left, once more at its end."""
    began = clock.now

    with pytest.raises(celery.exceptions.TimeoutError):
        app.AsyncResult("any").get(timeout=timeout)

    assert clock.now - began == pytest.approx(max(0, timeout), abs=1e-6)
    assert clock.queries[0] == began
    assert clock.queries[-1] == clock.now


def test_our_wait_does_not_begin_anew(app: Any, clock: _Time) -> None:
    """`on_interval` is called between any two queries, and costs no query."""
    clock.due["it"] = clock.now + 60
    calls = []

    found = results.wait(app, "it", on_interval=lambda: calls.append(clock.now))

    assert (found.result, found.state) == ("it", states.SUCCESS)
    assert max(clock.pauses()) == polling.LONGEST
    assert clock.pauses() == sorted(clock.pauses())
    assert max(after - before for before, after in itertools.pairwise(calls)) == polling.LONGEST


def test_our_wait_ignores_the_failure_before(app: Any, clock: _Time) -> None:
    """What was stored before the message was published is the end of another one."""
    clock.store.store_result("it", ValueError("no"), states.FAILURE)
    before = results.failure(app, "it")
    assert before

    with pytest.raises(NoResultYet, match=r"no result after 3 s"):
        results.wait(app, "it", 3, failed_before=before)
    assert clock.now == pytest.approx(1003)
    clock.due["it"] = clock.now + 0.01
    assert results.wait(app, "it", 3, failed_before=before).result == "it"
    assert clock.now < 1003.02


def test_wait_without_a_timeout_has_no_end() -> None:
    """The turns themselves end at the timeout alone."""
    turns = polling.turns(math.inf)
    assert [next(turns), next(turns)] == [None, None]


def test_disabled_store_says_so() -> None:
    """In Celery's words, instead of a wait for what never comes."""
    app = Celery("disabled", set_as_current=False)
    app.backend_cls = "proj.results.store:open_store+disabled://"
    with pytest.raises(NotImplementedError, match="No result backend"):
        app.AsyncResult("any").get()


def test_celery_waits_half_a_second() -> None:
    """A caller's own interval is told from Celery's by its value."""
    for waits in (AsyncResult.get, GroupResult.get, GroupResult.join):
        assert inspect.signature(waits).parameters["interval"].default == polling.CELERYS_INTERVAL
