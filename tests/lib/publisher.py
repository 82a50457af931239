"""A program that publishes when it is told to, over one connection, and says how each publish ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from amqp.exceptions import MessageNacked

from tests.lib.bundle import COMMAND_TIMEOUT, Bundle
from tests.lib.erlang import evaluate
from tests.lib.waiting import eventually

#: Seconds that a publish may take in the tests where something keeps it waiting.
TIMEOUT = 2

#: Seconds that a publish may take which the broker answers, with a refusal: on a busy machine the answers to
#: hundreds take longer than `TIMEOUT`.
ANSWERED = 6

#: Seconds of one that must succeed, before a fault and after it.
_PATIENT = 30

#: Seconds that it may take beyond: a busy machine is slow, and what is not bounded never ends.
SLACK = 20

#: What the messages of a test are asked for by, and what they are marked with.
ID, REPEAT = "id", "x-proj-repeat"

#: Bytes of a message that the fixture `own_node` takes.
MAX_SIZE = 1_000_000

#: Reads one publish a line, and answers with one line.
_PROGRAM = """
import json, sys, time
from proj import app, errors
from proj.enqueue import checks, enqueue
from proj.enqueue.app import App
from proj.enqueue.composing import Recorder
make_id, send_task = checks._random_id, App.send_task
def make_template(app, *args, producer=None, **options):
    assert isinstance(producer, Recorder), "the message is not made from a template"
    return send_task(app, *args, producer=producer, **options)
for line in sys.stdin:
    task, args, size, options, from_template, app.settings.proj_publish_timeout = json.loads(line)
    if from_template:
        task_id = options.pop("task_id", None)
        checks._random_id = lambda digits: task_id or make_id(digits)
        App.send_task = make_template
    else:
        App.send_task = send_task
    began = time.monotonic()
    try:
        ended = "confirmed", enqueue(task, args or ["." * size], **options).id
    except errors.ProjError as error:
        ended = type(error).__name__, str(error)
    print(json.dumps([*ended, time.monotonic() - began]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a publish ended: `confirmed`, or the name of the error; the id, or the error's line; seconds.

    `limit` is how many seconds it was allowed to take.
    """

    kind: str
    text: str
    seconds: float
    limit: float


class Publisher:
    """A process that publishes with the bundle's settings, and with those of `env`."""

    def __init__(self, bundle: Bundle, **env: str) -> None:
        self._limit = float((bundle.env | env)["PROJ_PUBLISH_TIMEOUT"])
        self._process = bundle.start_python(_PROGRAM, env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not in good order: it would say good-bye to a broker that may be frozen.
        self._process.kill()
        self._process.communicate(timeout=COMMAND_TIMEOUT)

    def publish(
        self,
        *args: Any,
        task: str = "proj.tasks.sleep_dots",
        size: int = 1,
        by_celery: bool = False,
        limit: float | None = None,
        **options: Any,
    ) -> Outcome:
        """Publish the task with these arguments, or with one text of `size` letters.

        The message is made from a template if it has no options. The id alone is no option, unless Celery is
        to make the message: it is that of a new message, which is no repeat. `limit` is another timeout than
        the bundle's.
        """
        limit = limit or self._limit
        options = {name: value for name, value in options.items() if value is not None}
        from_template = not by_celery and options.keys() <= {"task_id"}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([task, args, size, options, from_template, limit])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the publisher died; its last words are above"
        kind, text, seconds = json.loads(answer)
        return Outcome(kind, text, seconds, limit)

    def succeeds(self, *args: Any, **options: Any) -> Outcome:
        """Publish what nothing keeps from its queue, in the time that a busy machine takes."""
        outcome = self.publish(*args, limit=_PATIENT, **options)
        check(outcome, "confirmed")
        return outcome


def delay_after(bundle: Bundle, before: str) -> Outcome:
    """How `.delay()` ends in a program that has run these lines before, and may take `TIMEOUT`."""
    program = f"""
import json, time
{before}
from proj import errors
from proj.tasks import add
began = time.monotonic()
try:
    ended = "confirmed", add.delay(1, 2).id
except errors.ProjError as error:
    ended = type(error).__name__, str(error)
print(json.dumps([*ended, time.monotonic() - began]))
"""
    kind, text, seconds = bundle.python(program)
    return Outcome(kind, text, seconds, TIMEOUT)


def check(outcome: Outcome, kind: str, *words: str) -> None:
    """The publish ended in this way, said so in one line, and in time."""
    assert outcome.kind == kind, outcome
    assert outcome.seconds < outcome.limit + SLACK
    assert "\n" not in outcome.text
    for word in words:
        assert word in outcome.text


def headers(bundle: Bundle, queue: str = "proj.tasks") -> list[Any]:
    """The headers of the messages in the queue, in their order."""
    return [message["properties"]["headers"] for message in bundle.peek(queue)]


def ids(bundle: Bundle, queue: str = "proj.tasks") -> list[str]:
    return [header[ID] for header in headers(bundle, queue)]


def hurry(bundle: Bundle, timeout: int = TIMEOUT) -> None:
    """From now on a publish may take so long; to declare what it needs, before, all the time it takes."""
    bundle.declare()
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = str(timeout)


def limit(bundle: Bundle, room: int = 1) -> str:
    """Let the work queue have room for so many messages; the path of the policy in the management API."""
    path = f"policies/{quote(bundle.vhost)}/full"
    policy = {"pattern": "^proj\\.tasks$", "definition": {"max-length": room}, "apply-to": "queues"}
    bundle.management("PUT", path, policy)
    # The management API would report it up to 5 s late.
    named = (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{bundle.vhost}">>, queue, <<"proj.tasks">>)),'
        ' rabbit_policy:name(Q) =:= <<"full">>'
    )
    eventually("the policy applies", lambda: evaluate(bundle.node, named) == "true")
    return path


def fill(bundle: Bundle) -> str:
    """Let the work queue be full for all that connect from now on; the path of the policy.

    Who was connected before learns it a moment later, and what it has sent until then is taken: how many, is
    a matter of speed.
    """
    path = limit(bundle)

    def is_full() -> bool:
        try:
            bundle.publish({}, routing_key="proj.tasks", headers={ID: "fills"})
        except MessageNacked:
            return True
        return False

    eventually("the queue is full", is_full)
    return path


@contextmanager
def user(bundle: Bundle, **rights: str) -> Iterator[None]:
    """The bundle's programs are a user who has these rights, and no others."""
    user = f"user-{bundle.vhost}"
    bundle.management("PUT", f"users/{quote(user)}", {"password": "s3cret", "tags": ""})
    none = {"configure": "^$", "write": "^$", "read": "^$"}
    bundle.management("PUT", f"permissions/{quote(bundle.vhost)}/{quote(user)}", none | rights)
    bundle.env["CELERY_BROKER_URL"] = bundle.url.replace("guest:guest", f"{user}:s3cret")
    try:
        yield
    finally:
        bundle.management("DELETE", f"users/{quote(user)}")
