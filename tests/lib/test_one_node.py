"""What test runs leave in memory when they are killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib import one_node

#: Prints its folder, and ends as if it were killed.
KILLED = """
import os, pathlib, sys
from tests.lib import one_node
one_node._MEMORY = pathlib.Path(sys.argv[1])
with one_node.quick_folder() as folder:
    print(folder, flush=True)
    os._exit(9)
"""


def test_folder_of_a_killed_run_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next folder that is made takes it away; one that is in use stays, until its own end."""
    monkeypatch.setattr(one_node, "_MEMORY", tmp_path)
    with one_node.quick_folder() as used:
        repository = Path(__file__).parents[2]
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        killed = subprocess.run(command, cwd=repository, stdout=subprocess.PIPE, text=True)
        left = Path(killed.stdout.strip())
        assert (killed.returncode, left.parent, left.is_dir()) == (9, tmp_path, True)

        with one_node.quick_folder():
            assert not left.exists()
            assert used.is_dir()
    assert not list(tmp_path.iterdir())
