"""Tests that count dead letters count those that a worker looks at, too."""

from collections.abc import Callable

import pytest

from proj import queues
from proj.rabbitmq import topology
from tests.lib import dead, dead_reader
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually


@pytest.mark.used_vhost
def test_letter_that_a_worker_looks_at_is_counted(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count waits until it is given back; the control does not, and counts none."""
    dead.publish_task(bundle, "it", 1, 2, queue="proj.dead")
    with bundle.channel() as reader:
        dead_reader.take(reader)
        letter = reader.basic_get("proj.dead")
        with monkeypatch.context() as control:
            control.setattr(dead_reader, "eventually", lambda what, condition: condition())
            assert bundle.depth("proj.dead") == 0

        def give_back(what: str, condition: Callable[[], bool]) -> None:
            assert not condition()
            reader.basic_reject(letter.delivery_tag, requeue=True)
            eventually("it is back", lambda: topology.look(reader, "proj.dead").message_count == 1)
            reader.queue_delete(queues.DEAD_READER)
            assert condition()

        monkeypatch.setattr(dead_reader, "eventually", give_back)
        assert bundle.depth("proj.dead") == 1
