"""`proj dead drop`: dead letters that nobody wants any more."""

import pytest

from proj import dead_letters
from proj.dead_letters import foreign, publisher
from tests.lib import dead, stores
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


def test_drop_needs_yes(bundle: Bundle) -> None:
    """Without `--yes` nothing is dropped, and the number is told."""
    dead.expire(bundle, 3)

    done = bundle.proj("dead", "drop", "--all")

    assert (done.returncode, done.stdout) == (2, "")
    assert "3 dead letters would be deleted permanently; confirm with --yes" in done.stderr
    assert bundle.depth("proj.dead") == 3
    one = bundle.proj("dead", "drop", "--all", "--limit", "1")
    assert "1 dead letter would be deleted permanently; confirm with --yes" in one.stderr


def test_drop_deletes_what_is_chosen(bundle: Bundle) -> None:
    """Ids, filters and `--limit` choose what is dropped; the rest stays in order."""
    ids = dead.expire(bundle, 6)

    assert bundle.proj("dead", "drop", ids[1], "--yes").stderr == "1 dropped\n"
    assert dead.ids(bundle) == [ids[0], *ids[2:]]
    assert bundle.proj("dead", "drop", "--all", "--reason", "maxlen", "--yes").stderr == "0 dropped\n"
    assert bundle.proj("dead", "drop", "--all", "--limit", "2", "--yes").stderr == "2 dropped\n"
    assert dead.ids(bundle) == ids[3:]
    assert bundle.proj("dead", "drop", "--all", "--yes").stderr == "3 dropped\n"
    assert bundle.depth("proj.dead") == 0
    assert bundle.depth("proj.tasks") == 0


def test_every_other_one_is_dropped_at_once(bundle: Bundle) -> None:
    """Of hundreds that are acknowledged one by one, none comes back."""
    ids = dead.expire(bundle, 300)

    assert bundle.proj("dead", "drop", *ids[1::2], "--yes").stderr == "150 dropped\n"

    assert dead.ids(bundle, "--limit", "1000") == ids[0::2]


def test_dropping_many_leaves_none(bundle: Bundle) -> None:
    """More messages than a chunk, or than a window, are all acknowledged when the command ends."""
    count = 2 * dead_letters.CHUNK + publisher.WINDOW + 1
    dead.expire_many(bundle, count)

    done = bundle.proj("dead", "drop", "--all", "--yes")

    assert (done.returncode, done.stderr) == (0, f"{count} dropped\n")
    assert bundle.depth("proj.dead") == 0
    assert dead.take(bundle, "proj.dead") == []


def test_drop_deletes_the_failure_that_a_worker_stored_for_the_broker_or_ingest(bundle: Bundle) -> None:
    """It is stored seconds after the death. The failure of a later life of the message stays."""
    expired, failed, killed = dead.expire(bundle, 3)
    headers = {foreign.ORIGIN: "q", foreign.REASON: "invalid", foreign.PROBLEM: "odd", foreign.ORIGINAL: {}}
    dead.publish(bundle, b"?", "proj.dead", message_id="foreign", application_headers=headers)
    ids = (expired, failed, killed, "foreign")

    def states() -> list[str]:
        return [stores.outcome(bundle, each)["state"] for each in ids]

    worker = bundle.worker()
    eventually("their ends are stored", lambda: states() == ["FAILURE"] * 4, seen=worker.text)
    worker.stop()
    bundle.python(f"""
from proj import app
from proj.errors import DeadLettered
app.backend.mark_as_failure({failed!r}, ValueError("later"))
app.backend.mark_as_failure({killed!r}, DeadLettered("delivery limit (see: proj dead show {killed})"))
print(1)
""")

    assert bundle.proj("dead", "drop", "--all", "--yes").stderr == "4 dropped\n"

    assert states() == ["PENDING", "FAILURE", "FAILURE", "PENDING"]


def test_drop_goes_on_while_the_result_store_is_down(bundle: Bundle) -> None:
    """The failures stay, which is one line of the log."""
    dead.expire(bundle, publisher.WINDOW + 1)
    stores.file(bundle).parent.mkdir()
    stores.garbage(bundle)

    done = bundle.proj("dead", "drop", "--all", "--yes", env={"PROJ_LOG_FORMAT": "json"})

    assert (done.returncode, bundle.depth("proj.dead")) == (0, 0)
    assert done.stderr.count("The failures of dropped dead letters are still stored: ") == 1
