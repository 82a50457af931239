"""`proj queues --watch`: it refreshes in place, ends in good order, and outlives its broker."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.lib import fork_server
from tests.lib.bundle import BIN, MANAGEMENT_OFF, Bundle
from tests.lib.proxy import Network, Proxy
from tests.lib.waiting import PATIENCE, eventually

#: Shows the cursor of a terminal, and hides it.
CURSOR_ON, CURSOR_OFF = b"\x1b[?25h", b"\x1b[?25l"


class Watch:
    """A `proj queues --watch` that runs, and what it has printed so far."""

    def __init__(self, bundle: Bundle, *options: str, terminal: str | None = None) -> None:
        self._ours, theirs = pty.openpty() if terminal else os.pipe()
        self.process = fork_server.popen(
            [str(BIN / "proj"), "queues", "--watch", "--interval", "0.2", *options],
            cwd=bundle.folder,
            env=bundle.env | {"TERM": terminal or "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        self._printed = b""

    def printed(self) -> bytes:
        # Linux raises at the end of a terminal.
        with suppress(OSError):
            while select.select([self._ours], [], [], 0)[0] and (chunk := os.read(self._ours, 65536)):
                self._printed += chunk
        return self._printed

    def shows(self, pattern: bytes) -> None:
        """Wait for a match in what is printed from now on."""
        start = len(self.printed())
        eventually(
            f"{pattern!r} is shown, after {self._printed!r}",
            lambda: re.search(pattern, self.printed()[start:]) or not self._alive(),
        )

    def interrupt(self) -> tuple[int, bytes]:
        """Ctrl-C: its exit code, and what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        _, stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, stderr

    def end(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        if self.process.stderr:
            self.process.stderr.close()
        os.close(self._ours)

    def _alive(self) -> bool:
        assert self.process.poll() is None, self.printed()
        return True


@contextmanager
def watch(bundle: Bundle, *options: str, terminal: str | None = None) -> Iterator[Watch]:
    watching = Watch(bundle, *options, terminal=terminal)
    try:
        yield watching
    finally:
        watching.end()


def test_watch_refreshes_a_terminal_in_place(bundle: Bundle) -> None:
    """A change is shown, drawn over what was there; Ctrl-C ends it with 130, and shows the cursor again."""
    with watch(bundle, terminal="xterm") as watching:
        watching.shows(rb"proj\.tasks +missing ")
        bundle.enqueue("add", "1", "2", "--count", "7")
        watching.shows(rb"proj\.tasks +7 ")
        code, stderr = watching.interrupt()
        printed = watching.printed()

    assert (code, stderr) == (130, b"")
    assert b"\x1b[1A" in printed  # the cursor goes up, over the last one
    assert printed.rfind(CURSOR_ON) > printed.rfind(CURSOR_OFF) >= 0


def test_watch_that_is_told_to_end_leaves_the_terminal_in_order(bundle: Bundle) -> None:
    """SIGTERM shows the cursor again, as Ctrl-C does."""
    with watch(bundle, terminal="xterm") as watching:
        watching.shows(rb"proj\.tasks +missing ")
        watching.process.send_signal(signal.SIGTERM)
        assert watching.process.wait(PATIENCE) == 128 + signal.SIGTERM
        printed = watching.printed()

    assert printed.rfind(CURSOR_ON) > printed.rfind(CURSOR_OFF) >= 0


def test_watch_on_a_terminal_that_cannot_draw_over_prints_one_table_after_another(bundle: Bundle) -> None:
    """With TERM=dumb, such as that of an editor, the numbers are there before Ctrl-C."""
    with watch(bundle, terminal="dumb") as watching:
        watching.shows(rb"proj\.tasks +missing ")
        bundle.enqueue("add", "1", "2")
        watching.shows(rb"proj\.tasks +1 ")
        code, stderr = watching.interrupt()

    assert (code, stderr) == (130, b"")
    assert b"\x1b" not in watching.printed()


def test_watch_in_a_pipe_prints_one_table_after_another(bundle: Bundle) -> None:
    """Each with its time, and nothing that steers a terminal; a warning is said once."""
    bundle.env |= MANAGEMENT_OFF
    with watch(bundle) as watching:
        watching.shows(rb"proj\.tasks +missing ")
        bundle.enqueue("add", "1", "2")
        watching.shows(rb"20..-..-..T..:..:..Z\nqueue +ready .*\nproj\.tasks +1 ")
        code, stderr = watching.interrupt()

    assert code == 130
    assert b"\x1b" not in watching.printed()
    assert stderr.count(b"\n") == stderr.count(b"Warning: ") == 1


def test_watch_as_json_prints_a_line_a_refresh(bundle: Bundle) -> None:
    """Each line is an object of its own, there as soon as it is known."""
    with watch(bundle, "--json", "proj.tasks") as watching:
        watching.shows(rb'"ready": null')
        bundle.enqueue("add", "1", "2")
        watching.shows(rb'"ready": 1.*\n')
        code, stderr = watching.interrupt()

    assert (code, stderr) == (130, b"")
    lines = [json.loads(line) for line in watching.printed().splitlines()]
    assert [line["queues"][0]["queue"] for line in lines] == ["proj.tasks"] * len(lines)


def test_watch_outlives_its_broker(bundle: Bundle) -> None:
    """While the broker is away that is what is shown, and when it is back, the numbers are."""
    bundle.enqueue("add", "1", "2")
    with Proxy(bundle.node.info.port) as proxy:
        bundle.env["CELERY_BROKER_URL"] = bundle.url_at(proxy.port)
        with watch(bundle, "--json", "proj.tasks") as watching:
            watching.shows(rb'"ready": 1')
            proxy.network = Network.CUTS_AT_ANSWER
            watching.shows(rb'"queues": \[\].*"problems": \["[^"]*the broker')
            assert proxy.happened[Network.CUTS_AT_ANSWER] == 1
            watching.shows(rb'"ready": 1')
