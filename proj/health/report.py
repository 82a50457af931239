"""What `proj health` reports of the workers of this machine, from the heartbeats that they leave."""

from typing import Any

from proj import state_dir
from proj.health import heartbeat
from proj.health.heartbeat import Verdict


def probe(*, ready: bool, worker: str | None) -> tuple[Verdict, list[dict[str, Any]]]:
    """Whether the workers, or the one of this name, are ready or else live, and what each of them is."""
    folder = state_dir.find()
    beats: list[heartbeat.Heartbeat] = []
    try:
        beats = heartbeat.read_all(folder)
    except OSError as error:
        reason = f"the heartbeats in {error.filename or folder} cannot be read: {error.strerror}"
        verdict = Verdict(False, f"not {'ready' if ready else 'live'}: {reason}")
    else:
        verdict = heartbeat.judge(beats, ready=ready, worker=worker, state_dir=folder)
    return verdict, heartbeat.describe(beats, worker)
