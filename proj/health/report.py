"""The report of `proj health` on this machine's workers, or on its beats, or on `proj ingest`."""

from typing import Any

from proj import state_dir
from proj.health import heartbeat
from proj.health.heartbeat import Verdict


def probe(
    *, ready: bool, worker: str | None, kind: str = heartbeat.WORKER
) -> tuple[Verdict, list[dict[str, Any]]]:
    """The verdict on the workers (ready, or else live), and the state of each; `worker` selects by name."""
    folder = state_dir.find()
    beats: list[heartbeat.Heartbeat] = []
    try:
        beats = heartbeat.read_all(folder, kind)
    except OSError as error:
        reason = f"the heartbeats in {error.filename or folder} cannot be read: {error.strerror}"
        verdict = Verdict(False, f"not {'ready' if ready else 'live'}: {reason}")
    else:
        verdict = heartbeat.judge(beats, ready=ready, worker=worker, state_dir=folder, kind=kind)
    return verdict, heartbeat.describe(beats, worker)
