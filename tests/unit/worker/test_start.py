"""What a worker prepares before its pool starts."""

import gc
from collections.abc import Iterator

import pytest
from celery.concurrency.base import BasePool
from celery.signals import worker_before_create_process

from proj import app
from proj.worker import start


@pytest.fixture
def _nothing_is_frozen() -> Iterator[None]:
    assert app.settings  # our signals are connected
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_nothing_is_frozen")
def test_processes_of_the_pool_share_memory() -> None:
    """What is there before the first one is never collected; what comes later is."""
    worker_before_create_process.send(sender=None)
    frozen = gc.get_freeze_count()
    assert frozen > 10_000

    later = [[None] for _ in range(1000)]
    worker_before_create_process.send(sender=None)
    assert gc.get_freeze_count() <= frozen
    assert any(each is later for each in gc.get_objects())


def test_pool_of_green_threads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line with the pool to use instead, where the package is installed."""
    pool = type("TaskPool", (BasePool,), {"is_green": True})
    with pytest.raises(SystemExit) as ended:
        start.refuse_options(app.conf, {"pool": pool})
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("not supported: they stall (use --pool=threads)\n")
