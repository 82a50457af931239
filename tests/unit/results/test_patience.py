"""How much of a task's time its progress takes, while the store is down or hangs."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import states

from proj.results import patience
from proj.results.patience import Patient


class _Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class _Down:
    """A backend, as far as progress is concerned, whose attempts all fail."""

    def __init__(self, clock: _Clock, took: float) -> None:
        self.clock = clock
        self.took = took
        self.attempts = 0

    def store_result(self, *_: Any, **__: Any) -> None:
        self.attempts += 1
        self.clock.now += self.took
        raise OSError("down")

    def exception_safe_to_retry(self, _: Exception) -> bool:
        return True

    def on_backend_retryable_error(self, _: Exception) -> None:
        raise OSError("still down")


class _Store(Patient, _Down):
    pass


@pytest.mark.parametrize(("took", "pause"), [(0.001, 10), (5, 50), (10, 100)])
def test_progress_takes_a_tenth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, took: float, pause: float
) -> None:
    """One attempt and one warning, and then none until the pause is over."""
    clock = _Clock()
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=clock.monotonic))
    store = _Store(clock, took)

    for _ in range(100):
        assert store.store_result("it", 1, "PROGRESS", request=SimpleNamespace(task="a.task")) == 1
        store.store_result("it", 1, states.STARTED)
    assert store.attempts == 1
    words = f"Task a.task[it] dropped its state PROGRESS: down (no further attempt for {pause} s)"
    assert caplog.messages == [words]

    clock.now += pause - 0.01
    store.store_result("it", 1, "PROGRESS")
    assert store.attempts == 1
    clock.now += 0.02
    store.store_result("it", 1, "PROGRESS")
    assert store.attempts == 2
