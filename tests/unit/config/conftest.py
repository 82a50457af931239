"""Settings of a test alone: not those of the machine's folder and environment."""

from pathlib import Path

import pytest

from proj import config


@pytest.fixture(autouse=True)
def _settings_of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_BROKER_URL")
    monkeypatch.setattr(config, "load", config.load.__wrapped__)
