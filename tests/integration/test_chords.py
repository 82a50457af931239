"""Chords: their body runs when all header tasks have ended, or the chord has failed."""

from tests.bundle import BIN, Bundle, eventually


def test_chord_whose_header_task_is_revoked(bundle: Bundle) -> None:
    """The chord has failed, and nobody polls for it any more."""
    worker = bundle.worker()
    worker.ready()
    body = bundle.python("""
import json
from celery import chord
from proj.tasks import add, sleep_dots
header = [add.s(1, 2), add.s(3, 4).set(task_id="part", countdown=60)]
print(json.dumps(chord(header)(sleep_dots.si("1")).id))
""")
    done = bundle.run(BIN / "celery", "-A", "proj", "control", "--timeout=10", "revoke", "part")
    assert done.returncode == 0, done.stderr

    eventually("the chord has failed", lambda: bundle.proj("result", body).returncode == 1)
    assert "TaskRevokedError('revoked')" in bundle.proj("result", body).stdout
    eventually("the last look has ended", lambda: "celery.chord_unlock[" in worker.text())
    assert bundle.depth("proj.dead") == 0


def test_chord_whose_header_task_the_broker_made_a_dead_letter(bundle: Bundle) -> None:
    """It fails once a worker has stored how that message ended."""
    body = bundle.python("""
import json
from celery import chord
from proj.tasks import add, sleep_dots
header = [add.s(3, 4).set(expires=0.2), add.s(1, 2)]
print(json.dumps(chord(header)(sleep_dots.si("1")).id))
""")
    eventually("one has expired", lambda: bundle.depth("proj.dead") == 1)
    bundle.worker()

    eventually("the chord has failed", lambda: bundle.proj("result", body).returncode == 1)

    assert "ChordError" in bundle.proj("result", body).stdout


def test_chord_is_polled_with_back_off_and_quietly(bundle: Bundle) -> None:
    """Between two looks are 1, 2, 4 … seconds; at level INFO, a line of the log has only the last one."""
    worker = bundle.worker("--concurrency=2")
    worker.ready()
    body = bundle.python("""
import json
from celery import chord
from proj.tasks import add, sleep_dots
print(json.dumps(chord([add.s(1, 2), sleep_dots.s("9")])(sleep_dots.si("0")).id))
""")
    eventually("the body is executed", lambda: bundle.proj("result", body).returncode == 0)

    eventually("the last look has ended", lambda: "celery.chord_unlock[" in worker.text())
    lines = [line for line in worker.text().splitlines() if "celery.chord_unlock[" in line]
    assert len(lines) == 1, lines
    assert "succeeded" in lines[0]
