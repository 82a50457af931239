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
def _swallowing(stage: Stage, network: Network) -> Iterator[None]:
    """Healed by an end of all connections: TCP does not let one go on behind a gap."""
    stage.proxy.network = network
    try:
        yield
    finally:
        stage.proxy.cut()
        stage.proxy.network = Network.WORKS


@injects(Fault.BLACK_HOLE, duplicates=bounds.ALL_CONNECTIONS, proxied=True)
@contextmanager
def black_hole(stage: Stage) -> Iterator[str]:
    with _swallowing(stage, Network.SWALLOWS_ALL):
        stage.more_unknown()
        stage.eventually("the broker gives up all workers", lambda: not stage.consumers())
        stage.stands_still()
        count = stage.proxy.happened[Network.SWALLOWS_ALL]
        yield f"{count} pieces were swallowed, a publish is unknown, and the broker has given up the workers"


@injects(Fault.ANSWERS_LOST, duplicates=bounds.ALL_CONNECTIONS, proxied=True)
@contextmanager
def answers_lost(stage: Stage) -> Iterator[str]:
    with _swallowing(stage, Network.SWALLOWS_ANSWERS):
        stage.more_unknown()
        stage.stands_still()
        count = stage.proxy.happened[Network.SWALLOWS_ANSWERS]
        yield f"{count} answers were swallowed, and a publish is unknown"


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
