"""What the doctor makes of brokers that no test can start."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proj import config, queues
from proj.doctor import broker, settings
from proj.doctor.finding import Finding
from proj.doctor.subject import Subject


def of_version(product: str, version: str) -> list[Finding]:
    parsed = tuple(map(int, version.split(".")[:2]))
    subject = SimpleNamespace(properties={"product": product, "version": version}, version=parsed)
    return list(broker.version(cast(Subject, subject)))


@pytest.mark.parametrize(("product", "version"), [("RabbitMQ", "3.9.29"), ("LavinMQ", "4.0.0")])
def test_broker_that_the_promise_cannot_rest_on(product: str, version: str) -> None:
    """It is one error."""
    (finding,) = of_version(product, version)
    assert (finding.level, product in finding.what) == ("error", True)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.10.8", ["priority", "without limit"]),
        ("3.13.7", ["priority", "without limit"]),
        ("4.0.5", ["21st requeue"]),
        ("4.3.5", ["21st requeue", "transient"]),
    ],
)
def test_traps_of_each_version(version: str, words: list[str]) -> None:
    """They are told as something to know, for the topology of the project is safe from them."""
    well, *traps = of_version("RabbitMQ", version)
    assert well.level == "ok"
    assert [trap.level for trap in traps] == ["info"] * len(words)
    assert all(word in trap.what for word, trap in zip(words, traps, strict=True))


def test_node_that_is_down() -> None:
    """`rabbitmqctl` reaches no node whose Erlang has ended, so the first thing to do is to start that."""
    subject = SimpleNamespace(ask=lambda _: [{"name": "a@one", "running": True}, {"name": "b@two"}])
    (finding,) = broker.nodes(cast(Subject, subject))

    assert (finding.level, finding.what) == ("error", "node b@two is not running")
    assert finding.fix == (
        "if only its application is stopped, rabbitmqctl -n b@two start_app is enough; "
        "else start RabbitMQ on its machine with: systemctl start rabbitmq-server"
    )


def limits(monkeypatch: pytest.MonkeyPatch, **known: Any) -> Finding:
    """Of a broker that waits 15 minutes, as RabbitMQ 3.12 and later tell."""
    monkeypatch.setattr(settings, "own_tasks", lambda _: {"proj.tasks.add": SimpleNamespace(time_limit=None)})
    subject = SimpleNamespace(
        topology=queues.Topology(),
        settings=config.Settings(),
        app=None,
        configured=lambda _: 900_000,
        unmanaged=None,
        unreachable=None,
        version=(3, 12),
        queues={queues.DEFAULT_QUEUE: {"arguments": {}, "effective_policy_definition": {}}},
    )
    vars(subject).update(known)
    (finding,) = settings.time_limits(cast(Subject, subject))
    return finding


def with_policy(milliseconds: int) -> dict[str, Any]:
    return {"arguments": {}, "effective_policy_definition": {"consumer-timeout": milliseconds}}


def test_real_consumer_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's own counts, and a policy of the queue more, on versions that know it."""
    name = queues.DEFAULT_QUEUE
    assert "consumer_timeout, 900 s" in limits(monkeypatch).what
    assert limits(monkeypatch, version=(4, 3)).level == "ok"
    assert limits(monkeypatch, queues={name: with_policy(3_600_000)}).level == "ok"
    assert "60 s" in limits(monkeypatch, configured=lambda _: None, queues={name: with_policy(60_000)}).what
    old = limits(monkeypatch, configured=lambda _: None, queues={name: with_policy(60_000)}, version=(3, 10))
    assert old.level == "ok"


def test_consumer_timeout_that_is_believed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that fit the broker, but were compared with another number at the start."""
    finding = limits(monkeypatch, configured=lambda _: 1_600_000)
    assert (finding.level, finding.what) == (
        "warning",
        "PROJ_CONSUMER_TIMEOUT is 1800 s, but the broker's consumer_timeout is 1600 s",
    )
