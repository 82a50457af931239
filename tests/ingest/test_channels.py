"""Ingest opens no more channels on its connection than it needs, however often it tries again."""

from typing import Any

import pytest

from proj.ingest import source
from tests.lib import foreign
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate
from tests.lib.publisher import MAX_SIZE

#: How often a test tries.
TRIES = 5


@pytest.mark.used_vhost
def test_a_queue_that_cannot_be_declared(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try gives its channel back."""
    monkeypatch.setattr(source, "FIRST_PAUSE", 0.0)
    with bundle.channel() as other, bundle.channel() as own:
        other.queue_declare("task_queue", exclusive=True)
        broker = own.connection
        before = set(broker.channels)
        no_composer: Any = None
        tried = source.Source("task_queue", no_composer)
        for _ in range(TRIES):
            tried.open(broker)
            assert not tried.consumes
        assert "RESOURCE_LOCKED" in caplog.text
        assert set(broker.channels) == before


def _count(bundle: Bundle) -> str:
    """The number of open channels in the virtual host."""
    here = f'[V || [{{vhost, V}}] <- rabbit_channel:info_all([vhost]), V =:= <<"{bundle.vhost}">>]'
    return evaluate(bundle.node, f"length({here})")


def test_messages_that_are_too_large_as_tasks(own: Bundle) -> None:
    """Each time that the broker closes the channel, another one takes its place."""
    ingest = foreign.start(own).consumes()
    foreign.publish(own, ["before"])
    ingest.says("published")
    before = _count(own)

    foreign.publish(own, ["\x01" * (MAX_SIZE // 3)] * TRIES)
    ingest.says("became a dead letter", TRIES)

    assert before == _count(own) == "3"
