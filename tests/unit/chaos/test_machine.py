"""A machine on which a run of chaos cannot take place."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from proj.errors import BrokerNodeError, ExitCode
from tests.chaos.run import check_machine
from tests.lib import fork_server, small_disk
from tests.lib.missing import missing

ROOT = Path(__file__).parents[3]

#: What `python -m` does with the words behind it.
AS_MODULE = "import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], None, '__main__', True)"


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_is_refused(what: str) -> None:
    """With what there is, and what is needed."""
    enough = {"memory": 0, "disk": 0}
    check_machine(**enough)

    with pytest.raises(BrokerNodeError, match=rf"too little {what}.*: \d+ MiB are free, {2**40} are needed"):
        check_machine(**enough | {what: 2**60})


@pytest.mark.parametrize("program", [["tests.chaos", "--short"], ["tests.chaos.soak"]])
def test_a_run_on_a_small_disk_ends_with_one_line(program: list[str], tmp_path: Path) -> None:
    """It ends before it has started anything."""
    disk = tmp_path / "disk"
    with small_disk.mounted(disk, 2**20) as is_there:
        if not is_there:
            missing("this user may not mount a small disk")
        env = os.environ | {"TMPDIR": str(disk)}
        done = fork_server.run([sys.executable, "-c", AS_MODULE, *program], cwd=ROOT, env=env, timeout=60)

        error = rf"Error: too little disk in {disk}: \d MiB are free, 2048 are needed \(.*TMPDIR\)\n"
        assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")
        assert re.fullmatch(f"(seed .*\n)?{error}", done.stderr), done.stderr
        assert list(disk.iterdir()) == []
        assert [each.pid for each in psutil.process_iter() if _uses(each, disk)] == []


def _uses(process: psutil.Process, folder: Path) -> bool:
    """Whether it was started with this folder for temporary files, as all processes of a run are."""
    with suppress(psutil.Error):
        return process.environ().get("TMPDIR") == str(folder)
    return False
