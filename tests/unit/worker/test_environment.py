"""Names of the environment that look like settings of Celery."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery.bin.celery import celery

from proj.doctor import settings
from proj.worker import environment, start


@pytest.fixture(autouse=True)
def _folder_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("CELERY_TASK_TIME_LIMIT", "PROJ_TASK_TIME_LIMIT"),
        ("CELERYD_TASK_TIME_LIMIT", "PROJ_TASK_TIME_LIMIT"),
        ("CELERY_RESULT_EXPIRES", "PROJ_RESULT_EXPIRES"),
        ("CELERY_TASK_RESULT_EXPIRES", "PROJ_RESULT_EXPIRES"),
        ("CELERY_TASK_QUEUES", "PROJ_QUEUES"),
        ("CELERYD_CONCURRENCY", "CELERY_WORKER_CONCURRENCY"),
        ("CELERY_TASK_ACKS_LATE", None),
        ("CELERY_ELASTICSEARCH_MAX_RETRIES", None),
    ],
)
def test_setting_of_celery_that_nothing_reads(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: str | None
) -> None:
    """It is named with what to set instead, where there is such a setting."""
    monkeypatch.setenv(name, "1")
    assert environment.unread() == {name: instead}
    monkeypatch.delenv(name)
    Path(".env").write_text(f"{name}=1\n")
    assert environment.unread() == {name: instead}


@pytest.mark.parametrize(
    "name",
    [
        *("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "PROJ_TASK_TIME_LIMIT"),
        *("CELERY_WORKER_CONCURRENCY", "CELERY_WORKER_POOL", "CELERY_BEAT_SCHEDULER", "CELERY_LOG_LEVEL"),
        *("CELERY_OF_ANOTHER_PROGRAM", "TASK_TIME_LIMIT"),
    ],
)
def test_name_that_is_read_or_is_no_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert environment.unread() == {}


def test_command_line_reads_its_options_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's programs do not read `.env`."""
    name = "CELERY_WORKER_CONCURRENCY"
    Path(".env").write_text(f"{name}=3\n")
    assert environment.unread() == {name: f"export {name}"}

    monkeypatch.setenv(name, "3")
    command = celery.commands["worker"]
    parent = click.Context(celery, auto_envvar_prefix="CELERY")
    context = click.Context(command, info_name="worker", parent=parent)
    (option,) = (each for each in command.params if each.name == "concurrency")
    assert option.value_from_envvar(context) == "3"
    assert environment.unread() == {}


def test_worker_and_doctor_warn(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Once, in one line; without such a name, not at all."""
    subject: Any = SimpleNamespace()
    with caplog.at_level(logging.WARNING):
        start.warn_of_unread_names()
    assert (caplog.messages, [each.level for each in settings.unread_names(subject)]) == ([], ["ok"])

    monkeypatch.setenv("CELERY_TASK_TIME_LIMIT", "60")
    monkeypatch.setenv("CELERY_TIMEZONE", "Europe/Berlin")
    start.warn_of_unread_names()
    (finding,) = settings.unread_names(subject)
    names = "CELERY_TASK_TIME_LIMIT (instead: PROJ_TASK_TIME_LIMIT), CELERY_TIMEZONE"
    assert [names in text for text in caplog.messages] == [True]
    assert (finding.level, finding.what) == ("warning", f"nothing reads {names}")
