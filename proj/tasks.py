"""The tasks: add yours here.

To add a task, write a function like the two below. Nothing else is needed. Messages contain the name, so keep
a renamed task's old name for a release. Its arguments are checked against its annotations before a message is
sent, and again by the worker. A task may be executed more than once, so make it idempotent.
"""

import math
import time
from typing import Annotated

from celery.utils.log import get_task_logger
from pydantic import BeforeValidator

from proj.celery import app

log = get_task_logger(__name__)


def _number(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float) and math.isfinite(value)):
        raise ValueError("expected a number")
    return value


#: A JSON number: not a text of digits, not a boolean, not infinity.
Number = Annotated[int | float, BeforeValidator(_number)]


@app.task(name="proj.tasks.sleep_dots")
def sleep_dots(text: str) -> int:
    """Sleep one second for each dot in the text, or the number of seconds that it is; return the seconds."""
    log.info("Received %r", text)
    seconds = seconds_of(text)
    time.sleep(seconds)
    log.info("Done after %d s", seconds)
    return seconds


@app.task(name="proj.tasks.add")
def add(x: Number, y: Number) -> Number:
    """Return the sum of both numbers."""
    result = x + y
    log.info("Result of %s + %s is %s", x, y, result)
    return result


def seconds_of(text: str) -> int:
    """The number in the text, if it is a whole number, else the number of its dots."""
    return int(text) if text.isdecimal() else text.count(".")
