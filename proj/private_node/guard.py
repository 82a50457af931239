"""The guard: the process that runs epmd and RabbitMQ for a node, and leaves neither of them behind.

Run as `python -m proj.private_node.guard`, this module is the guard; `Guard` is the hold that the asker (the
process that started it) has on it. The guard reads a pipe that only the asker can write to, so it learns of
the asker's end, whatever its cause, and takes the node down. On Linux the kernel kills the node when the
guard is killed. The data folder's lock is held by all of them: it is free when the last one is gone.
Nothing but the standard library and `proj.errors` is imported, so that the guard starts fast.
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

#: The only address that the node listens on: guest may log in from nowhere else.
HOST: Final = "127.0.0.1"

#: One name for all nodes. RabbitMQ finds its data by it, so the data outlives a move of the folder;
#: nodes do not meet, since each has an epmd of its own.
NODE_NAME: Final = "proj@localhost"

#: Seconds for RabbitMQ to stop in good order, before it is killed. 3.10.8 was seen to take six: its log is
#: silent for five after its management plugin says that it stops. A hundred thousand messages add some.
STOP_TIMEOUT: Final = 30.0

#: Seconds between two requests to stop: Erlang loses one that comes in the first half second of its life.
TERMINATE_INTERVAL: Final = 2.0

#: Seconds that the guard has on top, to end epmd, wait for RabbitMQ's helpers, and end itself.
GUARD_SLACK: Final = 10.0

#: Seconds for one connection that is to say whether something is ready.
PROBE_TIMEOUT: Final = 5.0

#: Seconds for epmd to accept connections: a few milliseconds are usual.
EPMD_TIMEOUT: Final = 30.0

#: Seconds between two looks at a condition that nobody signals.
POLL_INTERVAL: Final = 0.05

#: Seconds between the guard's looks at its parent: for a pipe that a fork of the asker still holds.
PARENT_CHECK_INTERVAL: Final = 1.0

#: Folders of Erlang that are not on every PATH, and those of the shell's tools.
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

#: All that the node has of the caller's environment: RabbitMQ takes settings from many names, with and
#: without its prefix, and passwords are none of its business.
INHERITED: Final = ("TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")

# Options of Linux's prctl(2), from <linux/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

#: What the asker writes into the pipe before it lets go of a node that shall outlive it.
_DETACH: Final = b"d"


@dataclass(frozen=True)
class NodeInfo:
    """Where a node keeps its data, where it listens, and its processes."""

    data_dir: Path
    port: int
    management_port: int
    metrics_port: int
    epmd_port: int
    distribution_port: int
    #: The process that looks after the node; its session and process group have the same number.
    guard_pid: int = 0
    #: The process of RabbitMQ itself.
    pid: int = 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    @property
    def safe_url(self) -> str:
        """`url` for people: no password in it, and it works, since guest is the default of clients."""
        return f"amqp://{HOST}:{self.port}//"

    @property
    def management_url(self) -> str:
        return f"http://{HOST}:{self.management_port}"

    @property
    def metrics_url(self) -> str:
        """Where RabbitMQ's metrics are, in the form that Prometheus reads; they need no login."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def log(self) -> Path:
        return self.data_dir / "rabbitmq.log"


class Guard:
    """A guard that this process has started."""

    def __init__(self, info: NodeInfo, server_dir: Path, epmd: str, lock: int) -> None:
        """Start it with the lock that `lock` has given; it writes to the node's log, as the node does."""
        self._data_dir = info.data_dir
        plan = (_to_json(info), str(server_dir / "rabbitmq-server"), epmd, str(lock))
        # Python makes descriptors close-on-exec: no other child of ours can hold the pipe open.
        read_end, write_end = os.pipe()
        self._lifeline: int | None = write_end
        try:
            with info.log.open("ab") as log:
                self._process = subprocess.Popen(
                    # -S: it needs no site packages. -P: the working folder must not lend it modules.
                    [sys.executable, "-S", "-P", "-m", "proj.private_node.guard", *plan],
                    cwd=info.data_dir,
                    env=environment(info, server_dir) | {"PYTHONPATH": str(Path(__file__).parents[2])},
                    stdin=read_end,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C in the terminal is for the asker, who then stops it
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

    def end(self, how: signal.Signals) -> None:
        """SIGTERM stops the node in good order, SIGUSR1 kills it; returns when all of it is gone."""
        self._process.send_signal(how)
        await_unlocked(self._data_dir, self._process.pid)
        self._process.wait()
        self._cut_lifeline()

    def detach(self) -> None:
        """Let it, and the node, outlive this process."""
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
        # Holds for `rabbitmqctl` too. Nobody but the guard may start an epmd: it would stay behind.
        "ERL_ZFLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        # A dump of hundreds of megabytes tells nobody here anything.
        "ERL_CRASH_DUMP_SECONDS": "0",
        # With this the server's script becomes RabbitMQ instead of its parent. It changes nothing else.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": NODE_NAME,
        "RABBITMQ_DIST_PORT": str(info.distribution_port),
        "RABBITMQ_LOGS": "-",
        # Each of these has a default outside of the data folder.
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
    """Lock a data folder, which is made when it is not there; None when a node has it.

    Returns the descriptor, to be closed. Raises `BrokerNodeError` when the folder cannot be used.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _try_lock(data_dir, fcntl.LOCK_EX, os.O_CREAT)
    except OSError as error:
        raise _unusable(data_dir, error) from None


def is_locked(data_dir: Path) -> bool:
    """Whether a process of a node on this data folder is left, or one is about to start a node there."""
    try:
        held = _try_lock(data_dir, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(data_dir, error) from None
    if held is not None:
        os.close(held)
    return held is None


def await_unlocked(data_dir: Path, guard_pid: int) -> None:
    """Return when no process of the node that this guard runs is left; kill them when that takes too long."""
    deadline = time.monotonic() + STOP_TIMEOUT + GUARD_SLACK
    while is_locked(data_dir):
        info = read_info(data_dir)
        if info and info.guard_pid != guard_pid:
            return  # they are gone, and a node that was started since has the folder
        if time.monotonic() > deadline:
            # While the lock is held the group has a member, so its number is not another's.
            with suppress(ProcessLookupError):
                os.killpg(guard_pid, signal.SIGKILL)
        time.sleep(POLL_INTERVAL)


def read_info(data_dir: Path) -> NodeInfo | None:
    """What the guard wrote about the node that it runs; while the folder is not locked it is out of date."""
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


def _unusable(data_dir: Path, error: OSError) -> BrokerNodeError:
    return BrokerNodeError(
        f"the data folder {data_dir} cannot be used: {error.strerror}", "choose another one"
    )


# --- What this module does as a program.


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

    node = None
    epmd = spawn([epmd_command, "-port", str(info.epmd_port), "-address", HOST])
    try:
        _await_epmd(epmd, info.epmd_port)
        node = spawn([server])
        _write_info(replace(info, guard_pid=guard_pid, pid=node.pid))
        _watch(node, received, wake_read)
    finally:
        # RabbitMQ's helpers become the guard's children when RabbitMQ ends: so it can wait for them.
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


def _watch(node: subprocess.Popen[bytes], received: set[int], wake_read: int) -> None:
    asker: int | None = os.getppid()
    lifeline = sys.stdin.fileno()
    while node.poll() is None and not received - {signal.SIGCHLD}:
        sources = [wake_read] if asker is None else [wake_read, lifeline]
        ready, _, _ = select.select(sources, [], [], PARENT_CHECK_INTERVAL)
        if wake_read in ready:
            os.read(wake_read, select.PIPE_BUF)
        if lifeline in ready:
            if os.read(lifeline, 1) != _DETACH:
                return
            asker = None
        if asker is not None and os.getppid() != asker:
            return


def _reap_helpers() -> None:
    deadline = time.monotonic() + GUARD_SLACK / 2
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(POLL_INTERVAL)


if __name__ == "__main__":
    _run(_from_json(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
