"""Result stores of a bundle, and what may become of them."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bundle import Bundle
from tests.postgres import Postgres

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


def file(bundle: Bundle) -> Path:
    return bundle.folder / "state" / "results.sqlite3"


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
