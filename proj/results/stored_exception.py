"""Writes exceptions to the result store with their text, and rebuilds them when they are read.

Celery writes the class and its `args`, and rebuilds the exception by calling the class with them. This fails
for a class whose constructor takes other arguments than its `args`, such as `json.JSONDecodeError`.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final

from celery.utils.serialization import UnpickleableExceptionWrapper, create_exception_cls

from proj.logs.printable import shortened

#: Key of the exception's text, beside Celery's `exc_type`, `exc_message` and `exc_module`.
TEXT: Final = "exc_text"

#: Characters of an exception's text, and of its traceback, that are stored.
LONGEST_TEXT: Final = 2**20

#: Attribute of a rebuilt exception that holds its original text.
_TEXT_ATTRIBUTE: Final = "_proj_stored_text"


def original(error: BaseException) -> BaseException:
    """The exception that the task raised, where Celery has replaced it by one that can be pickled.

    The replacement has a base class and the same arguments, or is a wrapper.
    """
    raised = sys.exc_info()[1]
    if raised is None or raised is error:
        return error
    is_base = type(error) in type(raised).__mro__ and error.args == raised.args
    return raised if is_base or isinstance(error, UnpickleableExceptionWrapper) else error


def with_text(stored: Any, error: BaseException) -> Any:
    """What Celery stores of the exception, and its text, which `args` need not contain; both shortened."""
    if isinstance(stored, dict):
        stored = {**stored, "exc_message": _shortened(stored["exc_message"])}
        with suppress(Exception):  # a user's class may raise anything
            stored[TEXT] = shortened(str(error), LONGEST_TEXT)
    return stored


def _shortened(args: Sequence[Any]) -> Sequence[Any]:
    """The arguments of an exception, or their shortened texts when they are too long."""
    texts = [arg if isinstance(arg, str) else repr(arg) for arg in args]
    if sum(map(len, texts)) <= LONGEST_TEXT:
        return args
    return [shortened(text, LONGEST_TEXT // len(texts)) for text in texts]


def read(stored: Any, rebuilt: Any) -> Any:
    """The exception to raise: Celery's, or one of the stored class where Celery made a bare `Exception`.

    Where Celery made none, as for `update_state(state="FAILURE", meta={…})`, one whose argument is what is
    stored.
    """
    if not isinstance(rebuilt, BaseException):
        return Exception(stored)
    if not isinstance(stored, Mapping) or "exc_type" not in stored:
        return rebuilt
    if type(rebuilt) is Exception and stored["exc_type"] != "Exception":
        rebuilt = _stand_in(stored)
    if isinstance(stored.get(TEXT), str):
        with suppress(AttributeError):
            setattr(rebuilt, _TEXT_ATTRIBUTE, stored[TEXT])
    return rebuilt


def words(error: BaseException) -> str:
    """Type and text, as in the last line of a traceback."""
    text = getattr(error, _TEXT_ATTRIBUTE, None)
    return f"{type(error).__name__}: {error if text is None else text}"


def _stand_in(stored: Mapping[str, Any]) -> BaseException:
    """An exception of a subclass that has the stored class's name and takes any arguments."""
    name, module = str(stored["exc_type"]), stored.get("exc_module")
    message = stored.get("exc_message", ())
    args = tuple(message) if isinstance(message, list | tuple) else (message,)
    if not args and TEXT in stored:
        args = (stored[TEXT],)
    short = name.rpartition(".")[2]
    with suppress(Exception):  # a user's class may raise anything
        parent = attrgetter(name)(sys.modules[module or ""])
        takes_any = {"__init__": BaseException.__init__, "__str__": BaseException.__str__}
        found: BaseException = type(short, (parent,), {"__module__": module, **takes_any})(*args)
        return found
    unknown: BaseException = create_exception_cls(short, module)(*args)
    return unknown
