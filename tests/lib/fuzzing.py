"""What becomes of messages, by a ledger of the test's own: none is missing, and none is there twice."""

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psutil
import pytest
from amqp import serialization, spec

from proj import queues
from proj.rabbitmq import topology
from tests.lib.bundle import Bundle
from tests.lib.messages import KNOWN_ID, TASK, Message
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

#: Seconds without news after which a message that is nowhere is missing.
SILENCE: Final = 10.0

#: Seconds for which a second trace of a message may come late.
LATE: Final = 0.3

#: A task that keeps the ledger, a line an execution. `meet N` waits until so many have met.
_TASK: Final = """
    @app.task(name="{name}", pydantic=True)
    def note(token: str, how: str = "done") -> None:
        import re
        if how == "fail":
            raise ValueError("as it was told to")
        if how == "retry":
            raise ConnectionError("as it was told to")
        if not re.fullmatch("#[0-9]{{8}}#|meet", token):
            raise ValueError("no token")
        with open({ledger!r}, "ab", buffering=0) as ledger:
            ledger.write(token.encode("utf-8", "replace") + b"\\n")
        if how.startswith("meet "):
            deadline = time.monotonic() + {patience}
            while open({ledger!r}, "rb").read().count(b"meet") < int(how[5:]):
                assert time.monotonic() < deadline, "a slot is not free"
                time.sleep(0.01)
"""

_TOKEN: Final = re.compile(rb"#(\d{8})#")


@dataclass
class Fates:
    """Where messages were seen, by their numbers."""

    executed: Counter[int] = field(default_factory=Counter)
    dead: Counter[int] = field(default_factory=Counter)
    delayed: Counter[int] = field(default_factory=Counter)
    #: What workers have suppressed as duplicates, by id.
    suppressed: Counter[str] = field(default_factory=Counter)

    def of(self, number: int) -> dict[str, int]:
        """How often a message was seen where."""
        seen = {"executed": self.executed, "dead": self.dead, "delayed": self.delayed}
        return {where: counts[number] for where, counts in seen.items() if counts[number]}

    def total(self) -> int:
        return sum(map(Counter.total, (self.executed, self.dead, self.delayed))) + self.suppressed.total()

    def missing(self, messages: Sequence[Message]) -> list[Message]:
        """The messages that are nowhere, without as many as were suppressed under their id."""
        nowhere = [message for message in messages if not self.of(message.number)]
        left = self.suppressed.copy()
        found = []
        for message in nowhere:
            if left[message.id] > 0:
                left[message.id] -= 1
            else:
                found.append(message)
        return found

    def twice(self, messages: Sequence[Message]) -> list[Message]:
        return [message for message in messages if sum(self.of(message.number).values()) > 1]


@dataclass(frozen=True)
class Verdict:
    """What a batch has shown: nothing is wrong when all is empty."""

    missing: tuple[Message, ...]
    twice: tuple[Message, ...]
    #: Why the worker is not what it was.
    worker: str
    seconds: float
    fates: Fates

    def __bool__(self) -> bool:
        return not (self.missing or self.twice or self.worker)

    def __str__(self) -> str:
        lines = [f"the worker: {self.worker}"] if self.worker else []
        lines += [f"missing: {message}" for message in self.missing[:5]]
        lines += [f"twice, {self.fates.of(message.number)}: {message}" for message in self.twice[:5]]
        return "\n".join(lines)[:5000]


class Fuzzing:
    """A worker that batches of messages are sent to, and that is started again when one has ended it."""

    def __init__(self, bundle: Bundle, *options: str, slots: int, silence: float = SILENCE) -> None:
        self._bundle = bundle
        self._options = (*options, f"--concurrency={slots}")
        self._slots = slots
        self._silence = silence
        self._numbers = itertools.count(1)
        self._ledger = bundle.folder / "ledger"
        self._logs = itertools.count(1)
        self.worker: Worker | None = None
        bundle.env["PROJ_LOG_FORMAT"] = "json"
        task = _TASK.format(name=TASK, ledger=str(self._ledger), patience=PATIENCE / 4)
        bundle.add_task(task)

    def number(self, messages: Sequence[Message]) -> list[Message]:
        return [message.numbered(next(self._numbers)) for message in messages]

    def run(self, messages: Sequence[Message]) -> Verdict:
        """Send the messages, and see what becomes of them; they have numbers of their own already."""
        if self.worker is None or self.worker.process.poll() is not None:
            self.start()
        assert self.worker is not None
        process = psutil.Process(self.worker.process.pid)
        known = (process.pid, process.create_time())
        began = time.monotonic()
        with _reading_raw(), self._bundle.channel() as channel:
            fates = Fates()
            self._ledger.write_bytes(b"")
            said = self.worker.log.stat().st_size
            channel.auto_decode = False
            for queue in ("proj.dead", *queues.DELAY_QUEUES):
                seen = fates.dead if queue == "proj.dead" else fates.delayed
                channel.basic_consume(queue, no_ack=True, callback=_counting(seen))
            _publish(channel, [message.encode() for message in messages])
            self._follow(channel, fates, lambda: not fates.missing(messages), said)
            seconds = time.monotonic() - began
            worker = self._spoilt(known, channel, fates, said)
            return Verdict(
                tuple(fates.missing(messages)), tuple(fates.twice(messages)), worker, seconds, fates
            )

    def start(self) -> None:
        """Start a worker with no message left from the one before."""
        if self.worker:
            self.worker.stop()
        if not self.worker:
            self._bundle.declare()
        with self._bundle.channel() as channel:
            for queue in ("proj.tasks", "proj.dead", *queues.DELAY_QUEUES):
                eventually(f"nobody takes from {queue}", partial(_is_free, channel, queue))
                channel.queue_purge(queue)
        self._ledger.write_bytes(b"")
        self.worker = self._bundle.worker(*self._options, log=f"worker-{next(self._logs)}.log").ready()
        (known,) = self.number([Message(0, (("header.id", KNOWN_ID),))])
        with self._bundle.channel() as channel:
            _publish(channel, [known.encode()])
        eventually("one is executed", lambda: b"#" in self._ledger.read_bytes(), seen=self.worker.text)

    def smallest(self, verdict: Verdict, messages: Sequence[Message]) -> tuple[Message, Verdict] | None:
        """A message that is wrong in as few places as possible and fails alone, with how."""
        suspects = [*verdict.twice, *verdict.missing]
        if verdict.worker:
            suspects = [*self._left(messages), *suspects]
            self.start()
        for suspect in suspects or messages:
            if not (alone := self._alone(suspect)):
                return self._shrunk(suspect, alone)
        return None

    def _shrunk(self, message: Message, verdict: Verdict) -> tuple[Message, Verdict]:
        simpler = [message.without(place) for place, _ in message.wrong]
        simpler += [Message(0, message.wrong, "2", message.end)] if message.layout != "2" else []
        simpler += [Message(0, message.wrong, message.layout)] if message.end != "done" else []
        for one in simpler:
            if not (alone := self._alone(one)):
                return self._shrunk(one, alone)
        return message, verdict

    def _alone(self, message: Message) -> Verdict:
        verdict = self.run(self.number([message]))
        if verdict.worker:
            self.start()
        return verdict

    def _left(self, messages: Sequence[Message]) -> list[Message]:
        """What the worker has in its hands, which ends it."""
        assert self.worker is not None
        self.worker.stop()
        numbers: Counter[int] = Counter()
        with _reading_raw(), self._bundle.channel() as channel:
            channel.auto_decode = False
            eventually("nobody takes from proj.tasks", partial(_is_free, channel, "proj.tasks"))
            while message := channel.basic_get("proj.tasks", no_ack=True):
                if message.delivery_info["redelivered"]:
                    _counting(numbers)(message)
        return [message for message in messages if message.number in numbers]

    def _spoilt(self, known: tuple[int, float], channel: Any, fates: Fates, said: int) -> str:
        """Why the worker is not the same process, or has no free slot for each of its messages."""
        assert self.worker is not None
        if self.worker.process.poll() is None:
            arguments = ("body.args", ["meet", f"meet {self._slots}"])
            _publish(channel, [one.encode() for one in self.number([Message(0, (arguments,))] * self._slots)])
            self._follow(channel, fates, lambda: self._met() == self._slots, said)
            with suppress(TimeoutError):
                while True:
                    channel.connection.drain_events(timeout=LATE)
            self._note(fates, said)
        if (code := self.worker.process.poll()) is not None:
            return f"it ended with {code}: {self.worker.text()[-1500:]}"
        process = psutil.Process(self.worker.process.pid)
        if (process.pid, process.create_time()) != known:
            return "it is another process"
        return "" if self._met() == self._slots else f"{self._met()} of its {self._slots} slots are free"

    def _met(self) -> int:
        return self._ledger.read_bytes().count(b"meet")

    def _follow(self, channel: Any, fates: Fates, done: Any, said: int) -> None:
        """Note what is seen until all is, or nothing is news."""
        news, quiet = -1, time.monotonic()
        while True:
            with suppress(TimeoutError):
                channel.connection.drain_events(timeout=0.1)
                while True:
                    channel.connection.drain_events(timeout=0.001)
            self._note(fates, said)
            if done():
                return
            assert self.worker is not None
            if self.worker.process.poll() is not None:
                return
            seen = fates.total()
            if seen != news:
                news, quiet = seen, time.monotonic()
            elif time.monotonic() > quiet + self._silence:
                return

    def _note(self, fates: Fates, said: int) -> None:
        """Read the ledger and the log."""
        fates.executed = Counter(map(int, _TOKEN.findall(self._ledger.read_bytes())))
        assert self.worker is not None
        with self.worker.log.open("rb") as log:
            log.seek(said)
            lines = [line for line in log if b'"event": "duplicate"' in line and line.endswith(b"\n")]
        fates.suppressed = Counter(str(json.loads(line).get("task_id")) for line in lines)


def _is_free(channel: Any, queue: str) -> bool:
    return not topology.look(channel, queue).consumer_count


def _counting(seen: Counter[int]) -> Any:
    def count(message: Any) -> None:
        found = _TOKEN.search(message.properties["raw"]) or _TOKEN.search(message.body)
        if found:  # else it is none of ours, such as a callback
            seen[int(found[1])] += 1

    return count


def _publish(channel: Any, messages: Sequence[Any]) -> None:
    """Publish them in one go, and return when all are confirmed."""
    if not hasattr(channel, "tags"):
        channel.confirm_select()
        channel.tags = set(), itertools.count(1)
        waiting, _ = channel.tags

        def confirmed(tag: int, multiple: bool) -> None:
            waiting.difference_update([one for one in waiting if one <= tag] if multiple else [tag])

        channel.events["basic_ack"].add(confirmed)
    waiting, tags = channel.tags
    for message in messages:
        waiting.add(next(tags))
        channel.basic_publish(message, routing_key="proj.tasks")
    while waiting:
        channel.connection.drain_events(timeout=PATIENCE)


@contextmanager
def _reading_raw() -> Iterator[None]:
    """Read properties as bytes: py-amqp cannot read all of them, and how the project does is under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            serialization.PROPERTY_CLASSES,
            spec.Basic.CLASS_ID,
            lambda buffer, offset: ({"raw": bytes(buffer[offset:])}, len(buffer)),
        )
        yield
