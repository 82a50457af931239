"""Asks Erlang inside RabbitMQ, in milliseconds: `rabbitmqctl eval` takes half a second of CPU."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from proj.private_node.guard import NODE_NAME, environment
from proj.private_node.node import BrokerNode, find_server_dir

#: Seconds that an expression may take.
_TIMEOUT = 60

#: Milliseconds after which a queue tells its numbers: they would be waited for, 5 seconds as usual.
_TICK = 300


def evaluate(node: BrokerNode, expression: str) -> str:
    """The value of the expression as Erlang prints it."""
    env = environment(node.info, find_server_dir())
    program = shutil.which("erl_call", path=env["PATH"])
    if program is None:  # it belongs to Erlang, but not in every package of it
        return node.ctl("eval", f"{expression}.").strip()
    cookie = (node.data_dir / ".erlang.cookie").read_text()
    done = subprocess.run(
        [program, "-sname", NODE_NAME, "-c", cookie, "-e"],
        env=env,
        input=f"{expression}.\n",
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    answer = done.stdout.strip()
    assert answer.startswith("{ok, "), f"{expression}: {answer}{done.stderr}"
    return answer.removeprefix("{ok, ").removesuffix("}")


@contextmanager
def quick_ticks(node: BrokerNode) -> Iterator[None]:
    """Quorum queues that are declared in the block tell their numbers several times a second."""
    evaluate(node, f"application:set_env(rabbit, quorum_tick_interval, {_TICK})")
    try:
        yield
    finally:
        evaluate(node, "application:unset_env(rabbit, quorum_tick_interval)")
