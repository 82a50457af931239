"""What a task's function must be: one that does its work when it is called, and returns its result.

Celery calls a task and does not wait for a coroutine: its work would never begin, and its message be done.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from proj.errors import BadTask
from proj.logs.printable import one_line, shown

_INSTEAD = "write a plain function that calls asyncio.run(…)"


def check_function(name: str, function: Callable[..., Any]) -> None:
    """Raise `BadTask` for what cannot be made a task: what has no name, or no parameters that can be read."""
    # Celery defines a function of that name, with the parameters of this one.
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
    """Raise `BadTask` for a coroutine function or a generator function, also behind a partial or an object.

    A decorator that makes a plain function of one is the way out, so what it wraps is not looked at.
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
    """What the task returned. Raises `BadTask` when that is work that has yet to be done."""
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that it was never awaited
        raise BadTask(f"{name}: the task returned a coroutine, which nothing awaits", _INSTEAD)
    if inspect.isgenerator(result):
        raise BadTask(f"{name}: the task returned a generator, which nothing runs", "return a list")
    return result
