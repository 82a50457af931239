"""How a publishing program is told what to do: numbers on its stdin, a line each."""

import os
import select
from typing import Final

#: Messages that `bulk` publishes with one `enqueue_many`.
CHUNK: Final = 500


class Orders:
    """How many messages are owed, and whether there is more to come."""

    def __init__(self) -> None:
        self.owed = 0
        self.ended = False
        self._text = b""

    def look(self, seconds: float | None) -> None:
        """Read what has come, or comes within so many seconds; None waits for it."""
        readable, _, _ = select.select([0], [], [], seconds)
        if readable:
            data = os.read(0, 4096)
            self.ended = not data
            *lines, self._text = (self._text + data).split(b"\n")
            self.owed += sum(map(int, lines))
