"""What a test works with: a virtual host, folders, and programs that know of nothing else."""

import base64
import importlib.util
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import kombu
import pytest

import proj
from proj import queues
from proj.private_node.node import BrokerNode
from proj.rabbitmq import topology
from tests.lib import fork_server
from tests.lib.dead_reader import undisturbed
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

#: Seconds that a command may take.
COMMAND_TIMEOUT = 300


#: A task that lasts until its gate, a file, is there.
GATED_TASK = """
    @app.task(name="proj.tasks.gated")
    def gated(gate: str) -> None:
        from pathlib import Path
        log.info("Received %r", gate)
        while not Path(gate).exists():
            time.sleep(0.05)
        log.info("Done after %r", gate)
"""

#: The address of a management API that is off.
MANAGEMENT_OFF = {"PROJ_MANAGEMENT_URL": "http://127.0.0.1:1"}

#: More messages than a test looks at.
MOST_PEEKED = 5_000

#: Where the console scripts of this environment are.
BIN = Path(sys.executable).parent

#: The package under test.
PACKAGE = Path(proj.__file__).parent


#: Which of the test processes this is: they share a node, and may run tests of the same module.
_PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "alone")


def shared_vhost(name: str) -> str:
    """The name of a virtual host that some tests of this process share."""
    return f"{name}-{_PROCESS}"


def vhost_of(request: pytest.FixtureRequest) -> str:
    """The name of a virtual host for this test alone."""
    module = request.node.path.stem.removeprefix("test_")
    return shared_vhost(re.sub(r"\W+", "-", f"{module}-{request.node.name}"))


def _write(path: Path, code: str) -> None:
    """Write a module, and take away what is compiled: Python sees no change of the same second and size."""
    path.write_text(code)
    Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


class Bundle:
    """A virtual host of the session's RabbitMQ, a state folder, and the programs of the project in them."""

    def __init__(self, node: BrokerNode, vhost: str, folder: Path) -> None:
        self.node = node
        self.vhost = vhost
        self.folder = folder
        self.url = self.url_at(node.info.port)
        self.env = os.environ | {
            "CELERY_BROKER_URL": self.url,
            "PROJ_MANAGEMENT_URL": node.management_url,
            "PROJ_STATE_DIR": str(folder / "state"),
            # Longer than by default: nobody waits here, and to declare 28 quorum queues on a busy machine
            # takes seconds.
            "PROJ_PUBLISH_TIMEOUT": "30",
            # Where a worker that is killed leaves what it cannot clear away.
            "TMPDIR": str(folder),
            "TZ": "UTC",
            "COLUMNS": "200",
        }
        self._cleanup = ExitStack()
        #: Whether a policy was ever set; see `tests.lib.vhosts`.
        self.had_policy = False

    def url_at(self, port: int) -> str:
        """The URL of the virtual host at another port, where something stands before the broker."""
        return f"amqp://guest:guest@127.0.0.1:{port}/{quote(self.vhost, safe='')}"

    def __enter__(self) -> Self:
        self.management("PUT", f"vhosts/{quote(self.vhost, safe='')}")
        return self

    def __exit__(self, *_: object) -> None:
        # The virtual host stays until the node ends: to delete its queues would take seconds.
        self._cleanup.close()

    # --- Programs

    def proj(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        closed: Collection[int] = (),
        **streams: IO[str],
    ) -> subprocess.CompletedProcess[str]:
        """Run `proj` to its end; `stdout` and `stderr` may go to a file, or be `closed`."""
        return self._forked_to_its_end([str(BIN / "proj"), *args], env, closed=closed, **streams)

    def start(
        self, *args: str, env: dict[str, str] | None = None, log: str | None = None
    ) -> subprocess.Popen[str]:
        """Start `proj`, which is ended with the test; its output goes to pipes, or to the file `log`."""
        with ExitStack() as stack:
            output = stack.enter_context((self.folder / log).open("ab")) if log else subprocess.PIPE
            process = self._forked([str(BIN / "proj"), *args], env, stdout=output, stderr=output)
        self._cleanup.enter_context(process)
        self._cleanup.callback(process.kill)
        return process

    def enqueue(self, *args: str) -> None:
        """Run `proj enqueue`, which must not fail."""
        done = self.proj("enqueue", *args)
        assert done.returncode == 0, done.stderr

    def proj_on_terminal(self, *args: str) -> tuple[subprocess.CompletedProcess[bytes], bytes]:
        """Run the console script with a terminal as its stderr; the second is what that was sent."""
        ours, theirs = pty.openpty()
        drawn = bytearray()

        def read() -> None:
            # Linux raises at the end of a terminal.
            with suppress(OSError):
                while chunk := os.read(ours, 65536):
                    drawn.extend(chunk)

        # Meanwhile: a terminal that nobody reads is full after some seconds of a progress bar.
        reader = threading.Thread(target=read)
        reader.start()
        command = [str(BIN / "proj"), *args]
        try:
            done = self._forked_to_its_end(command, {"TERM": "xterm"}, stderr=theirs, text=False)
        finally:
            os.close(theirs)
            reader.join()
            os.close(ours)
        return done, bytes(drawn)

    def python(self, code: str, *, forked: bool = True) -> Any:
        """Run Python code of a user in a process of its own; what it prints last is taken for JSON.

        Not `forked`, it has imported nothing before.
        """
        done = self.run_python(code) if forked else self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def run_python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code of a user in a process of its own, however it ends."""
        return self._forked_to_its_end([sys.executable, "-c", code])

    def start_python(
        self, code: str, env: dict[str, str] | None = None, *, text: bool = True
    ) -> subprocess.Popen[Any]:
        """Start Python code of a user that is told what to do by its stdin; its last words are the test's."""
        return self._forked([sys.executable, "-c", code], env, stdin=subprocess.PIPE, stderr=None, text=text)

    def run(
        self, *command: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )

    def _forked(
        self, command: list[str], env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        streams = fork_server.STREAMS | options
        return fork_server.popen(command, cwd=self.folder, env=self.env | (env or {}), **streams)

    def _forked_to_its_end(
        self, command: list[str], env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        return fork_server.ended(self._forked(command, env, **options), COMMAND_TIMEOUT)

    def copy_of_the_project(self) -> Path:
        """A copy of the package that the bundle's programs use from now on, to be changed."""
        copy = self.folder / "copy"
        if not copy.exists():
            # With what is compiled, since the times stay; but not with what is half written.
            shutil.copytree(PACKAGE, copy / "proj", ignore=shutil.ignore_patterns("*.pyc.*"))
            self.env["PYTHONPATH"] = str(copy)
        return copy

    def add_task(self, code: str) -> None:
        """Add a task to the copy's `proj/tasks.py`, as a user would."""
        path = self.copy_of_the_project() / "proj/tasks.py"
        _write(path, path.read_text() + "\n\n" + textwrap.dedent(code))

    def switch_off(self, file: str, protection: str, instead: str) -> None:
        """Take a protection out of the copy, for a control that must then lose something."""
        path = self.copy_of_the_project() / "proj" / file
        text = path.read_text()
        assert text.count(protection) == 1, f"{protection!r} is not once in {file}"
        _write(path, text.replace(protection, instead))

    def heal(self) -> None:
        """Put the protections back into the copy; tasks that were added stay."""
        copy = self.copy_of_the_project() / "proj"
        for path in PACKAGE.rglob("*.py"):
            if path.name != "tasks.py":
                _write(copy / path.relative_to(PACKAGE), path.read_text())

    def celery(
        self, *args: str, env: dict[str, str] | None = None, **streams: IO[str]
    ) -> subprocess.CompletedProcess[str]:
        """Run `celery -A proj` to its end; `stdin` may come from a file."""
        return self._forked_to_its_end([str(BIN / "celery"), "-A", "proj", *args], env, **streams)

    def control(self, worker: Worker, *command: str) -> str:
        """What `celery control` prints of the one worker's answer: it waits for no others."""
        where = f"--destination={worker.name}"
        done = self.celery("control", f"--timeout={PATIENCE}", where, *command)
        assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
        return done.stdout

    def worker(
        self,
        *options: str,
        env: dict[str, str] | None = None,
        log: str = "worker.log",
        mingle: bool = False,
    ) -> Worker:
        """Start a worker of one slot, which is ended with the test.

        Without `mingle` it does not wait a second for its neighbours' answers, with each connection.
        """
        given = ["--loglevel=INFO", "--concurrency=1", *options] + ([] if mingle else ["--without-mingle"])
        return self._celery_program("worker", given, env, log)

    def beat(self, *, env: dict[str, str] | None = None, log: str = "beat.log") -> Worker:
        """Start a beat, which is ended with the test; it has what a worker has, but tasks."""
        return self._celery_program("beat", ["--loglevel=INFO"], env, log)

    def _celery_program(self, name: str, options: list[str], env: dict[str, str] | None, log: str) -> Worker:
        path = self.folder / log
        with path.open("wb") as output:
            process = fork_server.popen(
                [str(BIN / "celery"), "-A", "proj", name, *options],
                cwd=self.folder,
                env=self.env | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        worker = Worker(process, path)
        self._cleanup.callback(worker.stop)
        return worker

    # --- The broker, as it sees itself

    def management(self, method: str, path: str, body: Any = None) -> Any:
        self.had_policy |= method == "PUT" and path.startswith(("policies/", "operator-policies/"))
        request = urllib.request.Request(
            f"{self.node.management_url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.loads(response.read() or "null")

    def of_vhost(self, kind: str, rest: str = "") -> Any:
        return self.management("GET", f"{kind}/{quote(self.vhost, safe='')}{rest}")

    def declare(self) -> None:
        """Declare the topology, the delays among it, as a worker does."""
        with kombu.Connection(self.url) as connection:
            topology.declare(connection.default_channel, queues.Topology())
            topology.declare_delays(connection, queues.Topology())

    @contextmanager
    def channel(self) -> Iterator[Any]:
        with kombu.Connection(self.url) as connection, connection.channel() as channel:
            yield channel

    def publish(self, body: object, **options: Any) -> None:
        """Publish what our publishing would not make, and return when it is in its queue.

        The confirm is waited for: a quorum queue may lose what its publisher goes away from before that.
        """
        with kombu.Connection(self.url, transport_options={"confirm_publish": True}) as connection:
            kombu.Producer(connection).publish(body, mandatory=True, **options)

    def has(self, queue: str) -> bool:
        return any(known["name"] == queue for known in self.of_vhost("queues"))

    def depth(self, queue: str) -> int:
        """Messages that are ready in the queue now; the management API would tell up to 5 s late."""
        with undisturbed(self.url, queue) as channel:
            return int(topology.look(channel, queue).message_count)

    def kept(self, queue: str) -> int:
        """Messages in the queue once no worker is left, those among them that one held."""
        with self.channel() as channel:
            eventually(f"nobody takes from {queue}", lambda: not topology.look(channel, queue).consumer_count)
            return int(topology.look(channel, queue).message_count)

    def unacknowledged(self, queue: str) -> int:
        """Messages that workers hold, as the management API tells it: up to 5 s late, so ask repeatedly."""
        return int(self.of_vhost("queues", f"/{quote(queue, safe='')}").get("messages_unacknowledged", -1))

    def peek(self, queue: str) -> list[Any]:
        """The messages of the queue as the broker holds them; they are there again when this returns.

        For a message it is a delivery, and of the work queue the sixth makes it a dead letter.
        """
        path = f"queues/{quote(self.vhost, safe='')}/{quote(queue, safe='')}/get"
        body = {"count": MOST_PEEKED, "ackmode": "ack_requeue_true", "encoding": "auto"}
        with undisturbed(self.url, queue) as channel:
            messages = list(self.management("POST", path, body))
            assert len(messages) < MOST_PEEKED, f"{queue} may hold more messages than these"

            def back() -> bool:
                state = topology.look(channel, queue)
                return bool(state.consumer_count or state.message_count >= len(messages))

            eventually(f"the messages are back in {queue}", back)
        return messages
