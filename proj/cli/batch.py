"""`proj enqueue batch`: enqueue what the lines of a file request."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

import proj
from proj.cli.interrupt import Deferred, deferred_interrupt
from proj.cli.progress import rate_bar
from proj.cli.shown_log import show_log
from proj.cli.strict_json import to_json
from proj.errors import BadInput, ExitCode, ProjError
from proj.logs import streams
from proj.logs.printable import counted, error_line

if TYPE_CHECKING:
    from celery.canvas import Signature

    from proj.enqueue import Batch, Published
    from proj.enqueue.json_lines import RequestParser
    from proj.enqueue.progress_file import ProgressFile

#: Errors of lines that --keep-going prints; --json has all of them.
_SHOWN: Final = 20


class _Place(NamedTuple):
    """The number of a line, and the digest of all lines up to it."""

    number: int
    digest: bytes


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, readable=False, allow_dash=True), metavar="FILE|-")
@click.option(
    "--progress",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep there how far it has come; the same command then goes on after an interruption.",
)
@click.option("--keep-going", is_flag=True, help="Pass over lines that are wrong.")
@click.option("--dry-run", is_flag=True, help="Enqueue nothing; check each line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def batch(file: str, progress: Path | None, keep_going: bool, dry_run: bool, as_json: bool) -> None:
    """Enqueue what the lines of a file request, one JSON object a line.

    Its keys are task, args, kwargs, id, queue, priority, countdown, expires and ignore_result. Stops at the
    first line that is wrong or not confirmed. Prints the ids of the messages, unless stdout is a terminal.

    Example: proj enqueue batch requests.jsonl --progress requests.progress
    """
    if dry_run and progress:
        raise click.UsageError("--dry-run and --progress cannot be combined")

    from proj.enqueue import Batch
    from proj.enqueue.json_lines import LineReader, RequestParser
    from proj.enqueue.progress_file import ProgressFile

    show_log()
    with ExitStack() as stack:
        descriptor = stack.enter_context(_opened(file))
        kept = stack.enter_context(ProgressFile(progress)) if progress else None
        interrupt = stack.enter_context(deferred_interrupt())
        publisher = _DryRun() if dry_run else Batch(proj.app)
        stack.callback(publisher.close)
        run = _Run(
            publisher, RequestParser(proj.app), kept, interrupt, keep_going=keep_going, as_json=as_json
        )
        reader = LineReader(descriptor, run.before_waiting)
        what = "checking" if dry_run else "enqueueing"
        show = stack.enter_context(rate_bar(what, reader.size, data=as_json))
        try:
            run.read(iter(reader), lambda: show(reader.position, run.counts.total()))
        finally:
            run.end()
    run.report()


class _DryRun:
    """Checks requests as `Batch` does, and sends none: what it calls confirmed is valid."""

    def __init__(self) -> None:
        from proj.enqueue.composing import Composer

        self._composer = Composer(proj.app)
        self._ended: list[Published] = []

    def put(self, request: "Signature", *, key: Any, **_: Any) -> bool:
        from proj.enqueue import Published, Status

        try:
            task = self._composer.compose(request).task
        except BadInput as error:
            self.refuse(request, error, key=key)
            return False
        self._ended.append(Published(request, Status.CONFIRMED, task, None, None, key))
        return True

    def refuse(self, request: "Signature | None", error: BadInput, *, key: Any) -> None:
        from proj.enqueue import Published, Status

        task = str(request.task) if request else ""
        self._ended.append(Published(request, Status.REFUSED, task, None, error, key))

    def close(self) -> None:
        pass

    def ended(self) -> "list[Published]":
        ended, self._ended = self._ended, []
        return ended

    settle = ended


class _Run:
    """Reads lines, enqueues what they request, and prints how each ended."""

    def __init__(
        self,
        publisher: "Batch | _DryRun",
        parser: "RequestParser",
        kept: "ProgressFile | None",
        interrupt: Deferred,
        *,
        keep_going: bool,
        as_json: bool,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._publisher = publisher
        self._parser = parser
        self._kept = kept
        self._interrupt = interrupt
        self._keep_going = keep_going
        self._as_json = as_json
        self._names = {"confirmed": "valid", "refused": "wrong"} if isinstance(publisher, _DryRun) else {}
        self._prints_ids = not sys.stdout.isatty() and not self._names
        self._began = time.monotonic()
        #: The line that it stops at, and why; a line that was passed over is not among these.
        self._stopped_at = 0
        self._problem: Exception | None = None
        #: How many lines were done, and how many may have been sent, when this run began.
        self._before, self._sent_before = (kept.done, kept.sent) if kept else (0, 0)
        #: The lines that are done now, and the last one that may have been sent.
        self._done = _Place(self._before, kept.digest if kept else b"")
        self._reached = 0
        self._is_complete = False

    def read(self, lines: "Iterator[bytes | None]", show: Callable[[], None]) -> None:
        """Enqueue until the lines end, one of them is not enqueued, or Ctrl-C."""
        place = _Place(0, bytes(len(self._done.digest)))
        while not (self._problem or self._interrupt.pressed):
            try:
                self._interrupt.at_once = True
                line = next(lines)
            except StopIteration:
                if place.number < self._before:
                    raise self._other_input() from None
                self._is_complete = True
                break
            except KeyboardInterrupt:
                self._interrupt.pressed = True
                break
            except OSError as error:
                self._problem = BadInput(f"the input cannot be read: {error.strerror}")
                break
            finally:
                self._interrupt.at_once = False
            place = self._after(place, line)
            if place.number > self._before:
                if not self._put(place, line) and not self._keep_going:
                    break
                self._take(self._publisher.ended())
                show()
            elif place.number == self._before and place != self._done:
                raise self._other_input()

    def before_waiting(self) -> None:
        """The next line is not there yet: meanwhile all before it get their outcome."""
        self._interrupt.at_once = False
        self._take(self._publisher.settle())
        self._interrupt()
        self._interrupt.at_once = True

    def end(self) -> None:
        """Take the outcomes that are still open, and keep how far this run has come."""
        self._take(self._publisher.settle())
        if self._kept and self._is_complete and not self._problem:
            self._kept.remove()
        elif self._kept and self._reached:
            sent = max(self._done.number, self._reached, self._sent_before)
            self._kept.save(*self._done, sent)

    def report(self) -> None:
        """Print the summary. Raises the problem, if there is one."""
        seconds = time.monotonic() - self._began
        parts = [f"{count:,} {self._names.get(name, name)}" for name, count in sorted(self.counts.items())]
        rate = f" ({self.counts.total() / seconds:,.0f}/s)" if seconds else ""
        were = "was" if self._before == 1 else "were"
        before = f"{counted(self._before, 'line')} {were} done before; " if self._before else ""
        click.echo(f"{before}{', '.join(parts) or 'no lines'} in {seconds:.1f} s{rate}", err=True)
        self._interrupt()
        if isinstance(self._problem, ProjError):
            where = f"line {self._stopped_at}: " if self._stopped_at else ""
            hint = self._problem.hint
            if self._kept and not isinstance(self._problem, BadInput):
                hint = "the same command goes on there"
            raise type(self._problem)(f"{where}{self._problem.message}", hint)
        if self._problem:
            raise self._problem
        if self.counts["refused"]:
            raise click.exceptions.Exit(ExitCode.BAD_DATA)

    def _after(self, place: _Place, line: bytes | None) -> _Place:
        from proj.enqueue.progress_file import chained

        return _Place(place.number + 1, chained(place.digest, line) if self._kept else b"")

    def _put(self, place: _Place, line: bytes | None) -> bool:
        """Enqueue what the line requests. Returns False for a line that is wrong."""
        try:
            request = self._parser.request(line)
        except BadInput as error:
            self._publisher.refuse(None, error, key=place)
            return False
        if request is None:
            return True
        task_id, repeat = None, False
        if self._kept and line is not None:
            if place.number > self._kept.sent:
                from proj.enqueue.progress_file import AHEAD

                self._kept.save(*self._done, place.number + AHEAD)
            if "task_id" not in request.options:
                task_id = self._kept.id_of(place.number, line)
            repeat = place.number <= self._sent_before
            self._reached = place.number
        return self._publisher.put(request, key=place, task_id=task_id, repeat=repeat)

    def _take(self, outcomes: "list[Published]") -> None:
        lines = []
        for each in outcomes:
            self.counts[each.status] += 1
            number = each.key.number
            if self._as_json:
                lines.append(to_json(self._row(each)))
            elif each.error is None and self._prints_ids:
                lines.append(str(each.id))
            if each.error is None or (self._keep_going and isinstance(each.error, BadInput)):
                if each.error and self.counts["refused"] <= _SHOWN:
                    click.echo(f"line {number}: {error_line(str(each.error))}", err=True)
                if not self._problem:
                    self._done = each.key
            elif not self._problem:
                self._problem, self._stopped_at = each.error, number
        if lines:
            self._print("\n".join(lines) + "\n")

    def _row(self, each: "Published") -> dict[str, Any]:
        return {
            "line": each.key.number,
            "id": each.id,
            "task": each.task,
            "outcome": self._names.get(each.status, each.status),
            "error": str(each.error) if each.error else None,
        }

    def _print(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of the ids has ended, as `head` does; the other lines are still to be enqueued.
            streams.discard_stdout()
        except OSError as error:
            self._problem = self._problem or error

    def _other_input(self) -> BadInput:
        return BadInput(
            f"the progress file belongs to another input: the inputs differ before line {self._before + 1:,}",
            "give it the same input, or name a file that does not exist",
        )


@contextmanager
def _opened(file: str) -> Iterator[int]:
    if file == "-":
        yield sys.stdin.fileno()
        return
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
