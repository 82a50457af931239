"""`proj dead drop`: dead letters that nobody wants any more."""

import pytest

from proj import dead_letters
from proj.dead_letters import publisher
from tests.lib import dead
from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost


def test_drop_needs_yes(bundle: Bundle) -> None:
    """Without `--yes` nothing is dropped, and the number is told."""
    dead.expire(bundle, 3)

    done = bundle.proj("dead", "drop", "--all")

    assert (done.returncode, done.stdout) == (2, "")
    assert "3 dead letters would be deleted permanently; confirm with --yes" in done.stderr
    assert bundle.depth("proj.dead") == 3


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
