"""Faults of the result store."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.chaos.bounds import ALL_WORKERS
from tests.chaos.faults import Bound, Fault, Store, injects
from tests.chaos.stage import Stage

#: Messages that nobody has a slot for.
_WAITING = 20

#: A task that has acted and whose success cannot be stored becomes a dead letter, and nobody redrives it.
_KEPT = Bound(ALL_WORKERS.most, "one a slot: whether its success was stored may be unknown")


@injects(Fault.STORE_GONE, duplicates=_KEPT, store=Store.POSTGRESQL)
@contextmanager
def store_gone(stage: Stage) -> Iterator[str]:
    server = stage.postgres
    assert server is not None
    server.stop()
    try:
        _refuses(server.url("postgres"))
        stage.stands_still()
        stage.eventually("messages wait", lambda: stage.ready() > _WAITING)
        yield "the store refuses connections, and every slot waits for it"
    finally:
        server.start()


def _refuses(url: str) -> None:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return
    raise AssertionError("the store accepts a connection")


@injects(Fault.STORE_FULL, duplicates=_KEPT, store=Store.SMALL)
@contextmanager
def store_full(stage: Stage) -> Iterator[str]:
    assert stage.small_disk is not None
    filler = stage.small_disk / "filler"
    try:
        _fill(filler)
        stage.stands_still()
        stage.eventually("messages wait", lambda: stage.ready() > _WAITING)
        assert not os.statvfs(stage.small_disk).f_bavail
        yield f"the file system has no room after {filler.stat().st_size >> 20} MiB, and every slot waits"
    finally:
        filler.unlink()


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
