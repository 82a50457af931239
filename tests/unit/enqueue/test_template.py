"""A message of a template is Celery's own, byte for byte; where it would not be, there is no template."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count, islice
from types import SimpleNamespace
from typing import Any
from uuid import RFC_4122, UUID

import amqp
import pytest
from amqp.method_framing import frame_writer
from celery import signals
from hypothesis import example, given
from hypothesis import strategies as st
from kombu import Exchange, Queue

from proj import app, queues
from proj.enqueue.checks import is_id, new_id, new_ids
from proj.enqueue.composing import Composer
from proj.enqueue.template import Template, Templates
from proj.errors import BadInput
from proj.rabbitmq.encoded import EncodedMessage

NUMBERS = count()

NOW = 1_790_000_000.25


def anything(*args: Any, **kwargs: Any) -> None: ...


@contextmanager
def task(**options: Any) -> Iterator[Any]:
    """A task of these options that takes any arguments."""
    name = f"test.anything_{next(NUMBERS)}"
    decorate: Any = app.task(name=name, shared=False, lazy=False, **options)
    try:
        yield decorate(anything)
    finally:
        app.tasks.pop(name)


@pytest.fixture(scope="module", autouse=True)
def _one_moment() -> Iterator[None]:
    """A message says when it was published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW)
        yield


@pytest.fixture(scope="module")
def any_task() -> Iterator[Any]:
    with task() as made:
        yield made


def frames(message: amqp.Message | EncodedMessage) -> bytes:
    """What py-amqp writes for the message."""
    if isinstance(message, EncodedMessage):
        message = message.for_py_amqp()
    written = bytearray()
    write = frame_writer(
        SimpleNamespace(frame_max=2**20, bytes_sent=0), SimpleNamespace(write=written.extend)
    )
    write(1, 1, (60, 40), b"", message)
    return bytes(written)


TEMPLATES, COMPOSER = Templates(app), Composer(app)

TEXTS = st.text(st.characters(codec="utf-8")) | st.text(alphabet="'\"\\\n\t é")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inside: st.lists(inside) | st.tuples(inside) | st.dictionaries(TEXTS, inside),
    max_leaves=8,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.just("proj.tasks"),
        "priority": st.integers(0, 9),
        "ignore_result": st.booleans(),
    },
)


@given(
    args=st.lists(JSON, max_size=4).map(tuple),
    kwargs=st.dictionaries(TEXTS, JSON, max_size=3),
    task_id=st.uuids().map(str) | TEXTS.filter(is_id),
    repeat=st.booleans(),
    options=OPTIONS,
)
@example(
    args=("it's", 'say "no"', "back\\slash"), kwargs={"it's": "\\"}, task_id="é", repeat=False, options={}
)
@example(
    args=(1, -0.5, 2**63, True, None),
    kwargs={"x": 1e300, "y": "\u2028\x7f"},
    task_id="1",
    repeat=False,
    options={},
)
@example(args=("x" * 1024,), kwargs={}, task_id="1", repeat=False, options={})
@example(args=tuple(range(500)), kwargs={"x": [[[[1]]]]}, task_id="1", repeat=True, options={})
def test_same_as_celery_makes_it(
    any_task: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    task_id: str,
    repeat: bool,
    options: dict[str, Any],
) -> None:
    """Properties, headers, body and address are the same, for all arguments and options."""
    template = TEMPLATES.find(any_task, **options)
    assert template
    theirs = COMPOSER.compose(any_task.signature(args, kwargs, **options), task_id, repeat=repeat)

    message = template.message(task_id, args, kwargs, repeat=repeat)

    assert frames(message) == frames(theirs.message)
    assert (template.exchange, template.routing_key) == (theirs.exchange, theirs.routing_key)


@pytest.mark.parametrize(("delay", "moment"), [(None, NOW), (60, NOW + 60)])
def test_message_says_when_it_is_due(any_task: Any, delay: int | None, moment: float) -> None:
    """A delay is no time in which it could have been executed; no header of the caller says it instead."""
    headers = {queues.DUE_HEADER: 0.0, "own": 1}
    request = any_task.signature(countdown=delay, headers=headers)

    found = COMPOSER.compose(request).message.properties["application_headers"]

    assert (found[queues.DUE_HEADER], found["own"]) == (moment, 1)


@pytest.mark.parametrize("options", [{"ignore_result": True}, {"time_limit": 5}])
def test_own_options_of_a_task(options: dict[str, Any]) -> None:
    """They are in its messages, and so are those of its route, as Celery has them there."""
    routes = {"test.*": {"routing_key": "proj.other", "priority": 3}}
    with task(**options) as any_task, setting("task_routes", routes):
        template = Templates(app).find(any_task)
        assert template
        theirs = Composer(app).compose(any_task.s(1), "id").message
        assert frames(template.message("id", (1,), {})) == frames(theirs)


_THEIRS = Queue("theirs", Exchange("theirs", type="topic"), routing_key="their.key")


@pytest.mark.parametrize(
    ("route", "address"),
    [
        ({}, ("proj.direct", "proj.tasks")),
        ({"queue": "proj.tasks"}, ("proj.direct", "proj.tasks")),
        ({"routing_key": "0.proj.tasks"}, ("proj", "0.proj.tasks")),
        ({"queue": _THEIRS}, ("theirs", "their.key")),
    ],
)
def test_address(route: dict[str, Any], address: tuple[str, str]) -> None:
    """The direct exchange leads to work queues alone; all else has the address that its route gives."""
    with task() as any_task, setting("task_routes", {any_task.name: route} if route else None):
        template = Templates(app).find(any_task)
        assert template
        assert (template.exchange, template.routing_key) == address


def test_result_that_is_ignored_from_now_on() -> None:
    """A template that was made before is not used then."""
    with task() as any_task:
        templates = Templates(app)
        assert not templates.find(any_task).ignore_result  # type: ignore[union-attr]
        any_task.ignore_result = True
        assert templates.find(any_task).ignore_result  # type: ignore[union-attr]


def test_ids_are_as_celery_makes_them() -> None:
    """Random UUIDs, each another one, made one at a time or many."""
    found = [*islice(new_ids(), 1000), *(new_id() for _ in range(1000))]
    assert len(set(found)) == 2000
    for each in found:
        made = UUID(each)
        assert (str(made), made.version, made.variant) == (each, 4, RFC_4122)


def test_made_anew_when_a_setting_has_changed() -> None:
    """So that a message is as the configuration says, and none is sent while tasks are executed at once."""
    with task() as any_task:
        templates = Templates(app)
        first = templates.find(any_task)
        with setting("task_always_eager", True):
            assert templates.find(any_task) is None
        assert (again := templates.find(any_task))
        assert again is not first
        with setting("task_repr_maxlevels", 1):
            assert templates.find(any_task).levels == 1  # type: ignore[union-attr]


def test_made_once_a_process() -> None:
    """A message has the name of its process: a child that is forked makes templates of its own."""
    with task() as any_task:
        templates = Templates(app)
        first = templates.find(any_task)
        assert first is templates.find(any_task)
        read, write = os.pipe()
        if not os.fork():
            ours = Composer(app).compose(any_task.s(1), "id").message
            own = templates.find(any_task)
            os.write(write, bytes([own is not None and frames(own.message("id", (1,), {})) == frames(ours)]))
            os._exit(0)
        os.wait()
        assert os.read(read, 1) == b"\1"


@contextmanager
def receiver(signal: Any) -> Iterator[None]:
    def receive(**_: Any) -> None: ...

    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)


@contextmanager
def setting(name: str, value: object) -> Iterator[None]:
    before = app.conf[name]

    def give(value: object) -> None:
        app.conf[name] = value
        app.amqp.flush_routes()
        app.amqp.__dict__.pop("router", None)  # which keeps the routes that it was made with

    give(value)
    try:
        yield
    finally:
        give(before)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, lambda: receiver(signals.before_task_publish)),
        ({}, lambda: receiver(signals.after_task_publish)),
        ({}, lambda: receiver(signals.task_sent)),
        ({}, lambda: setting("task_send_sent_event", True)),
        ({}, lambda: setting("task_always_eager", True)),
        ({}, lambda: setting("task_routes", [lambda *_, **__: None])),
        ({"expires": 60}, nullcontext),
        ({"compression": "gzip"}, nullcontext),
        ({"shadow_name": lambda *_: "shadow"}, nullcontext),
    ],
    ids=["before", "after", "sent", "events", "eager", "routes", "expires", "compression", "shadow"],
)
def test_message_that_only_celery_makes(
    options: dict[str, Any], state: Callable[[], AbstractContextManager[None]]
) -> None:
    """A signal's receiver may change it, or more of it than its arguments differs."""
    with task(**options) as any_task, state():
        assert Templates(app).find(any_task) is None


def test_message_of_a_task_that_is_executed() -> None:
    """It has the task as its parent; then there is a template again."""
    with task() as any_task:
        templates = Templates(app)
        found, composed = [], []

        def parent() -> None:
            found.append(templates.find(any_task))
            composed.append(Composer(app).compose(any_task.s(1)).message)

        decorate: Any = app.task(name="test.parent", shared=False, lazy=False)
        decorate(parent).apply(task_id="parent")
        app.tasks.pop("test.parent")
        found.append(templates.find(any_task))
        composed.append(Composer(app).compose(any_task.s(1)).message)

    assert [type(each) for each in found] == [type(None), Template]
    assert [type(each) for each in composed] == [amqp.Message, EncodedMessage]
    assert composed[0].properties["application_headers"]["parent_id"] == "parent"


@pytest.mark.parametrize("options", [{"priority": 10}, {"queue": 5}])
def test_wrong_option(any_task: Any, options: dict[str, Any]) -> None:
    """It is refused as in any call."""
    with pytest.raises(BadInput):
        TEMPLATES.find(any_task, **options)


@pytest.mark.parametrize("options", [{"priority": True}, {"ignore_result": 1}, {"queue": []}])
def test_wrong_option_that_python_takes_for_a_right_one(any_task: Any, options: dict[str, Any]) -> None:
    """It has no template, though one was made for what it equals; Celery's way refuses it."""
    assert TEMPLATES.find(any_task, priority=1, ignore_result=True)
    assert TEMPLATES.find(any_task, **options) is None


def test_wrong_names_of_queues_are_not_kept(any_task: Any) -> None:
    """There is no end of them."""
    templates = Templates(app)
    assert [templates.find(any_task, queue=f"no-{number}") for number in range(50)] == [None] * 50
    assert templates.find(any_task)
    assert len(templates._made) == 1
