"""What a worker prepares before its pool starts."""

import gc
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
from celery.app.amqp import Queues
from celery.concurrency.base import BasePool
from celery.signals import worker_before_create_process

from proj import app
from proj.worker import start


def test_processes_of_the_pool_share_memory() -> None:
    """What is there before the first one is never collected; what comes later is."""
    worker_before_create_process.connect(start.share_memory)  # whatever was before, it is the first one
    before = gc.get_freeze_count()
    early = [[None] for _ in range(10_000)]
    worker_before_create_process.send(sender=None)
    frozen = gc.get_freeze_count()
    assert frozen > before + len(early)

    later = [[None] for _ in range(1000)]
    worker_before_create_process.send(sender=None)
    assert gc.get_freeze_count() <= frozen
    assert any(each is later for each in gc.get_objects())


@pytest.mark.celery_docs("Workers: pools gevent, eventlet")
def test_pool_of_green_threads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line with the pool to use instead, where the package is installed."""
    pool = type("TaskPool", (BasePool,), {"is_green": True})
    with pytest.raises(SystemExit) as ended:
        start.refuse_options(None, app.conf, {"pool": pool})
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("not supported: they stall (use --pool=threads)\n")


@pytest.mark.celery_docs("Workers: --time-limit, --soft-time-limit", "Workers: --pool-start-method=spawn")
@pytest.mark.parametrize(
    "option", [{"time_limit": 9.0}, {"soft_time_limit": 9.0}, {"pool_start_method": "spawn"}], ids=str
)
def test_option_that_would_not_hold_is_refused(
    option: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start.refuse_options(None, app.conf, option)

    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.celery_docs("Routing: -X")
@pytest.mark.parametrize(
    ("options", "consumed"),
    [
        ({}, ["proj.tasks"]),
        ({"exclude_queues": ["mail"]}, ["proj.tasks", "slow"]),
        ({"exclude_queues": ["proj.tasks"]}, ["mail", "slow"]),
        ({"queues": ["mail", "slow"], "exclude_queues": ["slow"]}, ["mail"]),
    ],
)
def test_queues_that_a_worker_consumes(options: dict[str, Any], consumed: list[str]) -> None:
    """The default one, or those that are named, or with `-X` all others."""
    queues = Queues([kombu.Queue(name) for name in ("proj.tasks", "slow", "mail")])
    instance = SimpleNamespace(app=SimpleNamespace(amqp=SimpleNamespace(queues=queues)))
    start.select_queues(instance, options)
    queues.deselect(options.get("exclude_queues"))  # as Celery does then
    assert sorted(queues.consume_from) == consumed
