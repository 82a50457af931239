"""A schedule that nobody publishes is found."""

import pytest

from tests.lib.bundle import Bundle
from tests.lib.findings import Findings, doctor
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

SCHEDULE = """
    app.conf.beat_schedule = {"hourly": {"task": "proj.tasks.add", "schedule": 3600.0, "args": (1, 2)}}
"""


def test_schedule_without_a_beat(declared: Bundle) -> None:
    """No word without entries; a warning with entries and no beat; all is well while one runs."""

    def found(level: str = "") -> Findings:
        checked = [each for each in doctor(declared) if each["check"] == "running_beat"]
        return [each for each in checked if level in each["level"]]

    assert not found()
    declared.add_task(SCHEDULE)
    (warning,) = eventually("no beat is found", lambda: found("warning"))
    assert warning["what"] == "the schedule has entries and no beat runs"
    assert "celery -A proj beat" in warning["fix"]
    declared.beat().says("this beat leads")
    eventually("a beat is found", lambda: found("ok"))
