"""What Celery is told of the time that results are kept: nothing where our workers delete."""

from pathlib import Path

import pytest
from celery import Celery
from celery.beat import Scheduler

from proj import celeryconfig, config
from proj.cli.result import _kept_for


@pytest.mark.parametrize(
    ("backend", "expires", "told"),
    [
        (None, "60", None),
        ("db+postgresql://u:p@h/d", "60", None),
        ("db+mysql://u:p@h/d", "60", 60),
        ("redis://h", "60", 60),
        ("redis://h", "0", None),
    ],
)
def test_celery_expires_what_our_workers_do_not_delete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str | None, expires: str, told: int | None
) -> None:
    """By the same setting. In SQLite and PostgreSQL it would delete the failures of dead letters too."""
    monkeypatch.setenv("PROJ_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PROJ_RESULT_EXPIRES", expires)
    if backend:
        monkeypatch.setenv("CELERY_RESULT_BACKEND", backend)
    config.load.cache_clear()
    try:
        assert celeryconfig.configuration(config.load())["result_expires"] == told
    finally:
        config.load.cache_clear()


@pytest.mark.parametrize(("expires", "entries"), [(None, 0), (60, 1)])
def test_beat_cleans_up_only_where_celery_expires(expires: int | None, entries: int) -> None:
    """`celery.backend_cleanup` would delete the failures of dead letters."""
    app = Celery("beat", backend="file:///tmp", set_as_current=False)
    app.conf.result_expires = expires
    scheduler = Scheduler(app, schedule={}, lazy=True)
    scheduler.install_default_entries(scheduler.data)
    assert len(scheduler.data) == entries


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (604800, " (kept for 7 days)"),
        (86400, " (kept for 1 day)"),
        (5400, " (kept for 90 minutes)"),
        (61, " (kept for 61 seconds)"),
        (0, ""),
    ],
)
def test_how_long_results_are_kept(seconds: int, words: str) -> None:
    """In the largest unit that fits."""
    assert _kept_for(seconds) == words
