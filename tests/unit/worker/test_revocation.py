"""Which revocations are stored, and what becomes of the others when one of them cannot be."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import states

from proj.worker.revocation import Revocations
from tests.lib.waiting import eventually


class _Store:
    """A result store, as far as revocations are concerned, that fails for some ids."""

    def __init__(self, **stored: str) -> None:
        self.stored = stored
        self.down: set[str] = set()

    def get_task_meta(self, task_id: str) -> dict[str, Any]:
        if task_id in self.down:
            raise OSError("down")
        return {"status": self.stored.get(task_id, states.PENDING)}

    def mark_as_revoked(self, task_id: str, reason: str) -> None:
        self.stored[task_id] = states.REVOKED


def _revocations(store: _Store) -> Revocations:
    settings = SimpleNamespace(safe_result_backend="db+sqlite://")
    return Revocations(SimpleNamespace(backend=store, settings=settings))


@pytest.mark.parametrize(
    ("state", "is_stored"),
    [(state, True) for state in (states.PENDING, states.RECEIVED, states.RETRY)]
    + [(state, False) for state in (states.STARTED, "PROGRESS", states.SUCCESS, states.FAILURE)],
)
def test_task_that_has_begun_is_left_to_its_worker(state: str, is_stored: bool) -> None:
    """Its own state or `STARTED` tells that it has."""
    store = _Store(it=state)

    _revocations(store).store(["it", "last"])

    eventually("all are looked at", lambda: store.stored.get("last") == states.REVOKED)
    assert store.stored["it"] == (states.REVOKED if is_stored else state)


def test_store_that_is_down_is_asked_once_for_each_command(caplog: pytest.LogCaptureFixture) -> None:
    """The next command's ids are stored when it is back."""
    store = _Store()
    store.down = {"second"}
    revocations = _revocations(store)

    revocations.store(["first", "second", "third"])
    revocations.store(["fourth"])

    eventually("all are looked at", lambda: "fourth" in store.stored)
    assert store.stored.keys() == {"first", "fourth"}
    (line,) = caplog.messages
    assert line.startswith("Revoked only until this worker ends: the result store cannot be written: down")
