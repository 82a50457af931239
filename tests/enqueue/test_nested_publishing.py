"""A publish in a signal handler or a finalizer, while its own thread publishes, ends in time too."""

from typing import Any

import pytest

from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.proxy import Network, Proxy
from tests.lib.publisher import SLACK, TIMEOUT

pytestmark = pytest.mark.used_vhost

#: How a publish ends; what is wrong with a task is not among it.
OUTCOMES = {"confirmed", "BrokerUnreachable", "BrokerRefused", "OutcomeUnknown"}

#: `interrupt` publishes a second time in the thread that publishes, as a signal handler or as a finalizer.
_PROGRAM = """
import faulthandler, gc, json, queue, signal, time
faulthandler.dump_traceback_later({limit}, exit=True)
from celery.signals import before_task_publish
from proj import errors
from proj.enqueue import enqueue_many
from proj.tasks import add

ended = {{}}

def by_batch():
    [outcome] = enqueue_many([add.s(1, 2)])
    if outcome.error:
        raise outcome.error
    return outcome

ways = {{"outer": {outer}, "nested": {nested}}}

def call(which):
    began = time.monotonic()
    try:
        ended[which] = "confirmed", ways[which]().id, time.monotonic() - began
    except errors.ProjError as error:
        ended[which] = type(error).__name__, str(error), time.monotonic() - began

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        call("nested")

signal.signal(signal.SIGALRM, lambda *_: call("nested"))

def by_signal():
    signal.raise_signal(signal.SIGALRM)

def by_finalizer():
    Cycle()
    gc.collect()

once = [True]

def interrupt():
    if once:
        once.pop()
        {how}()

{when}
call("outer")
print(json.dumps(ended))
"""

#: Where a thread that publishes holds a lock that it cannot take twice.
LOCKS = {
    "of the pool": """
get = queue.LifoQueue._get
def interrupted(self):
    interrupt()
    return get(self)
queue.LifoQueue._get = interrupted
""",
    "of Celery's signals": """
before_task_publish.connect(lambda **_: None, weak=False)
before_task_publish.use_caching = False
before_task_publish._clear_dead_receivers = interrupt
""",
}


#: A single publish, and one in a batch.
SINGLE, BATCH = "lambda: add.delay(1, 2)", "by_batch"


def _ended(
    bundle: Bundle, how: str, when: str, *, outer: str = SINGLE, nested: str = SINGLE
) -> dict[str, Any]:
    limit = 2 * (TIMEOUT + SLACK)
    program = _PROGRAM.format(how=how, when=when, limit=limit, outer=outer, nested=nested)
    ended = bundle.python(program)
    assert ended.keys() == {"nested", "outer"}
    for kind, text, _ in ended.values():
        assert kind in OUTCOMES, text
    assert ended["nested"][2] < TIMEOUT + SLACK
    return dict(ended)


@pytest.mark.parametrize("how", ["by_signal", "by_finalizer"])
@pytest.mark.parametrize("lock", LOCKS)
def test_lock_that_the_thread_holds(bundle: Bundle, lock: str, how: str) -> None:
    """The nested publish waits for it until its deadline and no longer, and says that it may still come."""
    bundle.declare()
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "2"

    ended = _ended(bundle, how, LOCKS[lock])

    kind, text, _ = ended["nested"]
    assert kind == "OutcomeUnknown"
    assert "was published during another publish of its thread" in text


@pytest.mark.parametrize("how", ["by_signal", "by_finalizer"])
@pytest.mark.parametrize(("outer", "nested"), [(SINGLE, BATCH), (BATCH, SINGLE), (BATCH, BATCH)])
def test_lock_of_the_pool_and_a_batch(bundle: Bundle, outer: str, nested: str, how: str) -> None:
    """The nested one is not sent, and the outer one is not disturbed."""
    bundle.declare()
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "2"

    ended = _ended(bundle, how, LOCKS["of the pool"], outer=outer, nested=nested)

    assert ended["nested"][0] == "BrokerUnreachable"
    assert "while another publish of this thread takes one" in ended["nested"][1]


@pytest.mark.parametrize("network", [Network.WORKS, Network.SLOW])
def test_signal_handler_that_publishes(bundle: Bundle, proxy: Proxy, network: Network) -> None:
    """Where no lock is in the way, it has a connection of its own: both messages are in the queue."""
    bundle.env["PROJ_PUBLISH_TIMEOUT"] = "30"
    proxy.network, proxy.delay = network, 0.1
    # When the connection stands, and the message is about to be sent.
    when = "before_task_publish.connect(lambda **_: interrupt(), weak=False)"
    if network is Network.SLOW:
        when = "signal.setitimer(signal.ITIMER_REAL, 0.5)"

    ended = _ended(bundle, "by_signal", when)

    assert {kind for kind, _, _ in ended.values()} == {"confirmed"}
    assert bundle.depth("proj.tasks") == 2


def test_signal_handler_that_publishes_in_an_alarm(own: Bundle) -> None:
    """Both outcomes are unknown, each in its own time."""
    # The signal comes when the message is sent, also on a busy machine, and not while the program connects.
    own.env["PROJ_PUBLISH_TIMEOUT"] = "12"
    with alarm(own.node, "memory"):
        ended = _ended(own, "by_signal", "signal.setitimer(signal.ITIMER_REAL, 8)")

    for kind, text, _ in ended.values():
        assert (kind, "did not confirm message" in text) == ("OutcomeUnknown", True)
