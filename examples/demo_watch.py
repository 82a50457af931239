"""Follows the demo's messages and workers through Celery's events."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from celery.platforms import set_pdeathsig

import proj
from proj import results
from proj.errors import ProjError

#: An ordinary worker with one slot, so that it executes one message at a time.
CELERY_WORKER: Final = (
    *(sys.executable, "-m", "celery", "-A", "proj"),
    *("worker", "--concurrency=1", "--loglevel=INFO"),
)

#: When to kill a worker: least seconds of work in its message, seconds passed, and seconds left, so that the
#: kill comes during the task on a busy machine too.
KILL_MIN_WORK: Final = 4
KILL_AFTER: Final = 1.0
KILL_BEFORE_END: Final = 0.5

#: Seconds for an idle worker to stop cleanly before it is killed; one is usual.
WORKER_STOP_TIMEOUT: Final = 5.0

#: Seconds without events until the result store is read: events are not confirmed, and may get lost.
SWEEP_INTERVAL: Final = 1.0


@dataclass
class Message:
    """An accepted message and the state of its execution."""

    id: str
    label: str
    #: Seconds that its task takes.
    work: int
    #: The right result.
    expected: int
    #: The worker of each attempt, the first one first.
    attempts: list[str] = field(default_factory=list)
    running_since: float | None = None
    seconds: float | None = None
    #: The stored outcome, once the task has ended.
    outcome: results.Outcome | None = None

    @property
    def state(self) -> str:
        if self.outcome:
            return "failed" if self.outcome.error else "done"
        return "waiting" if self.running_since is None else "running"

    @property
    def ran_for(self) -> float | None:
        """Seconds of the running or last attempt."""
        return self.seconds if self.running_since is None else time.monotonic() - self.running_since

    @property
    def result(self) -> str:
        return str(self.outcome.error or self.outcome.result) if self.outcome else ""


@dataclass(frozen=True)
class Worker:
    """A `celery -A proj worker` process with one slot."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, folder: Path) -> Self:
        """Start a worker that logs into `folder`; does not wait until it is ready."""
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*CELERY_WORKER, f"--hostname={name}@%h"],
                cwd=folder,
                # A killed worker leaves its temporary folder behind.
                env=os.environ | {"TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The terminal's Ctrl-C must not reach it: the demo stops its workers itself.
                start_new_session=True,
                # On Linux the kernel kills the worker when the demo is killed.
                preexec_fn=lambda: set_pdeathsig("SIGKILL"),
            )
        return cls(name, process, log)

    def kill(self) -> None:
        """SIGKILL the worker and its pool process; returns when the worker has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """Stop the worker cleanly, or kill it after `WORKER_STOP_TIMEOUT` seconds."""
        self.process.terminate()
        try:
            self.process.wait(WORKER_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


class Watch:
    """Follows the messages by Celery's events; outcomes come from the result store only."""

    def __init__(
        self,
        messages: Sequence[Message],
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        """`say` prints a line always, `note` only where no table shows the same."""
        self.messages = {message.id: message for message in messages}
        self.workers: dict[str, Worker] = {}
        self.killed: Worker | None = None
        self._say, self._note = say, note
        self._online: set[str] = set()
        self._next_sweep = 0.0

    @property
    def handlers(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """The handlers of the events that matter, by type."""
        return {
            "worker-online": self._on_online,
            "task-started": self._on_started,
            "task-succeeded": self._on_ended,
            "task-failed": self._on_ended,
        }

    @property
    def unfinished(self) -> list[Message]:
        return [message for message in self.messages.values() if not message.outcome]

    def step(self) -> None:
        """Do what is due between events. Raises `ProjError` when a worker has ended by itself."""
        if time.monotonic() >= self._next_sweep:
            self._postpone_sweep()
            for message in self.unfinished:
                self._look_up(message)
        for worker in self.workers.values():
            if worker is not self.killed and worker.process.poll() is not None:
                raise ProjError(f"worker {worker.name} has ended by itself: {_last_line(worker.log)}")
        # Kill the worker of the first message that is long enough, once the other worker can take over.
        if not self.killed and self._online.issuperset(self.workers):
            for message in self.unfinished:
                ran_for, left = message.ran_for or 0, message.work - (message.ran_for or 0)
                if message.work >= KILL_MIN_WORK and ran_for >= KILL_AFTER and left >= KILL_BEFORE_END:
                    self._kill_worker_of(message)
                    break

    def _on_online(self, event: dict[str, Any]) -> None:
        self._online.add(_worker_name(event))

    def _on_started(self, event: dict[str, Any]) -> None:
        self._postpone_sweep()
        message, worker = self.messages[event["uuid"]], _worker_name(event)
        message.attempts.append(worker)
        # The last events of a killed worker may arrive after its end.
        if not message.outcome and not (self.killed and self.killed.name == worker):
            # An event may arrive seconds late; its timestamp is from this machine's clock.
            message.running_since = time.monotonic() - max(0.0, time.time() - event["timestamp"])
        again = f" (attempt {len(message.attempts)})" if len(message.attempts) > 1 else ""
        self._note(f"{worker} started  {message.label}{again}")

    def _on_ended(self, event: dict[str, Any]) -> None:
        self._postpone_sweep()
        self._look_up(self.messages[event["uuid"]], event.get("runtime"))

    def _postpone_sweep(self) -> None:
        """Read the store only when no events arrive, so that the output keeps the order of events."""
        self._next_sweep = time.monotonic() + SWEEP_INTERVAL

    def _look_up(self, message: Message, seconds: float | None = None) -> None:
        outcome = results.outcome(proj.app, message.id)
        if message.outcome or not outcome.ended:
            return
        # The runtime that the worker measured, if an event brought it.
        message.seconds, message.running_since = seconds or message.ran_for, None
        message.outcome = outcome
        worker = message.attempts[-1] if message.attempts else "?"
        self._note(f"{worker} {message.state:<8} {message.label} = {message.result}")

    def _kill_worker_of(self, message: Message) -> None:
        worker, ran_for = self.workers[message.attempts[-1]], message.ran_for
        worker.kill()
        if worker.process.returncode != -signal.SIGKILL:
            raise ProjError(f"worker {worker.name} ended before it could be killed: {_last_line(worker.log)}")
        self.killed = worker
        for held in self.unfinished:
            if held.attempts[-1:] == [worker.name]:
                held.running_since = None
        self._say(f"KILLED {worker.name} with SIGKILL, {ran_for:.1f} s into {message.label!r}.")
        self._say(f"Process {worker.process.pid} is gone; the broker redelivers the message.")


def _worker_name(event: dict[str, Any]) -> str:
    """The worker's name without the host: `w1` of `w1@host`."""
    return str(event["hostname"]).partition("@")[0]


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "its log is empty"
