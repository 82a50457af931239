"""One trace from a publisher through its workers to the end, as the spans of all their processes show it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.logged import MOODY
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: As docs/tracing.md, but that spans go to a file, each when it ends.
TRACED = """
    def _trace():
        from opentelemetry import trace
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

        provider = TracerProvider()
        file = open("spans", "a")
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        CeleryInstrumentor().instrument()
    _trace()
"""

BATCH = """
from proj.enqueue import enqueue_many
from proj.tasks import add
print([str(each.status) for each in enqueue_many([add.s(1, 2)])].count("confirmed"))
"""


def _spans(folder: Path, task: str) -> list[dict[str, Any]]:
    """Those about the task, in the order in which they began."""
    lines = (folder / "spans").read_text().splitlines()
    found = [span for span in map(json.loads, lines) if span["name"].endswith(task)]
    return sorted(found, key=lambda span: span["start_time"])


def test_one_trace_from_the_publisher_to_the_dead_letter(bundle: Bundle) -> None:
    """Through a retry, with the outcome of each publish; a batch has the outcomes of its messages too."""
    bundle.add_task(MOODY)
    bundle.add_task(TRACED)
    bundle.worker()
    bundle.enqueue("task", "proj.tasks.moody", "--id", "it")
    dead.await_count(bundle, 1)

    spans = eventually("all are written", lambda: _all(_spans(bundle.folder, "moody"), 7))
    assert [span["name"].removesuffix("proj.tasks.moody").strip(" /") for span in spans] == [
        *("publish", "apply_async", "run"),
        *("publish", "apply_async", "run"),
        "dead letter",
    ]
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    parents = [spans[number]["context"]["span_id"] for number in (0, 1, 2, 3, 4)]
    assert [span["parent_id"] for span in spans] == [None, *parents, parents[4]]
    outcomes = [span["attributes"].get("proj.publish.outcome") for span in spans]
    assert outcomes == ["confirmed", None, None, "confirmed", None, None, None]
    assert spans[-1]["attributes"]["proj.dead_letter.reason"] == "failed"
    errors = [span["status"]["status_code"] for span in spans[-2:]]
    assert errors == ["ERROR", "ERROR"]

    assert bundle.python(BATCH) == 1
    composed, *others = eventually("it is executed", lambda: _all(_spans(bundle.folder, "add"), 3))
    by_name = {span["name"]: span for span in others}
    settled = by_name["publish proj.tasks.add"]
    assert settled["attributes"]["proj.publish.outcome"] == "confirmed"
    assert settled["context"]["trace_id"] == composed["context"]["trace_id"]


def _all(spans: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return spans if len(spans) == count else []
