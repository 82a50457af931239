"""Send messages through RabbitMQ to two workers, and kill one of them during a task.

Uses a private RabbitMQ on free ports and two `celery -A proj worker` processes, and removes them at the end.
The exit code is 0 only when no message is lost and every result is right.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from demo_view import View
from demo_watch import Message, Watch, Worker

import proj
from proj import config, queues, results
from proj.enqueue import enqueue
from proj.errors import BrokerNodeError, ExitCode, ProjError
from proj.private_node.node import BrokerNode
from proj.rabbitmq import failures

#: A dot is a second of work: time to watch, and to kill a worker.
TEXTS: Final = (
    "First message.",
    "Second message..",
    "Third message...",
    "Fourth message....",
    "Fifth message.....",
)

#: Number of sums after the texts, and the range of their numbers, both ends included.
SUMS: Final = 10
SUM_RANGE: Final = (0, 998)

WORKERS: Final = ("w1", "w2")

#: Seconds until the demo gives up, so that it ends within a minute; 20 to 30 are usual.
DEADLINE: Final = 50.0

#: Seconds between two updates of the table.
REFRESH: Final = 0.1

#: Seconds for the broker to requeue the messages of an ended worker.
SETTLE_TIMEOUT: Final = 3.0

#: Signals that end the demo: Ctrl-C, a supervisor's stop, a closed terminal.
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

NEXT = """\
Next: run `make up` here, and in a second terminal
      .venv/bin/proj enqueue sleep-dots Hello... --wait"""


@dataclass(frozen=True)
class Tally:
    """What became of the accepted messages, by their ids."""

    executed: list[str]
    #: Messages in the dead-letter queue.
    dead: int
    #: Neither executed nor in a queue.
    lost: list[str]


def main() -> int:
    """Run the demo; turn errors into one line and an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--deadline",
        type=float,
        default=DEADLINE,
        metavar="S",
        help="seconds until the demo gives up (default: %(default)g)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the output as an SVG file")
    options = parser.parse_args()
    for number in ENDING:
        signal.signal(number, _end)
    try:
        with ExitStack() as cleanup:
            try:
                run(view := View(), options.deadline, cleanup)
            finally:
                # The cleanup takes a second or two, and must not be interrupted.
                ignore_signals()
        if options.picture:
            view.save_picture(options.picture)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return ExitCode.INTERRUPTED
    except ProjError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return ExitCode.DONE


def run(view: View, deadline: float, cleanup: ExitStack) -> None:
    """Run the demo from start to end. Raises `ProjError` when something went wrong."""
    view.say("Five texts and ten sums go to two workers; one of these will be killed.")
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="proj-demo-")))
    broker = start_broker(folder, view, deadline, cleanup)
    use(broker.url, folder)

    messages = enqueue_all()
    view.say(f"{len(messages)} messages accepted: the broker has confirmed each of them.")
    watch = follow(messages, folder, view, deadline, cleanup)

    from proj import app  # not at the top: it reads the settings, which `use` makes

    for worker in watch.workers.values():
        worker.stop()
    with app.connection_for_read() as conn, conn.channel() as channel:
        found = tally(list(watch.messages), channel)
    view.figures(figures(messages, found))
    if wrong := problems(watch, found):
        raise ProjError("; ".join(wrong))
    view.console.print("Nothing was lost with the killed worker, and all results are right.")
    view.console.print(NEXT, soft_wrap=True)


def start_broker(folder: Path, view: View, deadline: float, cleanup: ExitStack) -> BrokerNode:
    """Start a private RabbitMQ on free ports, with its data in `folder`."""
    node = BrokerNode(folder / "broker", server_dir=config.load().rabbitmq_dir)
    # Its data is not kept, so a clean stop is not needed.
    cleanup.callback(node.kill)
    try:
        with view.spinner(f"Starting a private RabbitMQ in {folder}"):
            node.start(timeout=deadline)
    except BrokerNodeError as error:
        if error.hint and str(folder) in error.hint:  # a log that will be deleted
            raise BrokerNodeError(error.message, "for its log, run: proj broker run") from None
        raise
    view.say(f"RabbitMQ answers at {node.info.safe_url}")
    return node


def use(broker_url: str, folder: Path) -> None:
    """Make this process and its workers use this broker, and a result store in `folder`."""
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]  # CELERY_BROKER_WRITE_URL, for one, would take precedence
    os.environ["CELERY_BROKER_URL"] = broker_url
    os.environ["PROJ_STATE_DIR"] = str(folder)
    os.environ["CELERY_RESULT_BACKEND"] = f"db+sqlite:///{folder / 'results.sqlite3'}"
    config.load.cache_clear()


def enqueue_all() -> list[Message]:
    """Enqueue the texts and the sums, each confirmed by the broker."""
    messages = []
    for text in TEXTS:
        dots = text.count(".")
        accepted = enqueue("proj.tasks.sleep_dots", [text])
        messages.append(Message(accepted.id, text, work=dots, expected=dots))
    for _ in range(SUMS):
        x, y = random.randint(*SUM_RANGE), random.randint(*SUM_RANGE)
        accepted = enqueue("proj.tasks.add", [x, y])
        messages.append(Message(accepted.id, f"{x} + {y}", work=0, expected=x + y))
    return messages


def follow(messages: list[Message], folder: Path, view: View, deadline: float, cleanup: ExitStack) -> Watch:
    """Start the workers, and watch until every task has ended or the deadline has passed."""
    from proj import app

    watch = Watch(messages, view.say, view.note)
    with app.connection_for_read() as conn:
        receiver = app.events.Receiver(conn, handlers=watch.handlers)
        # Consume before the workers start, so that no event is missed.
        with receiver.consumer_context(wakeup=False) as (events, _, _):
            for name in WORKERS:
                worker = Worker.start(name, folder)
                cleanup.callback(worker.kill)
                watch.workers[name] = worker
                view.say(f"{name}: celery -A proj worker, one slot, process {worker.process.pid}")
            with view.table(messages) as redraw:
                while watch.unfinished and view.elapsed < deadline:
                    receive(events)
                    watch.step()
                    redraw()
    return watch


def receive(events: Any) -> None:
    """Handle the events that arrive within `REFRESH` seconds."""
    until = time.monotonic() + REFRESH
    try:
        while (left := until - time.monotonic()) > 0:
            events.drain_events(timeout=left)
    except TimeoutError:
        pass
    except failures.ERRORS as error:
        raise failures.explain(error, events) from error


def tally(accepted: Sequence[str], channel: Any) -> Tally:
    """Look up what became of the messages, in the result store and the broker's queues.

    Call it after the workers have ended. It takes the messages in the queues; they are requeued when the
    channel is closed.
    """
    executed = [task_id for task_id in accepted if results.outcome(proj.app, task_id).state == "SUCCESS"]
    dead = queues.dead_queue(channel).queue_declare(passive=True).message_count
    kept: set[str] = set()
    until = time.monotonic() + SETTLE_TIMEOUT
    while True:
        for queue in (queues.dead_queue(channel), queues.work_queue(queues.DEFAULT_QUEUE)(channel)):
            while message := queue.get():
                kept.add(message.headers["id"])
        lost = [task_id for task_id in accepted if task_id not in kept.union(executed)]
        if not lost or time.monotonic() > until:
            return Tally(executed, dead, lost)
        time.sleep(REFRESH)


def figures(messages: Sequence[Message], found: Tally) -> list[tuple[str, int, str]]:
    """The rows of the final table."""
    again = [message.label for message in messages for _ in message.attempts[1:]]
    which = f": {', '.join(map(repr, again))}" if again else ""
    return [
        ("accepted", len(messages), "messages that the broker has confirmed"),
        ("executed", len(found.executed), "with SUCCESS in the result store"),
        ("redelivered", len(again), f"attempts beyond the first{which}"),
        ("dead", found.dead, "in the dead-letter queue proj.dead"),
        ("lost", len(found.lost), "neither executed nor in a queue"),
    ]


def problems(watch: Watch, found: Tally) -> list[str]:
    """What went wrong, one sentence each; empty when all is well."""
    wrong = []
    if found.lost:
        wrong.append(f"lost: {', '.join(watch.messages[task_id].label for task_id in found.lost)}")
    for message in watch.messages.values():
        if message.outcome and message.outcome.result != message.expected:
            wrong.append(f"{message.label} ended with {message.result}, expected {message.expected}")
    unfinished = [message.label for message in watch.unfinished if message.id not in found.lost]
    if unfinished:
        wrong.append(f"gave up waiting for: {', '.join(unfinished)} (more time: --deadline 120)")
    if not watch.killed:
        wrong.append("no worker was killed in the middle of a task")
    return wrong


def ignore_signals() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _frame: Any) -> NoReturn:
    ignore_signals()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
