"""What a fault works on: the broker, the workers, the load, and the ledgers of all of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import kombu
from amqp.exceptions import NotFound

from proj import queues
from proj.private_node.node import BrokerNode
from proj.rabbitmq import topology
from tests.chaos.brokers import Broker
from tests.chaos.faults import Store
from tests.chaos.ledger import FOLDER, Count, Kind, Ledger
from tests.chaos.load import Load
from tests.chaos.skipping import missing
from tests.lib import fork_server, postgres, small_disk
from tests.lib.bundle import Bundle
from tests.lib.dead_reader import undisturbed
from tests.lib.postgres import Postgres
from tests.lib.proxy import Proxy
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

T = TypeVar("T")

#: What a control takes out of the project: a file, what stands in it, and what comes instead.
Change = tuple[str, str, str]

ROOT: Final = Path(__file__).parents[2]

#: Workers of a stage, and the slots of each.
WORKERS: Final = 2
SLOTS: Final = 2

#: Seconds after which a publish is unknown. Short, since faults are waited for.
PUBLISH_TIMEOUT: Final = 5

#: Seconds without any progress, after which what is missing is lost.
PATIENCE: Final = 180.0

#: Bytes of the file system that a fault fills.
SMALL: Final = 64 * 2**20

#: Seconds between two looks of a wait.
_INTERVAL: Final = 0.1


class Stage:
    """One fault's part of a run."""

    def __init__(self, broker: Broker, bundle: Bundle, proxy: Proxy | None, ledgers: Path) -> None:
        self.broker = broker
        #: Its virtual host, folder and programs; `bundle.env` is what programs are started with.
        self.bundle = bundle
        #: What programs reach the broker through, if the plan is `proxied`.
        self._proxy = proxy
        self.ledgers = ledgers
        self.count = Count(ledgers)
        self.workers: list[Worker] = []
        self.load = Load(self)
        #: What the result store is on, if the plan wants one of these.
        self.postgres: Postgres | None = None
        self.small_disk: Path | None = None
        #: The queue that workers consume.
        self.queue = queues.DEFAULT_QUEUE
        #: Queues besides the work queue that must be empty in the end.
        self.further_queues: list[str] = []
        self._cleanup = ExitStack()
        self._numbers = 0
        self._own = Ledger(ledgers, "harness")

    # --- The broker

    @property
    def node(self) -> BrokerNode:
        """The private node; the first one of a cluster."""
        return self.broker.nodes[0]

    @property
    def nodes(self) -> list[BrokerNode]:
        return self.broker.nodes

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None, "the plan is not proxied"
        return self._proxy

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel past the proxy."""
        with kombu.Connection(self.broker.url()) as connection, connection.channel() as channel:
            yield channel

    def _look(self, queue: str) -> tuple[int, int]:
        with undisturbed(self.broker.url(), queue) as channel:
            try:
                seen = topology.look(channel, queue)
            except NotFound:
                return 0, 0
        return int(seen.message_count), int(seen.consumer_count)

    def ready(self, queue: str | None = None) -> int:
        """Messages that wait in the queue now, by default the work queue; 0 where there is no such queue."""
        return self._look(queue or self.queue)[0]

    def consumers(self) -> int:
        """Who consumes the work queue."""
        return self._look(self.queue)[1]

    # --- Programs

    def spawn(
        self, log: str, *arguments: str, env: dict[str, str] | None = None, fresh: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start Python with these arguments; it is killed with the stage.

        `fresh`, it is executed and not forked: for what only a new program obeys, such as LD_PRELOAD.
        """
        if arguments[0] == "-m" and not fresh:
            module = arguments[1]
            code = f"import runpy, sys; sys.argv[0] = {module!r}; "
            arguments = ("-c", code + f"runpy.run_module({module!r}, run_name='__main__')", *arguments[2:])
        start = subprocess.Popen if fresh else fork_server.popen
        with (self.bundle.folder / log).open("ab") as output:
            process = start(
                [sys.executable, *arguments],
                cwd=self.bundle.folder,
                env=self.bundle.env | (env or {}),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        self._cleanup.callback(_end, process)
        return process

    def log(self, name: str) -> str:
        return (self.bundle.folder / name).read_text("utf-8", "replace")[-4000:]

    def start_worker(self, *options: str, env: dict[str, str] | None = None) -> Worker:
        """Start a worker beside those that there are; `await_workers` waits until they consume."""
        self._numbers += 1
        worker = self.bundle.worker(
            "--loglevel=WARNING",
            f"--concurrency={SLOTS}",
            f"--hostname=w{self._numbers}@chaos",
            *options,
            env=env,
            log=f"w{self._numbers}.log",
        )
        self.workers.append(worker)
        return worker

    def adopt(self, worker: Worker) -> Worker:
        """Take a worker that somebody else has started; it is ended with the stage."""
        self.workers.append(worker)
        self._cleanup.callback(worker.stop)
        return worker

    def await_workers(self) -> None:
        """Return when all workers that are alive consume the work queue."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        self.eventually(f"{len(alive)} workers consume", lambda: self.consumers() >= len(alive))

    def stop_workers(self) -> None:
        """SIGTERM all, and return when their tasks have ended and they have acknowledged them."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in alive:
            worker.process.terminate()
        for worker in alive:
            code = worker.ends()
            assert code == 0, f"a worker ended with exit code {code}\n{worker.text()[-4000:]}"
        self.workers.clear()

    # --- Ledgers

    def file(self, name: str) -> Path:
        """A file beside the ledgers, which tasks look for (`tests.chaos.tasks`)."""
        return self.ledgers / name

    def write(self, kind: Kind, token: str) -> None:
        """Write into the harness's own ledger: of publishes that are not the load's."""
        self._own.write(kind, token)

    def executed(self) -> int:
        return self.count.look()[Kind.EXECUTED]

    def eventually(self, what: str, condition: Callable[[], T], patience: float = PATIENCE) -> T:
        # A broker of one's own waits for heartbeats as long as it is told to, usually minutes.
        return eventually(what, condition, patience if self.broker.private else 5 * patience, seen=self.seen)

    def more_executed(self, count: int = 1) -> None:
        """Wait until so many tasks more have been executed."""
        goal = self.executed() + count
        self.eventually(f"{count} more are executed", lambda: self.executed() >= goal)

    def more_unknown(self) -> None:
        """Wait until one publish more has ended as unknown."""
        goal = self.count.look()[Kind.UNKNOWN] + 1
        self.eventually("a publish is unknown", lambda: self.count.look()[Kind.UNKNOWN] >= goal)

    def stands_still(self, seconds: float = 2.0) -> None:
        """Wait until no task was executed for so long."""
        seen, since = self.executed(), time.monotonic()

        def still() -> bool:
            nonlocal seen, since
            if (now := self.executed()) != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > seconds

        self.eventually(f"nothing is executed for {seconds} s", still)

    def enqueue(self, task: str, count: int) -> list[str]:
        """Enqueue so many messages of this task with the command line; their tokens."""
        tokens = self.attempt(count)
        file = self.batch_file(task, tokens)
        done = self.bundle.proj("enqueue", "batch", str(file))
        assert done.returncode == 0, done.stderr
        for token in tokens:
            self.write(Kind.CONFIRMED, token)
        return tokens

    def attempt(self, count: int) -> list[str]:
        """New tokens, whose attempts are in the ledger."""
        tokens = [uuid4().hex for _ in range(count)]
        for token in tokens:
            self.write(Kind.ATTEMPTED, token)
        return tokens

    def batch_file(self, task: str, tokens: Iterable[str]) -> Path:
        """A file for `proj enqueue batch`, with a message for each token."""
        file = self.bundle.folder / f"{uuid4().hex}.jsonl"
        lines = (json.dumps({"task": task, "args": [token]}) for token in tokens)
        file.write_text("\n".join(lines) + "\n")
        return file

    def progress(self, what: str, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait, for as long as some ledger grows."""
        seen, deadline = self.count.look().copy(), time.monotonic() + patience
        while not condition():
            if (now := self.count.look()) != seen:
                seen, deadline = now.copy(), time.monotonic() + patience
            assert time.monotonic() < deadline, f"no progress in {patience} s: {what}\n{self.seen()}"
            time.sleep(_INTERVAL)

    def seen(self) -> str:
        """What there is to see when something was waited for in vain."""
        logs = [f"{path.name}: {path.read_text('utf-8', 'replace')[-1500:]}" for path in self._logs()]
        return "\n".join([str(dict(self.count.look())), *logs])

    def _logs(self) -> list[Path]:
        return [path for path in sorted(self.bundle.folder.glob("*.log")) if path.stat().st_size]

    # --- The end

    def drain(self, patience: float = PATIENCE) -> None:
        """Wait until all is accounted for and no queue holds any, or until nothing changes for so long."""
        names = [self.queue, *self.further_queues]
        deadline = time.monotonic() + patience
        seen: Any = None
        while time.monotonic() < deadline:
            waiting, dead = sum(map(self.ready, names)), self.ready(queues.dead_queue.name)
            if not waiting and len(self.count.open()) <= dead:
                return
            if (now := (self.count.look().copy(), waiting, dead)) != seen:
                seen, deadline = now, time.monotonic() + patience
            time.sleep(_INTERVAL)

    def take_dead(self) -> None:
        """Take all dead letters out of their queue, and write them into the ledger."""
        with self.channel() as channel:
            while message := channel.basic_get(queues.dead_queue.name):
                self.write(Kind.DEAD, token_of(message))
                channel.basic_ack(message.delivery_tag)

    def close(self) -> None:
        self._cleanup.close()


def token_of(message: Any) -> str:
    """The token in a task's message, or in a foreign one."""
    body = message.body if isinstance(message.body, str) else bytes(message.body).decode()
    try:
        args, kwargs, _ = json.loads(body)
    except ValueError:
        return body
    return str(args[0] if args else kwargs["token"])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


@contextmanager
def _postgres(bundle: Bundle) -> Iterator[Postgres]:
    folder = postgres.find_server_dir()
    if folder is None:
        missing(postgres.INSTALL_HINT)
    with postgres.Postgres(folder) as server:
        bundle.env["CELERY_RESULT_BACKEND"] = "db+" + server.url("postgres")
        yield server


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    with small_disk.mounted(folder, SMALL) as is_there:
        if not is_there:
            missing("a small file system to fill: only root may mount one, on Linux")
        yield folder


@contextmanager
def opened(
    broker: Broker,
    folder: Path,
    *,
    proxied: bool = False,
    store: Store = Store.SQLITE,
    changes: Iterable[Change] = (),
) -> Iterator[Stage]:
    """A stage in a new folder. Its programs use a copy of the project: with the tasks and the changes."""
    ledgers = folder / "ledgers"
    ledgers.mkdir(parents=True)
    with ExitStack() as stack:
        bundle = Bundle(broker.nodes[0], broker.vhost, folder)
        if broker.private:
            stack.enter_context(bundle)
        else:
            stack.callback(bundle._cleanup.close)
        proxy = stack.enter_context(Proxy(broker.nodes[0].info.port)) if proxied else None
        bundle.url = broker.url(proxy.port if proxy else None)
        copy = bundle.copy_of_the_project()
        bundle.add_task("import tests.chaos.tasks")
        for change in changes:
            bundle.switch_off(*change)
        bundle.env |= {
            "CELERY_BROKER_URL": bundle.url,
            "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT)]),
            "PROJ_PUBLISH_TIMEOUT": str(PUBLISH_TIMEOUT),
            FOLDER: str(ledgers),
        }
        bundle.declare()
        stage = Stage(broker, bundle, proxy, ledgers)
        if store is Store.POSTGRESQL:
            stage.postgres = stack.enter_context(_postgres(bundle))
        elif store is Store.SMALL:
            stage.small_disk = stack.enter_context(_small_disk(bundle.folder / "state"))
        stack.callback(stage.close)
        yield stage
