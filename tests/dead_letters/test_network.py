"""A network that falls silent in the middle of an answer: `proj dead` ends, and loses nothing."""

import pytest
from amqp import spec

from proj.dead_letters.publisher import WINDOW
from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.proxy import Network, Proxy

pytestmark = pytest.mark.used_vhost


def _silent_in(proxy: Proxy, method: tuple[int, int]) -> None:
    proxy.network, proxy.method = Network.ENDS_IN_A_FRAME, method


@pytest.mark.parametrize(
    "method",
    [spec.Queue.DeclareOk, spec.Basic.QosOk, spec.Basic.Deliver, spec.Channel.CloseOk],
    ids=["declare", "qos", "deliver", "give-back"],
)
def test_looking_is_69(bundle: Bundle, proxy: Proxy, method: tuple[int, int]) -> None:
    """Wherever it happens: in one line, and all dead letters are where they were."""
    ids = dead.expire(bundle, 3)
    _silent_in(proxy, method)

    done = bundle.proj("dead", "list")

    assert proxy.happened[Network.ENDS_IN_A_FRAME] == 1
    assert (done.returncode, done.stdout) == (69, "")
    assert "does not answer in time" in done.stderr
    assert done.stderr.count("\n") == 1
    proxy.network = Network.WORKS
    dead.await_count(bundle, 3)
    assert dead.ids(bundle) == ids


@pytest.mark.parametrize("work", ["redrive", "drop"])
def test_acknowledgement_is_75(bundle: Bundle, proxy: Proxy, work: str) -> None:
    """It is told after how many; those whose outcome is open are done, and all others are there."""
    dead.expire(bundle, WINDOW + 50)
    _silent_in(proxy, spec.Tx.CommitOk)

    done = bundle.proj("dead", work, "--all", *(["--yes"] if work == "drop" else []))

    assert proxy.happened[Network.ENDS_IN_A_FRAME] == 1
    assert (done.returncode, done.stdout) == (75, "")
    assert "after 0 dead letters the broker did not answer" in done.stderr
    assert done.stderr.count("\n") == 1
    dead.await_count(bundle, 50)
    assert bundle.depth("proj.tasks") == (WINDOW if work == "redrive" else 0)


def test_confirm_is_unknown(bundle: Bundle, proxy: Proxy) -> None:
    """Also when it comes while others are still being sent: all of them are in both queues."""
    dead.expire(bundle, 3)
    _silent_in(proxy, spec.Basic.Ack)

    line = bundle.python("""
import json, select
from proj import app, dead_letters, errors
from proj.dead_letters import publisher
target = publisher.target
def target_after_an_answer(letter):
    if letter.id == "id-1":
        select.select([letter.message.channel.connection.sock], [], [])
    return target(letter)
publisher.target = target_after_an_answer
try:
    dead_letters.redrive(app, dead_letters.Wanted())
except errors.OutcomeUnknown as error:
    print(json.dumps(str(error)))
""")

    assert proxy.happened[Network.ENDS_IN_A_FRAME] == 1
    assert "after 0 dead letters the broker did not answer; no dead letter is lost" in line
    dead.await_count(bundle, 3)
    assert bundle.depth("proj.tasks") == 3
