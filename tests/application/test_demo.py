"""The demo that `make demo` runs, as a stranger runs it: a program, its output and its exit code."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from proj import queues
from tests.lib import fork_server
from tests.lib.bundle import Bundle
from tests.lib.waiting import PATIENCE, eventually

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"

#: Seconds that a run may take before the test ends it: a machine may be slow, and what is stuck is for ever.
RUN_TIMEOUT = 400

#: The deadline, in seconds, of a demo that shall come far, if it takes its time: its own of 50 is for people.
LONG_DEADLINE = 300

#: Less work, with two texts that are long enough for a worker to be killed at one of them.
SHORTER = (
    ("Second message..", "Second message."),
    ("Third message...", "Third message...."),
    ("Fifth message.....", "Fifth message."),
)

#: Runs a program that its arguments name, as Python does.
RUN = """
import runpy, sys
del sys.argv[0]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Demo:
    """A demo that runs, with all that it writes in a folder of its own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.out = ""

    def says(self, pattern: str) -> re.Match[str]:
        """Read on until a line has this; fails the test when the output ends before."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.out += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"never said {pattern!r}:\n{self.out}{self.end()}")

    def ended(self) -> int:
        """How many of its messages are executed, as far as it was read."""
        return len(re.findall(r" done  ", self.out))

    def end(self) -> str:
        """Wait for the end, and return what it said on stderr."""
        out, err = self.process.communicate(timeout=RUN_TIMEOUT)
        self.out += out
        return err

    def figure(self, name: str) -> int:
        """A number of the last table."""
        found = re.search(rf"^{name} +(\d+) ", self.out, re.MULTILINE)
        assert found, f"no figure {name!r} in:\n{self.out}"
        return int(found[1])

    def processes(self) -> list[psutil.Process]:
        """Processes that know of the folder, except the demo itself."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == self.process.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if str(self.folder) in " ".join((*process.cmdline(), *process.environ().values())):
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """What is left of it, files and processes."""
        return [*map(str, self.folder.iterdir()), *map(str, self.processes())]


@contextmanager
def start_demo(
    folder: Path, *options: str, program: Path = DEMO, executed: bool = False, **env: str
) -> Iterator[Demo]:
    folder.mkdir(exist_ok=True)
    start: Callable[..., subprocess.Popen[str]] = subprocess.Popen if executed else fork_server.popen
    process = start(
        [sys.executable, *([] if executed else ["-c", RUN]), str(program), *options],
        cwd=Path.cwd(),
        env=os.environ | {"TMPDIR": str(folder)} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Demo(process, folder)
        finally:
            if process.poll() is None:
                process.terminate()


def _changed(folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the demo in which something is otherwise."""
    copy = folder / "examples"
    shutil.copytree(DEMO.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    program = copy / DEMO.name
    text = program.read_text()
    for there, instead in changes:
        assert text.count(there) == 1, f"{there!r} is not once in {DEMO}"
        text = text.replace(there, instead)
    program.write_text(text)
    return program


@pytest.mark.long
@pytest.mark.usefixtures("rabbitmq")
def test_demo_loses_nothing_with_a_killed_worker(tmp_path: Path) -> None:
    """The demo kills a worker, loses no message, says so in plain lines, and is gone."""
    shorter = _changed(tmp_path, *SHORTER)
    # FORCE_COLOR, which CI sets, makes rich take a pipe for a terminal.
    with start_demo(
        tmp_path / "its", f"--deadline={LONG_DEADLINE}", program=shorter, executed=True, FORCE_COLOR="1"
    ) as demo:
        killed = int(demo.says(r"Process (\d+) is gone")[1])
        assert not psutil.pid_exists(killed)
        err = demo.end()

    assert (demo.process.returncode, err) == (0, "")
    assert demo.figure("accepted") == 15
    assert demo.figure("executed") == 15
    assert demo.figure("redelivered") >= 1, demo.out
    assert demo.figure("dead") == 0
    assert demo.figure("lost") == 0
    assert "\x1b" not in demo.out
    assert demo.left() == []


@pytest.mark.long
def test_demo_notices_messages_that_are_taken_away(bundle: Bundle, tmp_path: Path) -> None:
    """Negative control: when messages are purged behind its back, the demo counts just these as lost."""
    given_up = tmp_path / "given up"
    program = _changed(
        tmp_path,
        *SHORTER,
        # Where a RabbitMQ is that runs already, and that nobody else has to do with.
        (
            "broker = start_broker(folder, view, deadline, cleanup)\n    use(broker.url,",
            f"use({bundle.url!r},",
        ),
        # When the others have ended, however long that takes.
        ("view.elapsed < deadline", f"not Path({str(given_up)!r}).exists()"),
    )
    with start_demo(tmp_path / "its", program=program) as demo:
        demo.says("KILLED")
        with bundle.channel() as channel:
            purged = queues.work_queue(queues.DEFAULT_QUEUE)(channel).purge()
        assert purged > 0
        while demo.ended() < 15 - purged:
            demo.says(" done  ")
        given_up.touch()
        err = demo.end()

    assert demo.process.returncode == 1
    assert demo.figure("lost") == purged
    assert demo.figure("executed") == 15 - purged
    assert err.startswith("Error: lost: ")
    assert len(err.splitlines()) == 1
    assert demo.left() == []


@pytest.mark.long
@pytest.mark.usefixtures("rabbitmq")
def test_demo_interrupted_at_work_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C while workers work ends all processes, removes all files, and the exit code is 130."""
    with start_demo(tmp_path, f"--deadline={LONG_DEADLINE}") as demo:
        demo.says("w2 started")
        demo.process.send_signal(signal.SIGINT)
        err = demo.end()

    assert (demo.process.returncode, err) == (130, "Interrupted.\n")
    assert demo.left() == []


@pytest.mark.usefixtures("rabbitmq")
def test_demo_ended_while_rabbitmq_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM before RabbitMQ is ready ends all processes and removes all files as well."""
    with start_demo(tmp_path) as demo:
        eventually("RabbitMQ starts", lambda: list(tmp_path.glob("*/broker/node.json")))
        demo.process.terminate()
        err = demo.end()

    assert (demo.process.returncode, err) == (128 + signal.SIGTERM, "")
    assert demo.left() == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their killed parent")
@pytest.mark.usefixtures("rabbitmq")
def test_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    """SIGKILL of the demo ends its workers and its broker too; only its files stay."""
    with start_demo(tmp_path, f"--deadline={LONG_DEADLINE}") as demo:
        demo.says("w2 started")
        found = demo.processes()
        assert len(found) >= 5  # two workers and their pools, and RabbitMQ
        demo.process.kill()
        demo.end()

    assert psutil.wait_procs(found, timeout=PATIENCE)[1] == []
    assert demo.processes() == []


def test_demo_without_rabbitmq_says_so_in_one_line(tmp_path: Path) -> None:
    """Where there is no RabbitMQ, the demo ends with one line, exit code 69, and nothing left."""
    with start_demo(tmp_path, PROJ_RABBITMQ_DIR=str(tmp_path / "nowhere")) as demo:
        err = demo.end()

    assert demo.process.returncode == 69
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert demo.left() == []
