"""A private PostgreSQL as a child process, for tests; all that it writes is in a folder of its own."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import psutil
import psycopg

from tests.lib.ports import free_port
from tests.lib.waiting import PATIENCE, eventually

HOST: Final = "127.0.0.1"

#: The password of every role; what tests look for where no password may be.
PASSWORD: Final = "s3cret"

#: Folders of the server's programs that are not on every PATH: Debian and Ubuntu, Homebrew on Apple and on
#: Intel processors. The newest one is taken.
SERVER_DIRS: Final = (
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)

INSTALL_HINT: Final = (
    "PostgreSQL was not found: install it with `sudo apt-get install postgresql` (Debian, Ubuntu) or"
    " `brew install postgresql` (macOS)"
)

#: Whom root runs it as, since PostgreSQL refuses root.
SERVANT: Final = "nobody"


class Postgres:
    """A PostgreSQL server on a free port of 127.0.0.1, for as long as the context lasts."""

    def __init__(self, server_dir: Path) -> None:
        self._server_dir = server_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Not in pytest's folder, which no other user may enter; and short, as the path of a socket must be.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        try:
            password = self._folder / "password"
            password.write_text(PASSWORD)
            if os.geteuid() == 0:
                for path in (self._folder, password):
                    shutil.chown(path, SERVANT)
            self._spawn("initdb", "-U", "admin", f"--pwfile={password}", "-A", "scram-sha-256", "--no-sync")
            assert self._ended() == 0, self._log()
            self.port = free_port()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)  # at once: nobody will read the data
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server, and return when it answers."""
        self._spawn("postgres", f"-p{self.port}", f"-h{HOST}", f"-k{self._folder}", "-cfsync=off")

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log()
            with suppress(psycopg.OperationalError):
                return bool(self.execute("SELECT true"))
            return False

        eventually("PostgreSQL answers", answers)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server, by default in good order but with no regard for its clients."""
        if self._process is not None:
            self._process.send_signal(how)
            self._ended()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it take connections and say nothing, as a machine that is overloaded."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def frozen(self, database: str) -> Iterator[None]:
        """Let those who are connected to the database wait for ever, while others may connect."""
        pids = self.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'")
        processes = []
        for (pid,) in pids:
            with suppress(psutil.NoSuchProcess):  # of a program that has just ended
                process = psutil.Process(pid)
                process.suspend()
                processes.append(process)
        assert processes, f"nobody is connected to {database}"
        try:
            yield
            assert all(process.status() == psutil.STATUS_STOPPED for process in processes)
        finally:
            for process in processes:
                process.resume()

    def url(self, database: str, user: str = "admin") -> str:
        return f"postgresql://{user}:{PASSWORD}@{HOST}:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> Any:
        """Run one statement as administrator; what it selects is returned as rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def _spawn(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self._server_dir / program, "-D", self._folder / "data", *arguments]
        servant: dict[str, Any] = {}
        if os.geteuid() == 0:
            servant = {"user": SERVANT, "group": pwd.getpwnam(SERVANT).pw_gid, "extra_groups": []}
        if setpriv := shutil.which("setpriv"):  # on Linux it ends with the tests even when they are killed
            command = [setpriv, "--pdeathsig", "QUIT", "--", *command]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **servant
            )

    def _ended(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._process = None

    def _log(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")


def find_server_dir() -> Path | None:
    """The folder of PostgreSQL's programs, from PATH or the usual folders."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = chain.from_iterable(Path("/").glob(pattern[1:]) for pattern in SERVER_DIRS)
    usable = [folder for folder in folders if (folder / "initdb").exists()]
    return max(usable, key=_version, default=None)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]
