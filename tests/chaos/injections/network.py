"""Faults of the network between the programs and the broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.chaos import bounds
from tests.chaos.faults import Fault, injects
from tests.chaos.stage import Stage
from tests.lib.proxy import Network

#: Seconds that a piece takes at most.
_DELAY: Final = 0.05

#: Pieces that the slow network has delayed when it is quick again, and tasks that were executed meanwhile.
_PIECES: Final = 500
_TASKS: Final = 100


@contextmanager
def _swallowing(stage: Stage, network: Network) -> Iterator[str]:
    """All is lost until connections end: TCP does not let one go on behind a gap."""
    stage.proxy.network = network
    try:
        stage.more_unknown()
        stage.eventually("the broker gives up all workers", lambda: not stage.consumers())
        stage.stands_still()
        yield (
            f"{stage.proxy.happened[network]} pieces were swallowed, a publish is unknown, and the broker has"
            " given up the workers"
        )
    finally:
        stage.proxy.cut()
        stage.proxy.network = Network.WORKS


@injects(Fault.BLACK_HOLE, duplicates=bounds.ALL_CONNECTIONS, proxied=True)
@contextmanager
def black_hole(stage: Stage) -> Iterator[str]:
    with _swallowing(stage, Network.SWALLOWS_ALL) as bit:
        yield bit


@injects(Fault.ANSWERS_LOST, duplicates=bounds.ALL_CONNECTIONS, proxied=True)
@contextmanager
def answers_lost(stage: Stage) -> Iterator[str]:
    stage.proxy.network = Network.SWALLOWS_ANSWERS
    try:
        stage.more_unknown()
        stage.stands_still()
        yield f"{stage.proxy.happened[stage.proxy.network]} answers were swallowed, and a publish is unknown"
    finally:
        stage.proxy.cut()
        stage.proxy.network = Network.WORKS


@injects(Fault.SLOW_NETWORK, duplicates=bounds.ALL_CONNECTIONS, proxied=True)
@contextmanager
def slow_network(stage: Stage) -> Iterator[str]:
    proxy = stage.proxy
    proxy.delay = _DELAY
    proxy.network = Network.UNSTEADY
    try:
        stage.more_executed(_TASKS)
        stage.eventually("pieces were delayed", lambda: proxy.happened[Network.UNSTEADY] > _PIECES)
        assert proxy.overtook
        yield (
            f"{proxy.happened[Network.UNSTEADY]} pieces took up to {_DELAY * 1000:g} ms longer, and"
            f" {proxy.overtook} overtook another"
        )
    finally:
        proxy.network = Network.WORKS
