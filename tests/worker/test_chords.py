"""Chords: their body runs when all header tasks have ended, or the chord has failed."""

from collections.abc import Iterator

import pytest

from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
        bundle.switch_off("worker/lookout.py", "INTERVAL: Final = 5.0", "INTERVAL: Final = 0.2")
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    return shared.worker("--concurrency=2").ready()


def _chord(bundle: Bundle, *header: str) -> str:
    """Publish a chord; the id of its body."""
    return str(
        bundle.python(f"""
import json
from celery import chord
from proj.tasks import add, sleep_dots
print(json.dumps(chord([{", ".join(header)}])(sleep_dots.si("")).id))
""")
    )


def _looks(worker: Worker) -> list[str]:
    """What the log says of looks whether all header tasks have ended."""
    return [line for line in worker.text().splitlines() if "celery.chord_unlock[" in line]


def test_chord_is_polled_with_back_off_and_quietly(shared: Bundle, worker: Worker) -> None:
    """Between two looks are 1, 2, 4 … seconds; at level INFO, a line of the log has only the last one."""
    before = len(_looks(worker))
    body = _chord(shared, "add.s(1, 2)", 'sleep_dots.s("..")')

    worker.says(f"[{body}] succeeded")
    eventually("the last look has ended", lambda: len(_looks(worker)) > before)
    (look,) = _looks(worker)[before:]
    assert "succeeded" in look
    assert shared.proj("result", body).returncode == 0


def test_chord_whose_header_task_is_revoked(shared: Bundle, worker: Worker) -> None:
    """The chord has failed, and nobody polls for it any more."""
    before, dead = len(_looks(worker)), shared.depth("proj.dead")
    body = _chord(shared, "add.s(1, 2)", 'add.s(3, 4).set(task_id="part", countdown=60)')
    shared.control(worker, "revoke", "part")

    eventually("the last look has ended", lambda: len(_looks(worker)) > before)
    done = shared.proj("result", body)
    assert done.returncode == 1
    assert "TaskRevokedError('revoked')" in done.stdout
    assert shared.depth("proj.dead") == dead


def test_chord_whose_header_task_the_broker_made_a_dead_letter(shared: Bundle, worker: Worker) -> None:
    """It fails once a worker has stored how that message ended."""
    before, dead = len(_looks(worker)), shared.depth("proj.dead")
    shared.control(worker, "cancel_consumer", "proj.tasks")
    body = _chord(shared, "add.s(3, 4).set(expires=0.2)", "add.s(1, 2)")
    eventually("one has expired", lambda: shared.depth("proj.dead") == dead + 1)
    shared.control(worker, "add_consumer", "proj.tasks")

    eventually("the last look has ended", lambda: len(_looks(worker)) > before)
    done = shared.proj("result", body)
    assert done.returncode == 1
    assert "ChordError" in done.stdout
