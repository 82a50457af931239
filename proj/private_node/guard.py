"""The guard: a process that runs epmd and RabbitMQ for a node, and ends them with its owner.

`python -m proj.private_node.guard` is the guard; `Guard` controls it from its owner, the process that started
it. The guard reads a pipe that only the owner can write to, so it notices the owner's end, whatever the
cause, and stops the node. On Linux the kernel kills the node when the guard is killed. All these processes
hold the data folder's lock, so the folder is free when the last one has ended. Imports only the standard
library and `proj.errors`, to start fast.
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from proj.errors import BrokerNodeError

#: The only address that the node listens on: the user guest may log in only from there.
HOST: Final = "127.0.0.1"

#: One name for all nodes that are alone. RabbitMQ finds its data by the name, so the folder can be moved.
#: Nodes do not meet, since each has its own epmd.
NODE_NAME: Final = "proj@localhost"

#: Seconds for RabbitMQ to stop cleanly before it is killed. 3.10.8 took six: its log is silent for five after
#: its management plugin stops. A hundred thousand messages add some.
STOP_TIMEOUT: Final = 30.0

#: Seconds between two requests to stop: Erlang loses one in the first half second after its start.
TERMINATE_INTERVAL: Final = 2.0

#: Further seconds for the guard to end epmd, wait for RabbitMQ's helpers, and end itself.
GUARD_SLACK: Final = 10.0

#: Timeout in seconds of a connection that tests whether something is ready.
PROBE_TIMEOUT: Final = 5.0

#: Seconds for epmd to accept connections; milliseconds are usual.
EPMD_TIMEOUT: Final = 30.0

#: Seconds between two polls of a condition.
POLL_INTERVAL: Final = 0.05

#: Seconds between the guard's checks of its parent, in case a fork of the owner keeps the pipe open.
PARENT_CHECK_INTERVAL: Final = 1.0

#: Folders of Erlang and of the shell's tools that are not on every PATH.
ERLANG_DIRS: Final = (
    "/opt/homebrew/opt/erlang/bin",
    "/opt/homebrew/bin",
    "/usr/local/opt/erlang/bin",
    "/usr/local/lib/erlang/bin",
    "/opt/erlang/lib/erlang/bin",
    "/usr/local/bin",
    "/usr/lib/erlang/bin",
    "/usr/bin",
    "/bin",
)

#: The only variables that the node inherits: RabbitMQ reads settings from many names, with and without its
#: prefix, and must not see passwords.
INHERITED: Final = ("TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")

# Options of Linux's prctl(2), from <linux/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

#: Written into the pipe by an owner whose node shall outlive it.
_DETACH: Final = b"d"


@dataclass(frozen=True)
class NodeInfo:
    """A node's data folder, ports and processes."""

    data_dir: Path
    port: int
    management_port: int
    metrics_port: int
    epmd_port: int
    distribution_port: int
    #: Process id of the guard; also its session and process group.
    guard_pid: int = 0
    #: Process id of RabbitMQ itself.
    pid: int = 0
    name: str = NODE_NAME

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    @property
    def safe_url(self) -> str:
        """The URL without a password; clients default to guest, so that it works."""
        return f"amqp://{HOST}:{self.port}//"

    @property
    def management_url(self) -> str:
        return f"http://{HOST}:{self.management_port}"

    @property
    def metrics_url(self) -> str:
        """The URL of RabbitMQ's Prometheus metrics, which need no login."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def log(self) -> Path:
        return self.data_dir / "rabbitmq.log"


class Guard:
    """A running guard, controlled by the process that started it."""

    def __init__(
        self, info: NodeInfo, server_dir: Path, lock: int, *, epmd: str | None, node: bool = True
    ) -> None:
        """Start the guard with the descriptor that `lock` returned. It writes to the node's log.

        In a cluster, one guard has the `epmd`, and each of the others has a `node`.
        """
        self._data_dir = info.data_dir
        plan = (_to_json(info), str(server_dir / "rabbitmq-server") if node else "", epmd or "", str(lock))
        # Python's descriptors are close-on-exec: no other child process can hold the pipe open.
        read_end, write_end = os.pipe()
        self._lifeline: int | None = write_end
        try:
            with info.log.open("ab") as log:
                self._process = subprocess.Popen(
                    # -S: no site packages are needed. -P: import nothing from the working folder.
                    [sys.executable, "-S", "-P", "-m", "proj.private_node.guard", *plan],
                    cwd=info.data_dir,
                    env=environment(info, server_dir) | {"PYTHONPATH": str(Path(__file__).parents[2])},
                    stdin=read_end,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C in the terminal must reach only the owner
                )
        except BaseException:
            self._cut_lifeline()
            raise
        finally:
            os.close(read_end)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._process.wait()

    def ask_to_end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)

    def end(self, how: signal.Signals) -> None:
        """Stop the node cleanly (SIGTERM) or kill it (SIGUSR1); returns when all its processes have ended."""
        self.ask_to_end(how)
        await_unlocked(self._data_dir, self._process.pid)
        self._process.wait()
        self._cut_lifeline()

    def detach(self) -> None:
        """Let the guard and the node outlive this process."""
        if self._lifeline is not None:
            os.write(self._lifeline, _DETACH)
        self._cut_lifeline()

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def environment(info: NodeInfo, server_dir: Path) -> dict[str, str]:
    """The whole environment of RabbitMQ, epmd and `rabbitmqctl`; the scripts are in `server_dir`."""
    data, conf = info.data_dir, info.data_dir / "conf"
    path = (str(server_dir), os.environ.get("PATH", os.defpath), *ERLANG_DIRS)
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | {
        "PATH": os.pathsep.join(path),
        "LANG": "C.UTF-8",
        # Erlang's cookie is in the home folder.
        "HOME": str(data),
        "ERL_EPMD_PORT": str(info.epmd_port),
        "ERL_EPMD_ADDRESS": HOST,
        # Also for `rabbitmqctl`: an epmd that the guard did not start would be left behind.
        "ERL_ZFLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        # No crash dumps of hundreds of megabytes.
        "ERL_CRASH_DUMP_SECONDS": "0",
        # Makes the server's script exec RabbitMQ instead of being its parent; has no other effect.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": info.name,
        "RABBITMQ_DIST_PORT": str(info.distribution_port),
        "RABBITMQ_LOGS": "-",
        # The defaults are outside of the data folder.
        "RABBITMQ_CONF_ENV_FILE": str(conf / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(conf / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(conf / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(conf / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(conf / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(conf / "generated"),
        "RABBITMQ_SCHEMA_DIR": str(conf / "schema"),
        "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
        "RABBITMQ_LOG_BASE": str(data),
        "RABBITMQ_PID_FILE": str(data / "rabbitmq.pid"),
    }


def lock(data_dir: Path) -> int | None:
    """Lock a data folder, and create it if missing; None when a node holds the lock.

    Returns a descriptor to be closed. Raises `BrokerNodeError` when the folder cannot be used.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _try_lock(data_dir, fcntl.LOCK_EX, os.O_CREAT)
    except OSError as error:
        raise unusable(data_dir, error) from None


def is_locked(data_dir: Path) -> bool:
    """Whether a node runs, starts or stops in this data folder."""
    try:
        held = _try_lock(data_dir, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(data_dir, error) from None
    if held is not None:
        os.close(held)
    return held is None


def await_unlocked(data_dir: Path, guard_pid: int) -> None:
    """Wait until all processes of the guard's node have ended; kill them after a timeout."""
    deadline = time.monotonic() + STOP_TIMEOUT + GUARD_SLACK
    while is_locked(data_dir):
        info = read_info(data_dir)
        if info and info.guard_pid != guard_pid:
            return  # they have ended, and another node has the folder
        if time.monotonic() > deadline:
            # While the lock is held the process group has a member, so its number is not reused.
            with suppress(ProcessLookupError):
                os.killpg(guard_pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL)


def read_info(data_dir: Path) -> NodeInfo | None:
    """The guard's record of its node; None without one. Out of date while the folder is not locked."""
    with suppress(FileNotFoundError):
        return _from_json(_info_file(data_dir).read_text("utf-8"))
    return None


def discard_info(data_dir: Path) -> None:
    _info_file(data_dir).unlink(missing_ok=True)


def _info_file(data_dir: Path) -> Path:
    return data_dir / "node.json"


def _to_json(info: NodeInfo) -> str:
    return json.dumps(asdict(info), default=str)


def _from_json(text: str) -> NodeInfo:
    fields = json.loads(text)
    return NodeInfo(**fields | {"data_dir": Path(fields["data_dir"])})


def _try_lock(data_dir: Path, kind: int, flags: int = 0) -> int | None:
    held = os.open(data_dir / "lock", os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(held, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def unusable(data_dir: Path, error: OSError) -> BrokerNodeError:
    """The error for a data folder that cannot be read or written."""
    return BrokerNodeError(
        f"the data folder {data_dir} cannot be used: {error.strerror}", "choose another one with --dir"
    )


# --- The guard's program


def _run(info: NodeInfo, server: str, epmd_command: str, lock: int) -> None:
    received: set[int] = set()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda number, _frame: received.add(number))
    prctl, guard_pid = _prctl(), os.getpid()

    def die_with_guard() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(1)

    def spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=(lock,), preexec_fn=die_with_guard
        )

    node = epmd = None
    try:
        if epmd_command:
            epmd = spawn([epmd_command, "-port", str(info.epmd_port), "-address", HOST])
            _await_epmd(epmd, info.epmd_port)
        if server:
            node = spawn([server])
        guarded = node or epmd
        assert guarded is not None
        _write_info(replace(info, guard_pid=guard_pid, pid=guarded.pid))
        _watch(guarded, received, wake_read)
    finally:
        # RabbitMQ's helpers become the guard's children when RabbitMQ ends, so that it can wait for them.
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        deadline = time.monotonic() + STOP_TIMEOUT
        while node and signal.SIGUSR1 not in received and time.monotonic() < deadline:
            node.terminate()
            with suppress(subprocess.TimeoutExpired):
                node.wait(TERMINATE_INTERVAL)
                break
        for process in filter(None, (node, epmd)):
            process.kill()
            process.wait()
        _reap_helpers()
        discard_info(info.data_dir)


def _prctl() -> Callable[[int, int], Any]:
    if sys.platform != "linux":
        return lambda _option, _value: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda option, value: prctl(option, value, 0, 0, 0)


def _await_epmd(epmd: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + EPMD_TIMEOUT
    while epmd.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection((HOST, port), PROBE_TIMEOUT).close()
            return
        time.sleep(POLL_INTERVAL)
    sys.exit(f"epmd did not start on port {port}")


def _write_info(info: NodeInfo) -> None:
    file = _info_file(info.data_dir)
    new = file.with_suffix(".new")
    new.write_text(_to_json(info), "utf-8")
    new.replace(file)


def _watch(process: subprocess.Popen[bytes], received: set[int], wake_read: int) -> None:
    owner: int | None = os.getppid()
    lifeline = sys.stdin.fileno()
    while process.poll() is None and not received - {signal.SIGCHLD}:
        sources = [wake_read] if owner is None else [wake_read, lifeline]
        ready, _, _ = select.select(sources, [], [], PARENT_CHECK_INTERVAL)
        if wake_read in ready:
            os.read(wake_read, select.PIPE_BUF)
        if lifeline in ready:
            if os.read(lifeline, 1) != _DETACH:
                return
            owner = None
        if owner is not None and os.getppid() != owner:
            return


def _reap_helpers() -> None:
    deadline = time.monotonic() + GUARD_SLACK / 2
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(POLL_INTERVAL)


if __name__ == "__main__":
    _run(_from_json(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
