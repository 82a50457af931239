"""`proj enqueue`: enqueue one message or a few."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import click

import proj
from proj.cli.batch import batch
from proj.cli.interrupt import deferred_interrupt
from proj.cli.progress import progress_bar
from proj.cli.shown_log import show_log
from proj.cli.strict_json import to_json
from proj.cli.unconsumed import Watch
from proj.errors import BadInput, ExitCode, ProjError
from proj.logs import streams
from proj.logs.printable import error_line

if TYPE_CHECKING:
    from proj.enqueue import Task

#: Range of the numbers of `add --random`, both ends included.
RANDOM_RANGE: Final = (0, 998)

DEFAULT_WORDS: Final = "Hello World!"

#: Makes click take a negative number for an argument, not for an option.
_NUMBERS = {"ignore_unknown_options": True}


class _Moment(click.ParamType[datetime]):
    name = "ISO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2030-01-31T12:00:00+01:00", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment < datetime.now(UTC):
            self.fail(f"{moment.isoformat()} is in the past", param, ctx)
        return moment


def _publish_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all commands of the group share."""
    for option in reversed(
        [
            click.option("--id", "task_id", metavar="ID", help="Message id; makes a repeat safe."),
            click.option(
                "--countdown",
                type=click.FloatRange(min=0),
                metavar="S",
                help="Earliest start, in seconds from now.",
            ),
            click.option("--eta", type=_Moment(), help="Earliest start; UTC unless it has an offset."),
            click.option(
                "--expires",
                type=click.FloatRange(min=0, min_open=True),
                metavar="S",
                help="Seconds after which an unexecuted message becomes a dead letter.",
            ),
            click.option("--queue", metavar="NAME", help="The work queue.  [default: the task's]"),
            click.option(
                "--priority",
                type=click.IntRange(0, 9),
                metavar="0-9",
                help="Larger ones first; RabbitMQ before 4.0 ignores it.",
            ),
            click.option("--count", type=click.IntRange(min=1), default=1, help="Number of messages."),
            click.option("--wait", is_flag=True, help="Wait for the result and print it."),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="S",
                help="Seconds that --wait waits for all messages; unlimited by default.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message."),
        ]
    ):
        command = option(command)
    return command


@click.group()
def enqueue() -> None:
    """Enqueue a task and wait for the broker's confirm.

    Prints the message id, or with --wait the result.

    Example: proj enqueue add 221 345 --wait
    """


enqueue.add_command(batch)


@enqueue.command("sleep-dots")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@_publish_options
def sleep_dots(words: tuple[str, ...], **options: Any) -> None:
    """Sleep one second for each dot in the text.

    A text that is a whole number sleeps that many seconds. The default text is "Hello World!".

    Example: proj enqueue sleep-dots First message.
    """
    _enqueue("proj.tasks.sleep_dots", lambda: (" ".join(words) or DEFAULT_WORDS,), {}, **options)


@enqueue.command(context_settings=_NUMBERS)
@click.argument("numbers", nargs=-1, metavar="[X Y]")
@click.option("--random", "drawn", is_flag=True, help="Draw both numbers from 0 to 998.")
@_publish_options
def add(numbers: tuple[str, ...], drawn: bool, **options: Any) -> None:
    """Add two numbers.

    Example: proj enqueue add 221 345
    """
    if drawn == bool(numbers):
        raise click.UsageError("give either two numbers or --random")
    if drawn:
        _enqueue("proj.tasks.add", lambda: [random.randint(*RANDOM_RANGE) for _ in "xy"], {}, **options)
    else:
        _enqueue("proj.tasks.add", lambda: [_number(text) for text in numbers], {}, **options)


@enqueue.command(context_settings=_NUMBERS)
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[JSON_ARG]...")
@click.option("--kwargs", default="{}", metavar="JSON", help="Keyword arguments, a JSON object.")
@_publish_options
def task(name: str, arguments: tuple[str, ...], kwargs: str, **options: Any) -> None:
    """Enqueue any task by its name.

    Each argument is JSON, so text needs its own quotes.

    Example: proj enqueue task proj.tasks.sleep_dots '"First message."'
    """
    args = [
        _json(text, f"this argument is not JSON: {text}", "text needs its own quotes: '\"text\"'")
        for text in arguments
    ]
    wrong = f"--kwargs is not a JSON object: {kwargs}", 'such as {"x": 1}'
    named = _json(kwargs, *wrong)
    if not isinstance(named, dict):
        raise BadInput(*wrong)
    _enqueue(name, lambda: args, named, **options)


def _enqueue(
    name: str,
    draw_args: Callable[[], Sequence[Any]],
    kwargs: dict[str, Any],
    *,
    count: int,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    task_id: str | None,
    **options: Any,
) -> None:
    if task_id is not None and count > 1:
        raise click.UsageError("--id names one message and cannot be combined with --count")
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    if timeout is not None and math.isnan(timeout):  # FloatRange accepts it
        raise click.UsageError("--timeout needs a number of seconds")
    if options["countdown"] is not None and options["eta"] is not None:
        raise click.UsageError("--countdown and --eta cannot be combined")

    from proj.enqueue import find_task
    from proj.enqueue.routing import queue_of

    show_log()
    found = find_task(proj.app, name)
    if wait and found.ignore_result:
        raise click.UsageError(f"--wait needs a result, and {name} ignores its results (ignore_result=True)")
    failed_before = _failure(task_id) if wait and task_id is not None else None
    given = {option: value for option, value in options.items() if value is not None}
    ids: list[str] = []
    try:
        for new in _published(found, draw_args, kwargs, count, {**given, "task_id": task_id}):
            ids.append(new)
            if not wait:
                _print_id(new, name, as_json)
    except KeyboardInterrupt:
        safe = f"; repeating with --id {task_id} is safe" if task_id is not None else ""
        more = "one more" if count == 1 else "others"
        click.echo(f"{_enqueued(ids, count)}, and {more} may be{safe}", err=True)
        raise
    except OSError:  # from printing the id
        last = f", the last one {ids[-1]}" if count > 1 else f": {ids[-1]}"
        click.echo(f"{_enqueued(ids, count)}{last}", err=True)
        raise
    except ProjError:
        if ids:
            listed = f": {' '.join(ids)}" if wait else ""  # without --wait the ids are on stdout
            click.echo(f"{_enqueued(ids, count)}{listed}", err=True)
        raise
    if wait:
        queue = queue_of(found, draw_args(), kwargs, options["queue"])
        _print_results(ids, timeout, as_json, failed_before, Watch(proj.app, queue))


def _published(
    found: "Task", draw_args: Callable[[], Sequence[Any]], kwargs: dict[str, Any], count: int, options: Any
) -> Iterator[str]:
    """Publish, and yield the ids of the messages. Raises the error of the first that is not confirmed."""
    if count == 1:
        yield found.apply_async(draw_args(), kwargs, **options).id
        return
    from proj.enqueue import enqueue_many

    problems: list[ProjError] = []
    requests = (found.signature(draw_args(), kwargs, **options) for _ in range(count))
    for outcome in enqueue_many(takewhile(lambda _: not problems, requests)):
        if outcome.error is None:
            yield str(outcome.id)
        else:
            problems.append(outcome.error)
    if problems:
        raise problems[0]


def _enqueued(ids: list[str], count: int) -> str:
    return f"{len(ids)} of {count} {'message is' if count == 1 else 'messages are'} enqueued"


def _print_id(task_id: str, name: str, as_json: bool) -> None:
    try:
        click.echo(to_json({"id": task_id, "task": name}) if as_json else task_id)
    except BrokenPipeError:
        # The reader of the ids has ended, as `head` does; the other messages are still to be enqueued.
        streams.discard_stdout()


def _failure(task_id: str) -> object:
    from proj import results

    with deferred_interrupt() as deliver:
        found = results.failure(proj.app, task_id)
        deliver()
    return found


def _print_results(
    ids: list[str], timeout: float | None, as_json: bool, failed_before: object, watch: Watch
) -> None:
    from proj import results

    failed = False
    began = time.monotonic()
    try:
        with deferred_interrupt() as deliver, progress_bar("waiting for results", len(ids)) as advance:

            def on_interval() -> None:
                deliver()
                watch()

            for task_id in ids:
                ended = results.wait(proj.app, task_id, timeout, on_interval, failed_before, began)
                failed = failed or ended.error is not None
                if as_json:
                    click.echo(to_json(asdict(ended)))
                elif ended.error is None:
                    click.echo(to_json(ended.result))
                else:
                    failure = error_line(f"{ended.task}[{task_id}] {ended.way}: {ended.error}")
                    click.echo(f"Error: {failure}", err=True)
                advance()
                deliver()
    except KeyboardInterrupt:
        click.echo(f"The messages stay enqueued; see: proj result {ids[0]}", err=True)
        raise
    if failed:
        raise click.exceptions.Exit(ExitCode.TASK_FAILED)


def _number(text: str) -> Any:
    """The text as a number, or unchanged: checking the task's arguments reports it better."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _json(text: str, problem: str, hint: str) -> Any:
    """The JSON in the text. Raises `BadInput`, with this problem and hint for a text that is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except BadInput:
        raise
    except (ValueError, RecursionError):
        raise BadInput(problem, hint) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict. Raises `BadInput` for a duplicate key, whose first value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadInput(f"this argument has a key twice: {json.dumps(twice)}")
    return found
