"""Asks Erlang inside RabbitMQ, in milliseconds: `rabbitmqctl eval` takes half a second of CPU."""

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from proj import queues
from proj.private_node.guard import environment
from proj.private_node.node import BrokerNode, find_server_dir
from proj.rabbitmq import topology
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

#: Seconds that an expression may take.
_TIMEOUT = 60

#: Milliseconds after which a queue reports its numbers: they would be waited for, 5 seconds as usual.
_QUICK_TICK = 300

#: In all other queues there is nobody who waits for them. Hundreds of idle virtual hosts, each with 30 queues
#: that report each 5 seconds, would cost half a processor. A test that waits all the same fails for that.
_USUAL_TICK = 600_000


def evaluate(node: BrokerNode, expression: str) -> str:
    """The value of the expression as Erlang prints it."""
    env = environment(node.info, find_server_dir())
    program = shutil.which("erl_call", path=env["PATH"])
    if program is None:  # it belongs to Erlang, but not in every package of it
        return node.ctl("eval", f"{expression}.").strip()
    cookie = (node.data_dir / ".erlang.cookie").read_text()
    call = partial(
        subprocess.run,
        [program, "-sname", node.info.name, "-c", cookie, "-e"],
        env=env,
        input=f"{expression}.\n",
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    # Erlang refuses some connections while it is busy.
    (done,) = eventually("Erlang is connected", lambda: list(filter(_connected, [call()])))
    answer = done.stdout.strip()
    assert answer.startswith("{ok, "), f"{expression}: {answer}{done.stderr}"
    return answer.removeprefix("{ok, ").removesuffix("}")


def _connected(done: subprocess.CompletedProcess[str]) -> bool:
    return "failed to connect" not in done.stdout + done.stderr


def usual_ticks(node: BrokerNode) -> None:
    """Let the quorum queues that are declared from now on hardly ever report their numbers."""
    evaluate(node, f"application:set_env(rabbit, quorum_tick_interval, {_USUAL_TICK})")


@contextmanager
def quick_ticks(node: BrokerNode) -> Iterator[None]:
    """Quorum queues that are declared in the block report their numbers several times a second."""
    with (node.data_dir / "ticks").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may share the node
        evaluate(node, f"application:set_env(rabbit, quorum_tick_interval, {_QUICK_TICK})")
        try:
            yield
        finally:
            usual_ticks(node)


def count_often(bundle: Bundle, *names: str) -> None:
    """Declare the topology with these further work queues, which report their numbers all the time."""
    with quick_ticks(bundle.node), bundle.channel() as channel:
        topology.declare(channel, queues.Topology(names))
