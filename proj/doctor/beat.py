"""Checks of periodic tasks: whether a beat runs."""

from collections.abc import Iterator
from typing import Final

from amqp.exceptions import AccessRefused, NotFound, ResourceLocked

from proj import queues
from proj.doctor.finding import Finding, ok, skipped, warning
from proj.doctor.subject import Subject
from proj.rabbitmq import topology

_START: Final = "start one with: celery -A proj beat --loglevel=INFO"


def running_beat(subject: Subject) -> Iterator[Finding]:
    """Check that a beat runs if the schedule has entries."""
    entries = subject.app.conf.beat_schedule
    if not entries:
        return
    with subject.channel() as channel:
        try:
            topology.look(channel, queues.BEAT_LEADER)
        except ResourceLocked:  # it is exclusive
            yield ok(f"a beat publishes the schedule (entries: {len(entries)})")
        except NotFound:
            yield warning("the schedule has entries and no beat runs", "no periodic task is enqueued", _START)
        except AccessRefused:
            yield skipped("beat: not checked", f"this user may not look at queue {queues.BEAT_LEADER}")
