"""An exception in the result store: what is written of it, and what it is read as.

Celery writes the class and its `args`, and reads an exception by calling the class with them. A class that
takes other arguments than it keeps, as `json.JSONDecodeError` does, cannot be called so.
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

#: Characters that are stored of what an exception says, and of its traceback.
LONGEST_TEXT: Final = 2**20

#: Attribute of an exception that was read: the text that it had.
_TEXT_ATTRIBUTE: Final = "_proj_stored_text"


def original(error: BaseException) -> BaseException:
    """The exception that the task raised, where Celery has put another in its place that can be pickled.

    That is one of a base class, with the same arguments, or a wrapper.
    """
    raised = sys.exc_info()[1]
    if raised is None or raised is error:
        return error
    is_base = type(error) in type(raised).__mro__ and error.args == raised.args
    return raised if is_base or isinstance(error, UnpickleableExceptionWrapper) else error


def with_text(stored: Any, error: BaseException) -> Any:
    """What Celery stores of the exception, and its text, which not every `args` tells; both shortened."""
    if isinstance(stored, dict):
        stored = {**stored, "exc_message": _shortened(stored["exc_message"])}
        with suppress(Exception):  # the class is anyone's
            stored[TEXT] = shortened(str(error), LONGEST_TEXT)
    return stored


def _shortened(args: Sequence[Any]) -> Sequence[Any]:
    """The arguments of an exception, as texts where they would be longer than one may be."""
    texts = [arg if isinstance(arg, str) else repr(arg) for arg in args]
    if sum(map(len, texts)) <= LONGEST_TEXT:
        return args
    return [shortened(text, LONGEST_TEXT // len(texts)) for text in texts]


def read(stored: Any, rebuilt: Any) -> Any:
    """The exception to be raised: Celery's, or where that is a mere `Exception`, one of the stored class."""
    if not isinstance(stored, Mapping) or "exc_type" not in stored:
        return rebuilt
    if type(rebuilt) is Exception and stored["exc_type"] != "Exception":
        rebuilt = _stand_in(stored)
    if isinstance(stored.get(TEXT), str):
        with suppress(AttributeError):
            setattr(rebuilt, _TEXT_ATTRIBUTE, stored[TEXT])
    return rebuilt


def words(error: BaseException) -> str:
    """Type and text, as the last line of a traceback has them."""
    text = getattr(error, _TEXT_ATTRIBUTE, None)
    return f"{type(error).__name__}: {error if text is None else text}"


def _stand_in(stored: Mapping[str, Any]) -> BaseException:
    """An exception of a subclass that has the class's name, and takes any arguments."""
    name, module = str(stored["exc_type"]), stored.get("exc_module")
    said = stored.get("exc_message", ())
    args = tuple(said) if isinstance(said, list | tuple) else (said,)
    if not args and TEXT in stored:
        args = (stored[TEXT],)
    short = name.rpartition(".")[2]
    with suppress(Exception):  # the class is anyone's
        parent = attrgetter(name)(sys.modules[module or ""])
        takes_any = {"__init__": BaseException.__init__, "__str__": BaseException.__str__}
        found: BaseException = type(short, (parent,), {"__module__": module, **takes_any})(*args)
        return found
    unknown: BaseException = create_exception_cls(short, module)(*args)
    return unknown
