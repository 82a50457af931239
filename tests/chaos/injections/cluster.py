"""Faults of a cluster of three nodes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

from proj import queues
from proj.private_node.node import BrokerNode, answers
from tests.chaos import bounds
from tests.chaos.faults import Bound, Fault, injects
from tests.chaos.ledger import Kind
from tests.chaos.stage import Stage
from tests.lib.erlang import evaluate

#: Whether this release has nodes that pause: since 4.3 a node without a majority keeps its connections.
_PAUSES: Final = "erlang:function_exported(rabbit_node_monitor, pause_partition_guard, 0)"


def _times(count: int) -> Bound:
    """Where all connections may be lost so often."""
    once = bounds.ALL_CONNECTIONS
    return Bound(count * once.most, f"{count} times: {once.why}")


@injects(Fault.LEADER_KILLED, duplicates=bounds.ALL_CONNECTIONS, nodes=3, private=True)
@contextmanager
def leader_killed(stage: Stage) -> Iterator[str]:
    victim = _leader(stage, stage.nodes)
    pid, others = victim.pid, [node for node in stage.nodes if node is not victim]
    victim.kill()
    try:
        assert not psutil.pid_exists(pid)
        now = stage.eventually("another node leads", lambda: _leader(stage, others))
        assert now is not victim
        stage.more_executed(20)
        yield f"process {pid} of {victim.name} is gone, {now.name} leads"
    finally:
        victim.start()
        _await_whole(stage)


@injects(Fault.NODE_PARTITIONED, duplicates=_times(2), nodes=3, private=True)
@contextmanager
def node_partitioned(stage: Stage) -> Iterator[str]:
    """Erlang refuses a node whose cookie is wrong: none of the others reaches it, whoever tries."""
    alone = _leader(stage, stage.nodes)
    others = [node for node in stage.nodes if node is not alone]
    for other in others:
        evaluate(alone, f"erlang:set_cookie('{other.name}', wrong), erlang:disconnect_node('{other.name}')")
    try:
        stage.eventually("it is alone", lambda: evaluate(alone, "nodes()") == "[]")
        for other in others:
            stage.eventually("two are left", lambda other=other: len(_running(other)) == 2)  # type: ignore[misc]
        now = stage.eventually("another node leads", lambda: _leader(stage, others))
        running = " and ".join(sorted(_running(others[0])))
        bit = f"{running} run, and {now.name} leads; {alone.name} knows no other node"
        if evaluate(alone, _PAUSES) == "true":
            # It has no majority, so it closes its connections: programs go to the other side.
            stage.eventually("it pauses", lambda: not answers(alone.info))
            stage.more_executed(20)
            bit += ", and has paused"
        else:
            stage.more_unknown()
            bit += ", and a publish is unknown"
        yield bit
    finally:
        cookie = f"erlang:set_cookie('{{}}', '{(alone.data_dir / '.erlang.cookie').read_text()}')"
        for other in others:
            evaluate(alone, cookie.format(other.name))
        _await_whole(stage)


@injects(Fault.NODES_RESTARTED, duplicates=_times(3), nodes=3, private=True)
@contextmanager
def nodes_restarted(stage: Stage) -> Iterator[str]:
    """Each when no queue needs it: what `rabbitmq-queues check_if_node_is_quorum_critical` asks."""
    pids = [node.pid for node in stage.nodes]
    for node in stage.nodes:
        _await_whole(stage)
        pid = node.pid
        node.stop()
        try:
            assert not psutil.pid_exists(pid)
            stage.more_executed(20)
        finally:
            node.start()
    _await_whole(stage)
    now = [node.pid for node in stage.nodes]
    assert not set(pids) & set(now)
    yield f"processes {', '.join(map(str, pids))} are gone, {', '.join(map(str, now))} have come"


@injects(Fault.MAJORITY_LOST, duplicates=_times(2), nodes=3, private=True)
@contextmanager
def majority_lost(stage: Stage) -> Iterator[str]:
    leader = _leader(stage, stage.nodes)
    last = next(node for node in stage.nodes if node is not leader)
    victims = [node for node in stage.nodes if node is not last]
    pids = [node.pid for node in victims]
    try:
        for node in victims:
            node.kill()
        assert not any(map(psutil.pid_exists, pids))
        confirmed = _await_no_confirm(stage)
        stage.stands_still()
        assert psutil.pid_exists(last.pid)
        assert stage.count.look()[Kind.CONFIRMED] == confirmed
        yield f"processes {pids[0]} and {pids[1]} are gone; nothing is confirmed, and no task is executed"
    finally:
        for node in victims:  # each waits for the other
            node.launch()
        for node in victims:
            node.await_ready()
        _await_whole(stage)


def _await_no_confirm(stage: Stage) -> int:
    """Wait until a publish is refused or unknown, and none is confirmed any more; how many are confirmed."""

    def failed() -> int:
        count = stage.count.look()
        return count[Kind.REFUSED] + count[Kind.UNKNOWN]

    for _ in range(2):  # the first may have been under way
        goal = failed() + 1
        stage.eventually("a publish is refused or unknown", lambda goal=goal: failed() >= goal)  # type: ignore[misc]
    return stage.count.look()[Kind.CONFIRMED]


def _leader(stage: Stage, among: list[BrokerNode]) -> BrokerNode:
    """The node that leads the work queue, as one of these nodes knows it."""
    queue = f'rabbit_misc:r(<<"{stage.broker.vhost}">>, queue, <<"{queues.DEFAULT_QUEUE}">>)'
    expression = (
        f"{{ok, Queue}} = rabbit_amqqueue:lookup({queue}),"
        " {ok, _, {_, Leader}} = ra:members(amqqueue:get_pid(Queue)), Leader"
    )

    def found() -> BrokerNode | None:
        with suppress(AssertionError):  # while another one is elected
            name = evaluate(among[0], expression).strip("'")
            return next((node for node in among if node.name == name), None)
        return None

    node = stage.eventually("the work queue has a leader", found)
    assert node is not None
    return node


def _running(node: BrokerNode) -> list[str]:
    """The nodes that run, as this one sees its cluster."""
    names = evaluate(node, "rabbit_nodes:all_running()").strip("[]")
    return [name.strip().strip("'") for name in names.split(",")]


def _await_whole(stage: Stage) -> None:
    """Wait until all nodes accept connections and no queue would lose its majority with any of them."""
    critical = "length(rabbit_quorum_queue:list_with_minimum_quorum())"

    def is_whole() -> bool:
        with suppress(AssertionError):
            return all(answers(node.info) and evaluate(node, critical) == "0" for node in stage.nodes)
        return False

    stage.eventually("the cluster is whole", is_whole)
