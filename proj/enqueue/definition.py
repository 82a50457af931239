"""Checks that a task's function does its work when it is called, and returns its result.

Celery does not await a coroutine: the work would never begin, and the message would be acknowledged.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from proj.errors import BadTask
from proj.logs.printable import one_line, shown

_INSTEAD = "write a plain function that calls asyncio.run(…)"

#: Types of most results, which need no further look.
_PLAIN = frozenset({type(None), bool, int, float, str, list, dict})


def check_function(name: str, function: Callable[..., Any]) -> None:
    """Raise `BadTask` for a function without a name or without readable parameters, and for a coroutine."""
    # Celery defines a function with this name and these parameters.
    named = str(getattr(function, "__name__", "")).isidentifier()
    if isinstance(function, functools.partial) or not named:
        raise BadTask(f"{name}: a task is a function with a name, got {shown(function)}", "write it with def")
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise BadTask(
            f"{name}: its parameters cannot be read: {one_line(error)}", "wrap it in a function"
        ) from error
    refuse_coroutine(name, function)


def refuse_coroutine(name: str, function: Callable[..., Any]) -> None:
    """Raise `BadTask` for a coroutine or generator function, including a partial or a callable object of one.

    What a decorator wraps is not checked: a decorator may turn it into a plain function.
    """
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", function)  # noqa: B004  of an object, whose class defines it
    for each in (function, call):
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise BadTask(f"{name}: a task cannot be an async function: nothing would await it", _INSTEAD)
        if inspect.isgeneratorfunction(each):
            raise BadTask(f"{name}: a task cannot be a generator: nothing would run it", "return a list")


def result_of(name: str, result: Any) -> Any:
    """What the task returned. Raises `BadTask` for a coroutine or a generator."""
    if type(result) in _PLAIN:
        return result
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that it was never awaited
        raise BadTask(f"{name}: the task returned a coroutine, which nothing awaits", _INSTEAD)
    if inspect.isgenerator(result):
        raise BadTask(f"{name}: the task returned a generator, which nothing runs", "return a list")
    return result
