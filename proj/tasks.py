"""The tasks.

To add one, write a function here as the two below are written; nothing else is needed. Its name is
part of every message that is under way, so a task that is renamed keeps its old name for a release.
Its annotations are checked before a message is sent, and again by the worker. A task may be executed
more than once: write it so that this does no harm.
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


#: A number as JSON has it: no text that looks like one, no truth value, no infinity.
Number = Annotated[int | float, BeforeValidator(_number)]


@app.task(name="proj.tasks.sleep_dots", pydantic=True)
def sleep_dots(text: str) -> int:
    """Sleep a second for each dot in the text, or as long as the text says, and return the seconds."""
    log.info("Received %r", text)
    seconds = seconds_of(text)
    time.sleep(seconds)
    log.info("Done after %d s", seconds)
    return seconds


@app.task(name="proj.tasks.add", pydantic=True)
def add(x: Number, y: Number) -> Number:
    """Return the sum."""
    result = x + y
    log.info("Result of %s + %s is %s", x, y, result)
    return result


def seconds_of(text: str) -> int:
    """The work in a text: the number that it is, when it is just a whole number, else its dots."""
    return int(text) if text.isdecimal() else text.count(".")
