"""Calls that people make, between a program of theirs, a broker and a worker."""

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost

TASKS = """
    from collections.abc import Iterable
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from reports import Report

    @app.task(name="proj.tasks.twice")
    def twice(numbers: Iterable[int]) -> "Report":
        return [sum(numbers), sum(numbers), type(numbers).__name__]

    @app.task(name="proj.tasks.anything")
    def anything(value):
        return repr(value)

    @app.task(name="proj.tasks.hidden")
    def hidden(value):
        async def coroutine():
            return 1
        return coroutine()
"""


def test_call_arrives_as_it_was_made_or_is_refused(bundle: Bundle) -> None:
    """What is iterated twice, what JSON has no type for, and what would lose a value."""
    bundle.add_task(TASKS)
    worker = bundle.worker()
    answers = bundle.python("""
import datetime, decimal, enum, json
from proj.tasks import anything, hidden, twice
def told(call, argument):
    try:
        return call.delay(argument).get(timeout=60)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
print(json.dumps([
    told(twice, [1, 2]),
    told(twice, [1, "two"]),
    told(anything, (1, {"two": b"\\xff"})),
    told(anything, {1: "a", "1": "b"}),
    told(anything, {"__type__": "bytes", "__value__": "x"}),
    told(hidden, 1),
]))
""")

    assert answers[0] == [3, 3, "list"]
    assert answers[1].startswith("BadArguments: proj.tasks.twice: argument numbers.1: ")
    assert answers[2] == "[1, {'two': b'\\xff'}]"
    assert answers[3:5] == [
        "BadArguments: proj.tasks.anything: argument value: {1: 'a', '1': 'b'} would arrive as {'1': 'b'}",
        "BadArguments: proj.tasks.anything: argument value: {'__type__': 'bytes', '__value__': 'x'}"
        " would arrive as b'x'",
    ]
    assert "the task returned a coroutine, which nothing awaits" in answers[5]
    assert "never awaited" not in worker.text()
    dead.await_count(bundle, 1)  # the end is stored first


def test_annotation_that_cannot_be_used_is_reported_at_the_start(bundle: Bundle) -> None:
    """The worker ends, and a publish is refused: with the task, the argument and the annotation."""
    bundle.add_task("""
        @app.task(name="proj.tasks.unknown")
        def unknown(value: "Nowhere") -> None: ...
    """)
    words = "proj.tasks.unknown: the annotation of argument value cannot be used: Nowhere"
    worker = bundle.worker()
    done = bundle.proj("enqueue", "task", "proj.tasks.unknown", "1")

    assert (done.returncode, done.stderr.count("\n")) == (65, 1)
    assert done.stderr.startswith(f"Error: {words}")
    file = bundle.folder / "copy/proj/tasks.py"
    line = file.read_text().splitlines().index('@app.task(name="proj.tasks.unknown")') + 1
    assert worker.ends() == 2
    assert f"{file}:{line}: {words}" in worker.text()
    assert "Traceback" not in worker.text()


def test_options_are_kept_or_refused(bundle: Bundle) -> None:
    """A retry whose moment is over runs now; headers up to their limit travel, with all that Celery adds."""
    bundle.add_task("""
        @app.task(name="proj.tasks.late", bind=True)
        def late(self, **when):
            from datetime import UTC, datetime
            if not self.request.retries:
                raise self.retry(eta=datetime(2020, 1, 1, tzinfo=UTC)) if not when else self.retry(**when)
            return self.request.retries

        @app.task(name="proj.tasks.header", bind=True)
        def header(self, *args):
            return len(self.request.big)
    """)
    bundle.worker()
    answers = bundle.python("""
import json
from proj.enqueue.options import MAX_HEADERS
from proj.tasks import header, late
args, most = ["\U0001f600" * 2000] * 3, MAX_HEADERS - 20
def told(call):
    try:
        return call().get(timeout=60)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
print(json.dumps([
    told(lambda: late.delay()),
    told(lambda: late.delay(countdown=-1)),
    told(lambda: header.apply_async(args, headers={"big": "x" * most}, compression="gzip")) - most,
    told(lambda: header.apply_async(args, headers={"big": "x" * 200_000})),
    told(lambda: header.apply_async(args, headers={f"{n}": n for n in range(20_000)})),
]))
""")

    assert answers[:3] == [1, 1, 0]
    for answer in answers[3:]:
        assert answer.startswith("BadInput: proj.tasks.header: headers may take 114,688 bytes, and take 2")
