"""Result stores of a bundle, and what may become of them."""

import json
import os
import socket
import sqlite3
import threading
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

from tests.lib.bundle import Bundle
from tests.lib.postgres import Postgres
from tests.lib.worker import Worker

#: Makes a fault, and returns what mends it.
Fault = Callable[[Any], Callable[[], object]]


class Database:
    """A database of its own, which the bundle's programs use as result store."""

    def __init__(self, server: Postgres, bundle: Bundle) -> None:
        self.server = server
        self.name = f"results_{uuid.uuid4().hex}"
        server.execute(f"CREATE DATABASE {self.name} OWNER app")
        bundle.env["CELERY_RESULT_BACKEND"] = "db+" + server.url(self.name, "app")

    def execute(self, statement: str) -> Any:
        return self.server.execute(statement, self.name)


def worker(bundle: Bundle, *options: str, log: str = "worker.log") -> Worker:
    return bundle.worker("--without-gossip", *options, log=log)


def outcome(bundle: Bundle, task_id: str) -> dict[str, Any]:
    """What is stored of the task, as `proj result` prints it; no state while the store does not answer."""
    found: dict[str, Any] = json.loads(bundle.proj("result", task_id, "--json").stdout or '{"state": null}')
    return found


class LoginOnly:
    """Takes the login as a PostgreSQL server does; what it is asked then gets one answer, or none."""

    #: https://www.postgresql.org/docs/current/protocol-message-formats.html: AuthenticationOk, ReadyForQuery.
    _WELCOME = b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"

    #: ErrorResponse, as of a pooler that has no server to give, and ReadyForQuery.
    REFUSAL = b"E\0\0\0\x24SFATAL\0C08P01\0Mno server today\0\0" + b"Z\0\0\0\x05I"

    def __init__(self, answer: bytes = b"") -> None:
        self.asked: list[bytes] = []
        #: Connections that their client has closed.
        self.left = 0
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}/results"
        # Without these options a client asks for encryption before it logs in.
        self.url = f"postgresql://app:s3cret@{self.address}?sslmode=disable&gssencmode=disable"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                client.recv(4096)
                client.sendall(self._WELCOME)
                with suppress(ConnectionError):  # it may leave before it has read the answer
                    while question := client.recv(4096):
                        self.asked.append(question)
                        client.sendall(self._answer)
                self.left += 1


def file(bundle: Bundle) -> Path:
    return bundle.folder / "state" / "results.sqlite3"


def states(bundle: Bundle) -> dict[str, str]:
    """The states in SQLite's file, by their ids: what is waited for needs no program for each look.

    None before the first one is stored, which makes the file and its table.
    """
    try:
        with closing(sqlite3.connect(f"file:{file(bundle)}?mode=ro", uri=True)) as database:
            return dict(database.execute("SELECT task_id, status FROM celery_taskmeta"))
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return {}
        raise


def remove(bundle: Bundle) -> None:
    for path in file(bundle).parent.glob("results.sqlite3*"):
        path.unlink()


def folder_in_its_place(bundle: Bundle) -> Callable[[], object]:
    remove(bundle)
    file(bundle).mkdir()
    return file(bundle).rmdir


def garbage(bundle: Bundle) -> Callable[[], object]:
    remove(bundle)
    file(bundle).write_bytes(os.urandom(8192))
    return file(bundle).unlink


def stopped(database: Database) -> Callable[[], object]:
    database.server.stop()
    return database.server.start
