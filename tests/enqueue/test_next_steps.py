"""A worker publishes the next step of a task without checking its arguments: the task has done its work."""

import pytest

from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

_TASKS = """
    @app.task(name="test.text")
    def text() -> str:
        return "no number"

    @app.task(name="test.infinite")
    def infinite() -> float:
        return math.inf

    @app.task(name="test.number", pydantic=True)
    def number(value: Number) -> Number:
        return value

    @app.task(name="test.anything")
    def anything(value: object) -> None:
        pass

    @app.task(name="test.again", bind=True)
    def again(self, value: object) -> None:
        raise self.retry(args=(1, "too many"), countdown=0)

    @app.task(name="test.careless")
    def careless() -> str:
        try:
            number.delay("no number")
        except Exception as error:
            return type(error).__name__
        return "published"
"""

#: How a second step comes to get what it refuses; `first` and `second` are the ids of both steps.
CALLS = {
    "chain": "chain(text.s().set(task_id=first), number.s().set(task_id=second)).delay()",
    "too many arguments": "chain(text.s().set(task_id=first), number.s(1).set(task_id=second)).delay()",
    "not in JSON": "chain(infinite.s().set(task_id=first), number.s().set(task_id=second)).delay()",
    "link": "text.apply_async(task_id=first, link=number.s().set(task_id=second))",
    "links": "text.apply_async(task_id=first, link=[number.s().set(task_id=second), anything.s()])",
    "body of a chord": "chord([text.s().set(task_id=first)], number.s().set(task_id=second)).delay()",
    "retry": "text.apply_async(task_id=first); again.apply_async((1,), task_id=second)",
}

_PROGRAM = """
import json
from celery import chain, chord
from proj import app
from proj.tasks import again, anything, careless, infinite, number, text
def ended(task_id):
    result = app.AsyncResult(task_id)
    try:
        result.get(timeout=90)
    except Exception as error:
        return [result.state, type(error).__name__]
    return [result.state, ""]
{calls}
ends = {{id: ended(id) for n in range({count}) for id in (f"first-{{n}}", f"second-{{n}}")}}
print(json.dumps([ends, careless.delay().get(timeout=90)]))
"""


@pytest.mark.used_vhost
def test_next_step_that_refuses_the_result(bundle: Bundle) -> None:
    """It becomes a dead letter under its own id; the first step stays a success, and is no dead letter."""
    bundle.add_task(_TASKS)
    bundle.worker("--concurrency=2")
    calls = [f"first, second = 'first-{n}', 'second-{n}'; {call}" for n, call in enumerate(CALLS.values())]

    ends, by_user = bundle.python(_PROGRAM.format(calls="\n".join(calls), count=len(calls)))

    for n, kind in enumerate(CALLS):
        assert ends[f"first-{n}"] == ["SUCCESS", ""], kind
        assert ends[f"second-{n}"] == ["FAILURE", "BadArguments"], kind
    eventually("all of them are dead", lambda: bundle.depth("proj.dead") == len(calls))
    dead = {message["properties"]["headers"]["id"] for message in bundle.peek("proj.dead")}
    assert dead == {f"second-{n}" for n in range(len(calls))}
    assert by_user == "BadArguments"  # what a task's own code publishes is checked as anywhere else
