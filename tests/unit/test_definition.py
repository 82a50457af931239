"""How the function of a task may be written."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from proj import app
from proj.definition import refuse_coroutine, result_of
from proj.enqueue import Task
from proj.errors import BadTask


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


@pytest.mark.parametrize("options", [{}, {"pydantic": True}, {"bind": True}], ids=str)
def test_async_task_is_refused(options: dict[str, Any]) -> None:
    """By its name."""
    with pytest.raises(BadTask, match=r"test\.coroutine: a task cannot be an async function"):
        app.task(name="test.coroutine", **options, lazy=False, shared=False)(_coroutine)
    assert "test.coroutine" not in app.tasks


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
