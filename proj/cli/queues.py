"""`proj queues`: how full the queues are."""

import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

import proj
from proj.cli.strict_json import to_json
from proj.errors import ExitCode, ProjError
from proj.logs.printable import printable

if TYPE_CHECKING:
    from proj.depths import Depth, Reader, Snapshot

#: Explains the columns that need it.
_LEGEND: Final = (
    "delayed: messages of all Celery applications in the virtual host.\n"
    "oldest: age of the oldest message; '>' means at least.\n"
    "in, delivered, acknowledged: messages per second."
)

_SOURCES: Final = {
    "management": "unacknowledged, rates: from the management API, up to 5 s old.",
    "workers": "unacknowledged: from the workers; the management API is unavailable.",
    None: "unacknowledged: unknown; neither the management API nor a worker answers.",
}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    metavar="S",
    help="Seconds between refreshes of --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with --watch one per refresh.")
@click.pass_context
def queues(ctx: click.Context, names: tuple[str, ...], watch: bool, interval: float, as_json: bool) -> None:
    """Show the length and message rates of queues.

    Without names: the work queues, the delayed messages of all Celery applications in the virtual host, and
    the dead-letter queue. Unknown numbers are "-", null in JSON. A missing queue of proj is not an error: the
    first worker or message declares it.

    Example: proj queues --watch
    """
    if not watch and ctx.get_parameter_source("interval") is not ParameterSource.DEFAULT:
        raise click.UsageError("--interval needs --watch")
    if math.isnan(interval):  # FloatRange accepts it
        raise click.UsageError("--interval needs a number of seconds")

    from proj.depths import Reader

    with Reader(proj.app, names) as reader:
        if watch:
            try:
                _watch(reader, interval, as_json)
            except KeyboardInterrupt:
                raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        else:
            snapshot = reader.snapshot()
            click.echo(_json(snapshot) if as_json else _table(snapshot))
            for problem in snapshot.problems:
                click.echo(f"Warning: {problem}", err=True)
            if not as_json:
                click.echo(_legend(snapshot), err=True)


def _watch(reader: "Reader", interval: float, as_json: bool) -> None:
    with ExitStack() as stack:
        show = _print_json if as_json else _on_terminal(stack, interval) or _Printer()
        show(reader.snapshot())  # unreachable at the start is an error; later it is shown
        while True:
            time.sleep(interval)
            show(_snapshot(reader))


def _snapshot(reader: "Reader") -> "Snapshot":
    """A snapshot; while the broker is unreachable, one that holds only the error."""
    from proj.depths import Snapshot

    try:
        return reader.snapshot()
    except ProjError as error:
        return Snapshot(depths=(), problems=(str(error),))


def _print_json(snapshot: "Snapshot") -> None:
    click.echo(_json(snapshot))


class _Printer:
    """Prints one table after another, each with its time, and each new problem once."""

    def __init__(self) -> None:
        self._problems: tuple[str, ...] = ()

    def __call__(self, snapshot: "Snapshot") -> None:
        click.echo("\n".join(filter(None, (snapshot.at, _table(snapshot)))) + "\n")
        for problem in snapshot.problems:
            if problem not in self._problems:
                click.echo(f"Warning: {problem}", err=True)
        self._problems = snapshot.problems


def _on_terminal(stack: ExitStack, interval: float) -> Callable[["Snapshot"], None] | None:
    """A function that redraws the table in place; None without a terminal that can, such as TERM=dumb."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    if (console := Console()).is_dumb_terminal:
        return None
    # Without a handler, SIGTERM would leave the cursor hidden.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    live = stack.enter_context(Live(console=console, auto_refresh=False))

    def show(snapshot: "Snapshot") -> None:
        foot = f"{snapshot.at}, every {interval:g} s; Ctrl-C stops."
        words = "\n".join((*snapshot.problems, "", _legend(snapshot), foot))
        table = Text(_table(snapshot), no_wrap=True, overflow="ellipsis")
        live.update(Group(table, Text(words)), refresh=True)

    return show


def _json(snapshot: "Snapshot") -> str:
    return to_json(
        {
            "at": snapshot.at,
            "queues": [_row(depth) for depth in snapshot.depths],
            "unacknowledged_from": snapshot.unacknowledged_from,
            "problems": snapshot.problems,
        }
    )


def _row(depth: "Depth") -> dict[str, Any]:
    return {
        "queue": depth.queue,
        "ready": depth.ready,
        "unacknowledged": depth.unacknowledged,
        "consumers": depth.consumers,
        "oldest": None if depth.oldest is None else round(depth.oldest),
        "in": _rate(depth.published),
        "delivered": _rate(depth.delivered),
        "acknowledged": _rate(depth.acknowledged),
    }


def _rate(much: float | None) -> float | None:
    return None if much is None else round(float(much), 1)


def _table(snapshot: "Snapshot") -> str:
    rows = [_cells(depth) for depth in snapshot.depths]
    if not rows:
        return ""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join((line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:]))) for line in lines
    )


def _cells(depth: "Depth") -> dict[str, str]:
    cells = {name: "-" if value is None else printable(str(value)) for name, value in _row(depth).items()}
    if depth.oldest is not None:
        cells["oldest"] = _age(depth)
    if depth.ready is None:
        cells["ready"] = "missing"
    return cells


def _age(depth: "Depth") -> str:
    minutes, seconds = divmod(round(depth.oldest or 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = next(
        (
            f"{much}{unit}{less:02}{small}" if less else f"{much}{unit}"
            for much, unit, less, small in (
                (days, "d", hours, "h"),
                (hours, "h", minutes, "m"),
                (minutes, "m", seconds, "s"),
            )
            if much
        ),
        f"{seconds}s",
    )
    return text if depth.exact else f">{text}"


def _legend(snapshot: "Snapshot") -> str:
    lines = [_SOURCES[snapshot.unacknowledged_from], _LEGEND]
    if any(depth.ready is None for depth in snapshot.depths):
        lines.append("missing: not declared yet; the first worker or message declares it.")
    return "\n".join(lines)
