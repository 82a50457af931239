"""Spans of OpenTelemetry, while its instrumentation of Celery is on: of what that does not know.

`opentelemetry-instrumentation-celery` makes a span of each publish that ends well, and of each attempt. Added
here are how each publish ended, and the dead letters. A program that does not trace imports nothing of it.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from proj.errors import OutcomeUnknown, ProjError

#: Attributes: `confirmed`, `refused` or `unknown`; and the reason of a dead letter, as in the logs.
OUTCOME: Final = "proj.publish.outcome"
REASON: Final = "proj.dead_letter.reason"

#: As the instrumentation names them.
_ID: Final = "messaging.message.id"
_TASK: Final = "celery.task_name"

_INSTRUMENTATION: Final = "opentelemetry.instrumentation.celery"


def _are_made() -> bool:
    loaded = sys.modules.get(_INSTRUMENTATION)
    return loaded is not None and loaded.CeleryInstrumentor().is_instrumented_by_opentelemetry


@contextmanager
def publishing(name: str, task_id: str) -> Iterator[None]:
    """Make a span of the publish in the block, with all of its attempts and its outcome."""
    if not _are_made():
        yield
        return
    from opentelemetry import trace

    attributes = {_TASK: name, _ID: task_id}
    with trace.get_tracer("proj").start_as_current_span(f"publish {name}", attributes=attributes) as span:
        try:
            yield
        except ProjError as error:
            span.set_attribute(OUTCOME, "unknown" if isinstance(error, OutcomeUnknown) else "refused")
            raise
        span.set_attribute(OUTCOME, "confirmed")


@contextmanager
def attempt(name: str, task_id: str) -> Iterator[None]:
    """End the instrumentation's span of an attempt to publish that raises."""
    try:
        yield
    except BaseException as error:
        if _are_made():
            _end(name, task_id, error)
        raise


def _end(name: str, task_id: str, error: BaseException) -> None:
    from opentelemetry.instrumentation.celery import utils

    task = utils.retrieve_task_from_sender({"sender": name})
    # upstream: not reported; remove when the instrumentation ends the span of a publish that raises
    if found := utils.retrieve_context(task, task_id, is_publish=True):
        utils.detach_context(task, task_id, is_publish=True)
        _, activation, _ = found
        activation.__exit__(type(error), error, error.__traceback__)


def published(message: Any, name: str, task_id: str, outcome: str) -> None:
    """Make a span of the outcome of a message of a batch, whose own span ended when it was made."""
    if not _are_made():
        return
    headers = message.properties.get("application_headers")
    if isinstance(headers, Mapping):
        attributes = {_TASK: name, _ID: task_id, OUTCOME: outcome}
        _mark(f"publish {name}", headers, attributes, is_error=outcome != "confirmed")


def dead_lettered(headers: Mapping[str, Any], name: str, task_id: str, reason: str) -> None:
    """Make a span of a dead letter, in the trace of its message."""
    if _are_made():
        _mark(f"dead letter {name}", headers, {_TASK: name, _ID: task_id, REASON: reason}, is_error=True)


def _mark(span_name: str, headers: Mapping[str, Any], attributes: dict[str, str], *, is_error: bool) -> None:
    from opentelemetry import propagate, trace

    carrier = {header: value for header, value in headers.items() if isinstance(value, str)}
    context = propagate.extract(carrier)
    span = trace.get_tracer("proj").start_span(span_name, context, attributes=attributes)
    if is_error:
        span.set_status(trace.StatusCode.ERROR)
    span.end()
