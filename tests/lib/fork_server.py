"""Programs of the project that start in milliseconds: forked from a process that has imported what they need.

To import Celery, SQLAlchemy and pydantic takes most of the time of a command, and half of a worker's start.
The server imports them once for each test process, and forks. A program still has a process of its own, reads
its own environment, and makes its own application. One that finds a copy of the project, in which more than
the tasks is changed, imports that.

Linux only: `PR_SET_CHILD_SUBREAPER` makes the test process the parent of each program. Elsewhere programs are
executed.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final, NoReturn

#: From `linux/prctl.h`.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

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


class Forked(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose program is forked; `args` begins with `proj`, `celery` or `python -c`."""

    def _execute_child(self, args: Any, *more: Any, **_: Any) -> None:
        _executable, _preexec, _close, _pass, cwd, env, _info, _flags, _shell, *pipes = more[:15]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = pipes
        request = {"args": [os.fspath(arg) for arg in args], "cwd": os.fspath(cwd), "env": env}
        streams = [p2cread, c2pwrite, errwrite]
        self.pid = _server().fork(request, [own if own != -1 else n for n, own in enumerate(streams)])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def popen(args: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program: forked where that is possible, else executed."""
    start = Forked if sys.platform == "linux" else subprocess.Popen
    return start(args, **options)


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        message = json.dumps(request).encode("utf-8", "surrogateescape")
        with self._one_at_a_time, _adopting():
            socket.send_fds(self._socket, [message], streams)
            return int(self._socket.recv(64))


@contextmanager
def _adopting() -> Iterator[None]:
    """Adopt each process that loses its parent in the block; later ones, nobody here would wait for."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


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
        # Twice, so that the program's parent is gone, and the test process becomes that.
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            first = os.getpid()
            program = os.fork()
            if not program:
                os.close(reading)
                os.close(writing)
                sock.close()
                _end_with(tests, first)
                return json.loads(data.decode("utf-8", "surrogateescape")), fds
            os.write(writing, str(program).encode())
            os._exit(0)
        for number in (writing, *fds):
            os.close(number)
        os.waitpid(between, 0)
        sock.send(os.read(reading, 64))
        os.close(reading)


def _end_with(tests: int, first: int) -> None:
    """Let this program be killed when the test process ends, also when that is killed itself."""
    while os.getppid() == first:
        time.sleep(0.001)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != tests:
        os._exit(1)


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    project = importlib.import_module("proj")
    for module in pkgutil.walk_packages(project.__path__, "proj."):
        if module.name not in _NOT_PRELOADED:
            importlib.import_module(module.name)
    assert "proj.celery" not in sys.modules, (
        "a module of the project makes the application when it is imported"
    )


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
    original = Path(str(sys.modules["proj"].__file__)).parent
    if folder == original:
        return True
    files = (str(module.__file__) for name, module in sys.modules.items() if name.partition(".")[0] == "proj")
    return all(_version(file) == _version(folder / Path(file).relative_to(original)) for file in files)


def _version(file: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


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
    try:
        sys.stdout.flush()
    except OSError:
        code = code or 120
    with suppress(OSError):
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path[:] = _PATH  # no module of this folder is one of those
    _preload()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # so that no collection writes to pages that all programs share
    if program := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(*program)
        _end(_run)
