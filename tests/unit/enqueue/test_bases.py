"""A task checks its arguments whatever base it was made with; what its own base says stays."""

from collections.abc import Iterator
from typing import Any

import celery
import pytest

from proj import app, enqueue
from proj.enqueue.app import App
from proj.errors import TRANSIENT, BadArguments
from proj.worker.task import Task


class Base(celery.Task):
    """A base that knows nothing of ours."""

    max_retries = 7
    autoretry_for = (LookupError,)

    def greeting(self) -> str:
        return "hello"


class Called(celery.Task):
    """A base that executes the task itself, as Flask's documentation has it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class ByClass(celery.Task):
    """A task as Celery 1.0 had them."""

    name = "test.by_class"

    def run(self, x: int) -> int:
        return x


@pytest.fixture
def tasks() -> Iterator[list[Any]]:
    def function(x: int) -> int:
        return x

    yield [
        app.task(function, name="test.plain", base=celery.Task, shared=False),
        app.task(function, name="test.derived", base=Base, shared=False),
        app.register_task(ByClass()),
        app.task(function, name="test.called", base=Called, shared=False),
    ]
    for name in ("test.plain", "test.derived", "test.by_class", "test.called"):
        app.tasks.pop(name, None)


# upstream: not reported; remove when Celery registers shared tasks with the application's base
def test_base_without_our_checks(tasks: list[Any]) -> None:
    """Wrong arguments are refused before anything is sent, and before the task begins."""
    for task in tasks:
        with pytest.raises(BadArguments, match=r"argument x"):
            task.delay("one")
        with pytest.raises(BadArguments, match=r"argument x is missing"):
            task()
        assert task(1) == 1


def test_base_of_all_tasks_of_an_application() -> None:
    """Whoever replaces `app.Task`, as Flask's documentation has it, keeps the checks."""
    other = App("other", set_as_current=False)
    other.Task = Called

    @other.task(name="test.of_another", shared=False)
    def function(x: int) -> int:
        return x

    with pytest.raises(BadArguments, match=r"argument x"):
        function("one")  # type: ignore[arg-type]
    assert function(1) == 1


def test_what_a_base_says_comes_first(tasks: list[Any]) -> None:
    """Its attributes and methods are kept; what it does not say is as for any other task."""
    plain, derived, by_class, called = tasks
    assert (derived.max_retries, derived.greeting()) == (7, "hello")
    for task in (plain, by_class, called):
        assert (task.max_retries, task.autoretry_for) == (5, TRANSIENT)
    assert {task.Request for task in tasks} == {"proj.worker.request:Request"}


def test_task_that_is_sent_by_its_name_is_checked() -> None:
    """As by `.delay()`, when the program has it."""
    assert "proj.tasks.add" in enqueue.own_tasks(app)
    with pytest.raises(BadArguments, match="argument x: expected a number"):
        app.send_task("proj.tasks.add", ("2", 3))
    with pytest.raises(BadArguments, match="a list or a tuple, got '23'"):
        app.send_task("proj.tasks.add", "23")


def _by_class(base: type[celery.Task], run: Any) -> Any:
    return app.register_task(type("Retried", (base,), {"name": "test.retried", "run": run}))


@pytest.mark.parametrize(
    "make",
    [
        lambda run: app.task(run, name="test.retried", bind=True, autoretry_for=[LookupError], shared=False),
        lambda run: app.task(run, name="test.retried", bind=True, base=Base, shared=False),
        lambda run: _by_class(Base, run),
        lambda run: _by_class(type("Ours", (Task,), {"autoretry_for": [LookupError]}), run),
    ],
    ids=["option", "base", "class", "class of ours"],
)
@pytest.mark.parametrize("error", [LookupError, ConnectionError, TimeoutError])
def test_task_adds_to_the_errors_that_are_retried(make: Any, error: type[Exception]) -> None:
    """Transient ones are retried beside its own."""
    attempts: list[int] = []

    def run(self: Any) -> str:
        attempts.append(self.request.retries)
        if not self.request.retries:
            raise error
        return "done"

    task = make(run)
    try:
        assert task.apply().get() == "done"
    finally:
        app.tasks.pop("test.retried")

    assert attempts == [0, 1]


def test_task_may_be_retried_for_nothing() -> None:
    def run() -> None:
        raise ConnectionError

    task = app.task(run, name="test.retried", autoretry_for=(), shared=False)
    try:
        assert task.apply().state == "FAILURE"
    finally:
        app.tasks.pop("test.retried")
