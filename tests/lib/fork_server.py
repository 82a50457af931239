"""Programs of the project that start in milliseconds: forked from a process that has imported what they need.

To import Celery, SQLAlchemy and pydantic takes most of the time of a command, and half of a worker's start.
The server imports them once for each test process, and forks. A program still has a process of its own, reads
its own environment, and makes its own application. One that finds a copy of the project, in which more than
the tasks is changed, imports that.

Linux only: `CLONE_PARENT` makes the test process the parent of each program. Elsewhere programs are executed.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final, NoReturn

#: From `linux/prctl.h`, `linux/sched.h` and `linux/mman.h`.
_PR_SET_PDEATHSIG: Final = 1
_CLONE_PARENT: Final = 0x8000
_MADV_COLLAPSE: Final = 25

#: The number of the system call `clone`, where the server knows it.
_CLONE: Final = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None

#: Bytes of a huge page.
_HUGE: Final = 2**21

#: What a request may be long, in bytes: an environment and a command line.
_MAX_REQUEST: Final = 2**20

#: What programs of the project import; each of these brings others.
_PRELOADED: Final = (
    "billiard.popen_fork",
    "celery.app.amqp",
    "celery.app.builtins",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.database",
    "celery.backends.database.models",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer.gossip",
    "celery.worker.consumer.mingle",
    "celery.worker.pidbox",
    "celery.worker.strategy",
    "dbm",
    "dotenv",
    "flower.command",
    "http.client",
    "kombu.pidbox",
    "kombu.transport.native_delayed_delivery",
    "kombu.transport.pyamqp",
    "multiprocessing.util",
    "platformdirs",
    "psycopg",
    "pydantic.fields",
    "pydantic.main",
    "pydantic.plugin._loader",
    "pydantic.types",
    "pydantic.validate_call_decorator",
    "rich.live",
    "rich.progress",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "sqlite3",
    "tomllib",
)

#: The project's modules that make the application when they are imported, of the program's environment.
_NOT_PRELOADED: Final = {"proj.__main__", "proj.celery", "proj.tasks"}

#: Where modules are looked for, without the server's own folder.
_PATH: Final = sys.path[1:]

#: The programs, and how each begins.
_MAINS: Final = {"proj": ("proj.__main__", "main"), "celery": ("celery.__main__", "main")}


#: The usual streams of a program: no stdin, and outputs that are kept as texts.
STREAMS: Final[dict[str, Any]] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
}


class Forked(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose program is forked; `args` begins with `proj`, `celery` or `python -c`."""

    def __init__(self, args: list[str], *, closed: Collection[int], **options: Any) -> None:
        self._closed = [*closed]
        super().__init__(args, **options)

    def _execute_child(self, args: Any, *more: Any, **_: Any) -> None:
        _executable, _preexec, _close, _pass, cwd, env, _info, _flags, _shell, *pipes = more[:15]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = pipes
        request = {
            "args": [os.fspath(arg) for arg in args],
            "cwd": os.fspath(cwd),
            "env": env,
            "closed": self._closed,
        }
        streams = [p2cread, c2pwrite, errwrite]
        self.pid = _server().fork(request, [own if own != -1 else n for n, own in enumerate(streams)])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def popen(args: list[str], *, closed: Collection[int] = (), **options: Any) -> subprocess.Popen[Any]:
    """Start a program without those standard streams that are `closed`: forked if possible, else executed."""
    if _CLONE:
        return Forked(args, closed=closed, **options)
    return subprocess.Popen(executed(args, closed), **options)


def executed(args: list[str], closed: Collection[int]) -> list[str]:
    """The command that starts a program without some of its standard streams: a shell closes them."""
    if not closed:
        return args
    return ["sh", "-c", 'exec "$0" "$@"' + "".join(f" {number}>&-" for number in closed), *args]


def ended(process: subprocess.Popen[Any], timeout: float) -> subprocess.CompletedProcess[Any]:
    """Wait for the end of a program, which is killed after so many seconds, as `subprocess.run` does."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(args: list[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, with no stdin and its outputs kept as texts, unless the options differ."""
    return ended(popen(args, **(STREAMS | options)), timeout)


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
        with theirs:
            # In a thread that stays: programs are killed when the one that has started the server ends.
            started = threading.Event()
            threading.Thread(target=self._start, args=(theirs.fileno(), started), daemon=True).start()
            started.wait()
        self._socket = ours
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def _start(self, fd: int, started: threading.Event) -> None:
        command = [sys.executable, __file__, str(fd)]
        self._process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL)
        started.set()
        threading.Event().wait()

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        message = json.dumps(request).encode("utf-8", "surrogateescape")
        with self._one_at_a_time:
            socket.send_fds(self._socket, [message], streams)
            return int(self._socket.recv(64))


@functools.cache
def _server() -> _Server:
    return _Server()


def server_pid() -> int | None:
    """The process of the server, which lasts as long as this one; None when there is none yet."""
    return _server()._process.pid if _server.cache_info().currsize else None


# --- The server's own process


def _serve(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a program for each request. Returns in each program, and, with None, when the tests are over."""
    tests = os.getppid()
    while True:
        data, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST, 3)
        if not data:
            return None
        program = _fork()
        if not program:
            sock.close()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != tests:
                os._exit(1)
            return json.loads(data.decode("utf-8", "surrogateescape")), fds
        for number in fds:
            os.close(number)
        sock.send(str(program).encode())


def _fork() -> int:
    """What `os.fork` does, but the new process is one of this one's parent."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    # Not to be left by a second thread meanwhile, hence `PyDLL`.
    program = ctypes.PyDLL(None).syscall(_CLONE, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if not program:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
        assert program > 0, "the system makes no process"
    return int(program)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _collapse() -> None:
    """Put the memory into huge pages, where there are some: a fork copies an entry for each page."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        ends, rights, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in ends.split("-"))
        start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if rights == "rw-p" and inode == "0" and start < end:
            madvise(start, end - start, _MADV_COLLAPSE)


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    # Celery remembers the answer, for which it reads a file of each package that is installed.
    sys.modules["celery.utils.imports"].load_extension_class_names("celery.result_backends")
    project = importlib.import_module("proj")
    for module in pkgutil.walk_packages(project.__path__, "proj."):
        if module.name not in _NOT_PRELOADED:
            importlib.import_module(module.name)
    assert "proj.celery" not in sys.modules, (
        "a module of the project makes the application when it is imported"
    )
    folder = Path(str(project.__file__)).parent
    files = (str(module.__file__) for name, module in sys.modules.items() if name.partition(".")[0] == "proj")
    _preloaded.update((str(Path(file).relative_to(folder)), _version(file)) for file in files)


def _find_project() -> None:
    """Forget the project that was preloaded, if this program finds a copy that differs from it."""
    ours, found = sys.modules["proj"], PathFinder.find_spec("proj")
    if found and found.origin and _is_same(Path(found.origin).parent):
        ours.__file__, ours.__path__[:] = found.origin, found.submodule_search_locations or []
    else:
        names = [name for name in sys.modules if name.partition(".")[0] == "proj"]
        _forgotten.update((name, sys.modules.pop(name)) for name in names)


def _is_same(folder: Path) -> bool:
    """Whether a copy has all that is preloaded, as it was."""
    if folder == Path(str(sys.modules["proj"].__file__)).parent:
        return True
    return all(_version(f"{folder}/{name}") == version for name, version in _preloaded.items())


def _version(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


#: The project's files that are preloaded: in the package's folder, with their size and time.
_preloaded: dict[str, tuple[int, int] | None] = {}

#: Kept, since to free them takes time.
_forgotten: dict[str, types.ModuleType] = {}


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Make this process what it would be, had it been executed."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 256)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if number in request["closed"]:
            os.close(number)
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
            continue
        errors = "backslashreplace" if name == "stderr" else "strict"
        line = name == "stderr" or os.isatty(number)
        buffering = 1 if line else -1
        stream = open(number, mode, buffering, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["", *path, *_PATH]
    program, *arguments = request["args"]
    if os.path.basename(program) in _MAINS:
        sys.path[0] = os.path.dirname(program)
    elif arguments[0] == "-c":
        arguments = arguments[1:]
        program = arguments.pop(0)
    sys.argv = [program, *arguments]
    _find_project()


def _run() -> None:
    program = sys.argv[0]
    name = os.path.basename(program)
    if name in _MAINS:
        module, function = _MAINS[name]
        sys.exit(getattr(importlib.import_module(module), function)())
    sys.argv[0] = "-c"
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<string>", "exec"), vars(main))


def _end(run: Callable[[], None]) -> NoReturn:
    """Run, and end as Python does, without clearing all modules: that would take longer than all else."""
    code: Any = 0
    try:
        run()
    except SystemExit as end:
        code = end.code
        if code is None or isinstance(code, int):
            code = code or 0
        else:
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # Either is None when it was closed at the start.
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        code = code or 120
    with suppress(OSError):
        if sys.stderr:
            sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path[:] = _PATH  # no module of this folder is one of those
    _preload()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    _collapse()
    gc.freeze()  # so that no collection writes to pages that all programs share
    if program := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(*program)
        _end(_run)
