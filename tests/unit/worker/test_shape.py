"""What a message may have beside its arguments."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from celery.exceptions import InvalidTaskError

from proj import app
from proj.tasks import add
from proj.worker import shape

SIGNATURE = {"task": "proj.tasks.add", "args": [1, 2], "kwargs": {}, "options": {}}


def _request(headers: dict[str, Any] | None = None, embedded: object = None) -> Any:
    """As Celery makes it of a message."""
    return SimpleNamespace(
        app=app,
        id="id",
        name=add.name,
        args=[1, 2],
        kwargs={},
        request_dict={"id": "id", "task": add.name, "args": [1, 2], "kwargs": {}, **(headers or {})},
        body=([1, 2], {}, embedded),
        is_shallow=True,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("retries", -1), ("retries", 1.5), ("retries", "1"), ("retries", {}), ("retries", 2**31)],
        *[("group_index", "1"), ("replaced_task_nesting", [])],
        *[(name, 5) for name in ("root_id", "parent_id", "group", "argsrepr", "kwargsrepr", "origin")],
        *[("shadow", b"\xff"), ("ignore_result", "no"), ("utc", 1), ("headers", [])],
        *[("stamps", 5), ("stamped_headers", "stamp"), ("stamped_headers", [5])],
        *[("callbacks", 5), ("errbacks", [5]), ("chain", SIGNATURE), ("chord", [SIGNATURE])],
        *[(name, "x") for name in ("get", "update", "children", "_protected", "__class__", "is_eager")],
    ],
)
def test_header_that_celery_would_trip_over(name: str, value: object) -> None:
    """It is named, in one line."""
    with pytest.raises(InvalidTaskError, match=name) as error:
        shape.check(_request({name: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "embedded",
    [
        [SIGNATURE],
        {"callbacks": SIGNATURE},
        {"callbacks": [{}]},
        {"callbacks": [SIGNATURE, None]},
        {"errbacks": [{**SIGNATURE, "args": 5}]},
        {"chain": [{**SIGNATURE, "kwargs": None}]},
        {"chain": [{**SIGNATURE, "task": 5}]},
        {"chord": {**SIGNATURE, "options": "x"}},
        {"id": "another"},
        {"get": 5},
    ],
)
def test_what_is_embedded_and_cannot_be_called(embedded: object) -> None:
    with pytest.raises(InvalidTaskError):
        shape.check(_request(embedded=embedded))


def test_signature_that_celery_cannot_make() -> None:
    """A chord with no header raises when it is made, which would be after the task."""
    with pytest.raises(InvalidTaskError, match="callbacks cannot be called: "):
        shape.check(_request(embedded={"callbacks": [{**SIGNATURE, "subtask_type": "chord"}]}))


@pytest.mark.parametrize(
    "workflow", [chain(add.si(1, 2), group(add.si(1, 2), add.si(3, 4))), chord([add.si(1, 2)], add.si(3, 4))]
)
def test_what_is_embedded_is_not_changed(workflow: Any) -> None:
    """By Celery, which makes signatures of all parts of what it is given."""
    embedded = json.loads(json.dumps({"callbacks": [workflow]}))
    shape.check(_request(embedded=embedded))
    tasks = embedded["callbacks"][0]["kwargs"].get("tasks") or embedded["callbacks"][0]["kwargs"]["header"]
    assert not any(isinstance(each, Signature) for each in tasks)
    assert embedded == json.loads(json.dumps({"callbacks": [workflow]}))


def test_what_celery_publishes_passes() -> None:
    """With all that it can have."""
    signature = add.si(1, 2)
    message = app.amqp.as_task_v2(
        "id",
        add.name,
        args=(1, 2),
        expires=5,
        group_id="group",
        group_index=1,
        retries=3,
        callbacks=[signature, signature | signature],
        errbacks=[signature],
        time_limit=300,
        root_id="root",
        parent_id="parent",
        shadow="another name",
        chain=[signature],
        chord=signature,
        origin="here",
        ignore_result=True,
        replaced_task_nesting=1,
        stamped_headers=["stamp"],
        stamp="value",
        headers={"x-proj-repeat": True, "their-own": [5]},
    )
    headers, body = json.loads(json.dumps([message.headers, message.body]))
    shape.check(_request(headers, body[2]))
    shape.check(_request(dict.fromkeys(headers), dict.fromkeys(body[2])))
    shape.check(_request())
