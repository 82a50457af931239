"""`proj enqueue batch` of a file that is many windows long, through one fault after the other."""

import json
import signal
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Self

from proj.enqueue.progress_file import ProgressFile
from tests.lib import fork_server
from tests.lib.batches import taken_headers
from tests.lib.bundle import BIN, COMMAND_TIMEOUT, Bundle
from tests.lib.erlang import evaluate
from tests.lib.publisher import ID, REPEAT, limit
from tests.lib.waiting import eventually

#: Smaller ones than the program's own, for a smaller file.
WINDOW, AHEAD = 200, 2_500

#: Many windows, and several times as many as a progress file announces at once.
LINES = 3 * AHEAD

#: Where the faults happen, in ids that were read; a pipe holds some more, and the program then stands still.
KILLED, BEFORE_RESTART, AFTER_RESTART, BEFORE_FULL, AFTER_FULL = AHEAD + 2 * WINDOW, 500, 1_000, 500, 1_000


class Run:
    """A run with a progress file, which is killed in the end. It stands still while its ids are not read."""

    def __init__(self, bundle: Bundle) -> None:
        self._words = bundle.folder / "words"
        with self._words.open("wb") as words:
            self._process: subprocess.Popen[bytes] = fork_server.popen(
                [str(BIN / "proj"), "enqueue", "batch", "requests.jsonl", "--progress", "progress"],
                cwd=bundle.folder,
                env=bundle.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
            )
        self.ids: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=COMMAND_TIMEOUT)

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def read(self, count: int) -> None:
        """Read the next ids."""
        for _ in range(count):
            line = self.stdout.readline().decode().strip()
            assert line, f"it has ended: {self._words.read_text()}"
            self.ids.append(line)

    def end(self, signal_number: signal.Signals | None = None) -> tuple[int, str]:
        """Read the ids that are left, if stdout is open; its exit code and its words."""
        if signal_number:
            self._process.send_signal(signal_number)
        if not self.stdout.closed:
            self.ids += self.stdout.read().decode().split()
        return self._process.wait(COMMAND_TIMEOUT), self._words.read_text()


def refused(bundle: Bundle) -> int:
    """Messages that the node has received and not confirmed since its start."""
    # The labels are a list, and a map on RabbitMQ 4.3.
    labels = "[[{protocol, amqp091}], #{protocol => amqp091}]"
    counted = f"hd(maps:values(maps:with({labels}, rabbit_global_counters:overview())))"
    received, confirmed = (
        f"maps:get({name}, {counted})"
        for name in ("messages_received_confirm_total", "messages_confirmed_total")
    )
    return int(evaluate(bundle.node, f"{received} - {confirmed}"))


def test_large_file_through_one_fault_after_the_other(own: Bundle) -> None:
    """SIGKILL, a restart of the broker, Ctrl-C, a full queue, and nobody who reads the ids any more.

    Each line is enqueued, under the id that belongs to it; of the copies of a message only one is not marked
    as a repeat, and what was called confirmed has that one.
    """
    own.env["PROJ_PUBLISH_TIMEOUT"] = "120"
    own.switch_off("enqueue/batch.py", "WINDOW: Final = 1000", f"WINDOW: Final = {WINDOW}")
    own.switch_off("enqueue/progress_file.py", "AHEAD: Final = 5_000", f"AHEAD: Final = {AHEAD}")
    lines = [json.dumps({"task": "proj.tasks.add", "args": [number, 2]}) for number in range(LINES)]
    (own.folder / "requests.jsonl").write_text("".join(f"{line}\n" for line in lines))
    progress = own.folder / "progress"

    with Run(own) as killed:
        killed.read(KILLED)
        assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
    kept = json.loads(progress.read_text())
    assert 0 < kept["done"] <= len(killed.ids) < kept["sent"] < LINES
    ids = _ids(progress, lines)
    assert killed.ids == ids[: len(killed.ids)]

    with Run(own) as restarted:
        restarted.read(BEFORE_RESTART)
        evaluate(own.node, "rabbit:stop()")
        with ThreadPoolExecutor() as other:
            other.submit(evaluate, own.node, "rabbit:start()")
            restarted.read(AFTER_RESTART)
        code, words = restarted.end(signal.SIGINT)
    assert (code, words.splitlines()[-1]) == (130, "Interrupted.")
    assert f"{kept['done']:,} lines were done before; {len(restarted.ids):,} confirmed in " in words
    assert restarted.ids == ids[kept["done"] :][: len(restarted.ids)]
    kept = json.loads(progress.read_text())

    with Run(own) as last:
        last.read(BEFORE_FULL)
        before = refused(own)
        limit(own, LINES // 2)  # more than there are still to come, and fewer than there are
        with ThreadPoolExecutor() as other:
            reading = other.submit(last.read, AFTER_FULL)
            eventually("messages were refused several times", lambda: refused(own) > before + 3 * WINDOW)
            found = taken_headers(own)
        reading.result()
        last.stdout.close()
        code, words = last.end()
    assert code == 0, words
    assert f"{kept['done']:,} lines were done before; {LINES - kept['done']:,} confirmed in " in words
    assert not progress.exists()

    marks: dict[str, list[bool]] = defaultdict(list)
    for header in found + taken_headers(own):
        marks[header[ID]].append(REPEAT in header)
    assert marks.keys() == set(ids)
    assert max(marked.count(False) for marked in marks.values()) == 1
    assert all(False in marks[each] for each in killed.ids)


def _ids(progress: Path, lines: list[str]) -> list[str]:
    """The ids that belong to the lines of a run."""
    with ProgressFile(progress) as kept:
        return [kept.id_of(number, line.encode()) for number, line in enumerate(lines, 1)]
