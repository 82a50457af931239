"""A site for the tests that only look, and a Flower for each test that asks for one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.bundle import GATED_TASK, Bundle, shared_vhost
from tests.lib.erlang import count_often
from tests.lib.flower import LOGIN, PASSWORD, Flower
from tests.lib.worker import Worker


@dataclass(frozen=True)
class Site:
    """A worker named `w@site`, and a Flower that asks for a login; all of it with passwords to keep."""

    bundle: Bundle
    worker: Worker
    flower: Flower


FAILING_TASK = """
    @app.task(name="proj.tasks.fail")
    def fail() -> None:
        raise ValueError("the coffee is cold")
"""


@pytest.fixture(scope="package")
def site(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For the tests that only look: to start it takes seconds."""
    with Bundle(node, vhost=shared_vhost("site"), folder=tmp_path_factory.mktemp("site")) as bundle:
        bundle.management("PUT", "users/anna", {"password": PASSWORD, "tags": "monitoring"})
        rights = dict.fromkeys(("configure", "write", "read"), ".*")
        bundle.management("PUT", f"permissions/{bundle.vhost}/anna", rights)
        bundle.env["CELERY_BROKER_URL"] = bundle.url.replace("guest:guest", LOGIN)
        count_often(bundle)
        bundle.add_task(FAILING_TASK)
        bundle.add_task(GATED_TASK)
        flower = Flower(bundle, env={"FLOWER_BASIC_AUTH": LOGIN})
        try:
            worker = bundle.worker("-n", "w@site")
            flower.ready().hears_events()
            worker.watched()
            yield Site(bundle, worker, flower)
        finally:
            flower.kill()


@pytest.fixture
def flower(bundle: Bundle) -> Iterator[Callable[..., Flower]]:
    """Starts a Flower with the options that are given, and waits until it listens."""
    with ExitStack() as started:

        def start(*options: str, env: dict[str, str] | None = None, app: str = "proj") -> Flower:
            flower = Flower(bundle, *options, env=env, app=app)
            started.callback(flower.kill)
            return flower.ready()

        yield start
