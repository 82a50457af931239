"""The demo's output: a table updated in place on a terminal, otherwise one line per event."""

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from demo_watch import Message
from rich.box import SIMPLE_HEAD
from rich.console import CONSOLE_SVG_FORMAT, Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

#: Columns of the picture.
PICTURE_WIDTH: Final = 100

STYLES: Final = {"waiting": "dim", "running": "yellow", "done": "green", "failed": "red"}


class View:
    """Prints the demo's progress, and the table of messages."""

    def __init__(self) -> None:
        # Explicit, since rich takes FORCE_COLOR, which CI often sets, for a terminal.
        self.console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
        self.has_table = self.console.is_terminal and not self.console.is_dumb_terminal
        self._start = time.monotonic()
        #: All output, with the last state of the table.
        self._printed: list[RenderableType] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        """Print a line with the time, above the table."""
        self._printed.append(self._line(text))
        self.console.print(self._printed[-1], soft_wrap=not self.has_table)

    def note(self, text: str) -> None:
        """Print a line only if there is no table, which shows the same."""
        if not self.has_table:
            self.console.print(self._line(text), soft_wrap=True)

    def _line(self, text: str) -> Text:
        style = "bold red" if text.startswith("KILLED") else ""
        return Text(f"{self.elapsed:4.1f} s  ", style=style) + Text(text)

    @contextmanager
    def spinner(self, text: str) -> Iterator[None]:
        """Show a spinner during the block."""
        self.note(text)
        with self.console.status(text):
            yield

    @contextmanager
    def table(self, messages: Sequence[Message]) -> Iterator[Callable[[], None]]:
        """Show the table during the block; the yielded function updates it."""
        if self.has_table:
            with Live(self._draw(messages), console=self.console, auto_refresh=False) as live:
                try:
                    yield lambda: live.update(self._draw(messages), refresh=True)
                finally:
                    live.update(self._draw(messages))
        else:
            yield lambda: None
        self._printed.append(self._draw(messages))

    def figures(self, rows: Sequence[tuple[str, int, str]]) -> None:
        """Print the final table: name, count, and what it counts."""
        table = Table(box=SIMPLE_HEAD if self.has_table else None, show_header=self.has_table, pad_edge=False)
        table.add_column("in the end")
        table.add_column("count", justify="right")
        table.add_column("what it counts")
        for name, count, meaning in rows:
            table.add_row(name, str(count), meaning)
        self._printed.append(table)
        self.console.print(table)

    def save_picture(self, path: Path) -> None:
        """Write the output as an SVG file, without fonts that a browser would download."""
        console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
        for part in self._printed:
            console.print(part, highlight=False)
        without_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        path.write_text(console.export_svg(title="make demo", code_format=without_fonts, unique_id="demo"))

    def _draw(self, messages: Sequence[Message]) -> Group:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("message", min_width=8)
        table.add_column("state", no_wrap=True)
        table.add_column("worker")
        for title in ("attempts", "seconds", "result"):
            table.add_column(title, justify="right", no_wrap=True)
        for message in messages:
            table.add_row(
                # One line per message, truncated if needed, so that all fit on 24 lines.
                Text(message.label, no_wrap=True, overflow="ellipsis"),
                Text(message.state, style=STYLES[message.state]),
                Text(", then ".join(message.attempts), no_wrap=True, overflow="ellipsis"),
                str(len(message.attempts) or ""),
                "" if message.ran_for is None else f"{message.ran_for:.1f}",
                message.result,
            )
        done = sum(message.state == "done" for message in messages)
        return Group(table, Text(f"{self.elapsed:4.1f} s  {done} of {len(messages)} done"))
