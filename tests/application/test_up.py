"""What `make up` and `make photos` run in a terminal: the programs of a Procfile, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.lib import fork_server
from tests.lib.bundle import BIN, COMMAND_TIMEOUT, GATED_TASK, Bundle
from tests.lib.node_processes import STOPPED, left
from tests.lib.ports import free_port
from tests.lib.waiting import PATIENCE, eventually

ROOT = Path(__file__).parents[2]

WORKER = "worker: celery -A proj worker --concurrency=1 --loglevel=INFO\n"


class Up:
    """`scripts/up` in a terminal of its own."""

    def __init__(self, folder: Path, env: dict[str, str], terminal: int, theirs: int) -> None:
        self._terminal = terminal
        self._shown = bytearray()
        self._found: list[psutil.Process] = []
        # Who leads a session gets the terminal that it opens first.
        opening = 'exec "$@" <"$0" >"$0" 2>&1'
        command = [
            "sh",
            "-c",
            opening,
            os.ttyname(theirs),
            sys.executable,
            str(ROOT / "scripts/up"),
            str(folder),
        ]
        self.process = subprocess.Popen(command, env=env, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # Linux raises at the end of a terminal
            while chunk := os.read(self._terminal, 65536):
                self._shown.extend(chunk)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[\d+m", "", self._shown.decode("utf-8", "replace"))

    def says(self, pattern: str) -> None:
        eventually(f"it says {pattern}", lambda: re.search(pattern, self.text), seen=lambda: self.text)

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def programs(self) -> list[psutil.Process]:
        self._found = psutil.Process(self.process.pid).children(recursive=True)
        return self._found

    def kill(self) -> None:
        """With all its programs, of a test that has failed too."""
        if self.process.poll() is None:
            self.programs()
        self.process.kill()
        for program in self._found:
            with suppress(psutil.NoSuchProcess):
                program.kill()
        self.process.wait(PATIENCE)


@contextmanager
def up(folder: Path, procfile: str, env: dict[str, str]) -> Iterator[Up]:
    (folder / "Procfile").write_text(procfile)
    terminal, theirs = os.openpty()
    try:
        it = Up(folder, env, terminal, theirs)
        try:
            yield it
        finally:
            it.kill()
    finally:
        os.close(theirs)
        os.close(terminal)


@pytest.mark.usefixtures("rabbitmq")
def test_broker_that_it_has_started_ends_last(tmp_path: Path) -> None:
    """After a worker that finishes its task; it shows where the broker's management is."""
    port = free_port()
    gate, state = tmp_path / "gate", tmp_path / "state"
    (tmp_path / "gated.py").write_text(
        "import time\nfrom pathlib import Path\nfrom proj import app\n"
        '@app.task(name="gated")\ndef gated(gate: str) -> None:\n'
        "    while not Path(gate).exists(): time.sleep(0.05)\n"
    )
    env = os.environ | {
        "CELERY_BROKER_URL": "",
        "AMQP_PORT": str(port),
        "PROJ_STATE_DIR": str(state),
        "PROJ_TASKS": "gated",
    }
    broker = "broker: proj broker run --management-port 0 --metrics-port 0\n"
    with up(tmp_path, broker + WORKER, env) as it:
        it.says(r"worker \| .* ready\.")
        (management,) = re.findall(r"^broker \| management +(\S+)\r$", it.text, re.MULTILINE)
        assert f"management: {management}, user guest, password guest\r\n" in it.text
        enqueue = [str(BIN / "proj"), "enqueue", "task", "gated", json.dumps(str(gate)), "--id", "one"]
        process = fork_server.popen(enqueue, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL)
        assert fork_server.ended(process, COMMAND_TIMEOUT).returncode == 0
        it.says(r"gated\[one\] received")
        programs = it.programs()

        it.press_ctrl_c()
        it.says("Warm shutdown")
        gate.touch()

        assert it.process.wait(PATIENCE) == 130
        assert left(programs) == []
        it.says(r"gated\[one\] succeeded")
        assert not re.search("Traceback|ERROR|Error", it.text), it.text
    log = (state / "broker/rabbitmq.log").read_text()
    assert STOPPED in log
    assert "connection_forced" not in log  # nobody was connected any more


@pytest.mark.used_vhost
def test_second_ctrl_c_gives_running_tasks_back(bundle: Bundle) -> None:
    """They are not waited for, and not lost."""
    bundle.add_task(GATED_TASK)
    bundle.enqueue("task", "proj.tasks.gated", json.dumps(str(bundle.folder / "never")), "--id", "one")
    with up(bundle.folder, WORKER, bundle.env) as it:
        it.says(r"gated\[one\] received")
        programs = it.programs()

        it.press_ctrl_c()
        it.says("Warm shutdown")
        it.press_ctrl_c()

        assert it.process.wait(PATIENCE) == 130
        assert left(programs) == []
    eventually("the message is back", lambda: bundle.depth("proj.tasks") == 1)


def sleeping(it: Up, count: int) -> list[psutil.Process]:
    """All programs, once so many of them sleep."""

    def found() -> list[psutil.Process] | None:
        programs = it.programs()
        return programs if sum(program.name() == "sleep" for program in programs) == count else None

    return eventually("the programs run", found, seen=lambda: it.text) or []


@pytest.mark.used_vhost
def test_all_end_when_one_has_ended(bundle: Bundle) -> None:
    """Also what one leaves behind; the exit code is that of the first."""
    two = "two: until [ -e go ]; do read -t 0.05 <> fifo; done; exit 3\n"
    os.mkfifo(bundle.folder / "fifo")
    with up(bundle.folder, "one: sleep 1000 & sleep 1001\n" + two, bundle.env) as it:
        programs = sleeping(it, 2)

        (bundle.folder / "go").touch()

        assert it.process.wait(PATIENCE) == 3
        assert left(programs) == []
        it.says("two \\| ended with exit code 3")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a program that its parent has ended")
@pytest.mark.used_vhost
def test_nothing_is_left_when_it_is_killed(bundle: Bundle) -> None:
    """By SIGKILL; its broker is a program as the others are."""
    with up(bundle.folder, "one: sleep 1000\ntwo: sleep 1000\n", bundle.env) as it:
        programs = sleeping(it, 2)

        it.process.kill()

        assert it.process.wait(PATIENCE) == -signal.SIGKILL
        assert left(programs) == []
