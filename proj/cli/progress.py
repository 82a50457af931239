"""A progress bar on a terminal's stderr, and none elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar; call the yielded function once for each of the `total` items."""
    if not sys.stderr.isatty():
        yield lambda: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


#: Seconds between two updates of a bar that is moved very often.
_REFRESH: Final = 0.1


@contextmanager
def rate_bar(what: str, total: int | None, *, data: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the rate and the time left; call the yielded function with position and count.

    The bar is full when the position is `total`; without a total it only moves. The rate is that of the
    count. There is none where the `data` on stdout would be drawn over it.
    """
    if not sys.stderr.isatty() or (data and sys.stdout.isatty()):
        yield lambda _position, _count: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]:,} ({task.fields[rate]:,.0f}/s)"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    began = shown = time.monotonic()
    # Rich would take over stdout too, and write to stderr what a program is to read.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=total, count=0, rate=0.0)

        def update(position: int, count: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= _REFRESH:
                shown = now
                bar.update(task, completed=position, count=count, rate=count / (now - began))

        yield update
