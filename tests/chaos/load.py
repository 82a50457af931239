"""The programs that publish while a fault works."""

import subprocess
from typing import TYPE_CHECKING, Final

from tests.chaos.ledger import Kind

if TYPE_CHECKING:
    from tests.chaos.stage import Stage

#: Seconds for a program to end.
_END: Final = 60.0


class Load:
    """The publishing programs of a stage."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self.released = 0
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, way: str, env: dict[str, str] | None = None) -> None:
        """Start the program that publishes in this way: `bulk` or `single`; with `env`, not forked."""
        self.programs[way] = self._stage.spawn(
            f"{way}.log", "-m", "tests.chaos.producer", way, env=env, fresh=env is not None
        )

    def replace(self, way: str, env: dict[str, str] | None = None) -> None:
        """Start a program in place of one that was killed, or that ends now; it owes what that one owed."""
        old = self.programs[way]
        if old.poll() is None:
            self._end(way)
        self.start(way, env)
        if way == "bulk":
            confirmed = self._stage.count.look()[Kind.CONFIRMED]
            self._order(max(0, self.released - confirmed))

    def release(self, count: int) -> None:
        """Let `bulk` publish so many more."""
        self.released += count
        self._order(count)

    def _order(self, count: int) -> None:
        stdin = self.programs["bulk"].stdin
        assert stdin is not None
        stdin.write(b"%d\n" % count)
        stdin.flush()

    def finish(self) -> None:
        """Wait until as many messages are confirmed as were released, and end the programs."""
        count = self._stage.count
        self._stage.progress(
            f"{self.released} messages are confirmed", lambda: count.look()[Kind.CONFIRMED] >= self.released
        )
        for way in self.programs:
            self._end(way)

    def _end(self, way: str) -> None:
        program = self.programs[way]
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait(_END) == 0, self._stage.log(f"{way}.log")
