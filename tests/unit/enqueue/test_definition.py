"""How the function of a task may be written."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from proj import app
from proj.enqueue import Task
from proj.enqueue.definition import refuse_coroutine, result_of
from proj.errors import BadInput, BadTask, BrokerUnreachable


async def _coroutine(x: int) -> int:
    return x


async def _async_generator() -> AsyncIterator[int]:
    yield 1


def _generator() -> Iterator[int]:
    yield 1


class _Callable:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


def _waiting(function: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., int]:
    @functools.wraps(function)
    def wait(*args: Any) -> int:
        return asyncio.run(function(*args))

    return wait


def _logging(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def log(*args: Any, **kwargs: Any) -> int:
        return function(*args, **kwargs)

    return log


def _plain(a, b=2):  # type: ignore[no-untyped-def]
    return a, b


@pytest.mark.parametrize(
    "function",
    [
        _coroutine,
        _async_generator,
        _generator,
        functools.partial(_coroutine, 1),
        functools.partial(functools.partial(_Callable()), 1),
        _Callable(),
        _Callable().method,
    ],
)
def test_function_that_does_not_work_when_it_is_called_is_refused(function: Callable[..., Any]) -> None:
    """With what to write instead."""
    with pytest.raises(BadTask, match=r"a.task: a task cannot be .*(asyncio.run|return a list)"):
        refuse_coroutine("a.task", function)


@pytest.mark.parametrize(
    "function", [_waiting(_coroutine), len, print, functools.partial(_waiting(_coroutine), 1)]
)
def test_function_that_waits_for_a_coroutine_is_not(function: Callable[..., Any]) -> None:
    """Nor is any other."""
    refuse_coroutine("a.task", function)


@pytest.mark.celery_docs("Tasks: async def")
@pytest.mark.parametrize("options", [{}, {"pydantic": True}, {"bind": True}, {"lazy": False}], ids=str)
def test_async_task_is_refused_when_it_is_defined(options: dict[str, Any]) -> None:
    """By the decorator, which names it."""
    decorate: Any = app.task(name="test.coroutine", **options)
    with pytest.raises(BadTask, match=r"test\.coroutine: a task cannot be an async function"):
        decorate(_coroutine)
    with pytest.raises(BadTask, match=r"_coroutine: a task cannot be an async function"):
        app.task(_coroutine)
    assert "test.coroutine" not in app.tasks


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            functools.update_wrapper(functools.partial(_plain, b=5), _plain),
            "a task is a function with a name",
        ),
        (lambda: 1, "a task is a function with a name"),
        (5, "a task is a function with a name"),
        (max, "its parameters cannot be read"),
    ],
)
def test_what_cannot_be_a_task_is_refused(function: Any, words: str) -> None:
    """In one line, where Celery would raise whatever it trips over."""
    with pytest.raises(BadTask, match=rf"test\.odd: {words}"):
        app.task(name="test.odd")(function)


def test_class_whose_run_is_async_is_refused() -> None:
    """By the name that it will have."""
    with pytest.raises(BadTask, match=r"test\.class: a task cannot be an async function"):

        class Asynchronous(Task):
            name = "test.class"

            async def run(self) -> None: ...


def test_coroutine_that_a_task_returns_is_an_error() -> None:
    """A decorator may hide until then that it is one; nothing warns of it besides."""
    with pytest.raises(BadTask, match=r"the task returned a coroutine, which nothing awaits"):
        result_of("a.task", _coroutine(1))
    with pytest.raises(BadTask, match=r"the task returned a generator"):
        result_of("a.task", _generator())
    assert result_of("a.task", 1) == 1


def _kinds(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **more: int) -> Any:
    return a, b, rest, c, d, more


def _bound(self: Task, a: int) -> Any:
    return self.name, a


@_logging
def _decorated(a: int) -> int:
    return a


class _Holder:
    @staticmethod
    def static(a: int) -> int:
        return a

    def method(self, a: int) -> int:
        return a


#: How a task is written, with a call that it takes and what comes of it, and calls that it does not take.
WRITTEN: list[tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...], dict[str, Any], Any]] = [
    (_plain, {}, (1,), {}, (1, 2)),
    (_plain, {"pydantic": True}, (1,), {"b": 3}, (1, 3)),
    (_kinds, {}, (1, 2, 3), {"c": 4, "e": 5}, (1, 2, (3,), 4, 4, {"e": 5})),
    (_kinds, {"pydantic": True}, ("1",), {"c": "4"}, (1, 2, (), 4, 4, {})),
    (_bound, {"bind": True}, (1,), {}, ("test.written", 1)),
    (_bound, {"bind": True, "pydantic": True}, (1,), {}, ("test.written", 1)),
    (_bound, {"bind": True, "autoretry_for": (KeyError,)}, (1,), {}, ("test.written", 1)),
    (_decorated, {}, (1,), {}, 1),
    (_Holder.static, {}, (1,), {}, 1),
    (_Holder().method, {}, (1,), {}, 1),
]

WRONG: list[tuple[Any, Any]] = [
    ((), None),
    ((1,) * 9, {"a": 1}),
    (("x",), {"a": object()}),
    ((None,), {"": 1}),
    (5, 5),
]


@pytest.mark.parametrize(("function", "options", "args", "kwargs", "result"), WRITTEN)
def test_task_may_be_written_in_any_way(
    function: Callable[..., Any],
    options: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> None:
    """What it takes is executed, and comes to the broker, which there is none of; all else is refused."""
    decorate: Any = app.task(name="test.written", shared=False, lazy=False, **options)
    task = decorate(function)
    try:
        assert task(*args, **kwargs) == result
        with pytest.raises(BrokerUnreachable):
            task.apply_async(args, kwargs)
        for wrong_args, wrong_kwargs in WRONG:
            with pytest.raises(BadInput):
                task.apply_async(wrong_args, wrong_kwargs)
        with pytest.raises(BadInput):
            task.s(object()).delay()
    finally:
        app.tasks.pop("test.written")


def test_time_limits_that_cannot_be_kept_are_refused() -> None:
    """At the decorator, or, where the other limit is that of the settings, by the first call."""
    with pytest.raises(BadTask, match=r"test\.limited: time_limit must be 0 or more seconds, got '5'"):
        app.task(name="test.limited", time_limit="5", shared=False, lazy=False)(_plain)
    task = app.task(name="test.limited", soft_time_limit=10**6, shared=False, lazy=False)(_plain)
    try:
        with pytest.raises(BadTask, match=r"test\.limited: soft_time_limit must not be above time_limit"):
            task.delay(1)
    finally:
        app.tasks.pop("test.limited")
