"""A schedule that nobody publishes is found."""

import pytest

from tests.lib.bundle import Bundle
from tests.lib.findings import about, doctor

pytestmark = pytest.mark.used_vhost

SCHEDULE = """
    app.conf.beat_schedule = {"hourly": {"task": "proj.tasks.add", "schedule": 3600.0, "args": (1, 2)}}
"""


def test_schedule_without_a_beat(declared: Bundle) -> None:
    """No word without entries; a warning with entries and no beat; all is well while one runs."""
    assert not [each for each in doctor(declared) if each["check"] == "running_beat"]
    declared.add_task(SCHEDULE)
    found = about(doctor(declared), "running_beat", "the schedule has entries and no beat runs")
    assert "celery -A proj beat" in found["fix"]
    declared.beat().says("this beat leads")
    (found,) = (each for each in doctor(declared) if each["check"] == "running_beat")
    assert found["level"] == "ok", found
