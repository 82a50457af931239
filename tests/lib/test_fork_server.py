"""Forked programs are what executed ones are, and leave nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.lib import fork_server
from tests.lib.bundle import PACKAGE
from tests.lib.waiting import eventually

#: A test process that starts a program, says which, and hangs.
TESTS = """
import signal
from tests.lib import fork_server
program = fork_server.popen(["python", "-c", "import time; time.sleep(600)"], cwd=".", env={})
print(program.pid, flush=True)
signal.pause()
"""

#: Prints what a program imports itself, and where the project is from.
PROGRAM = """
import json, sys
before = {*sys.modules}
import proj.tasks, proj.cli.main, proj.worker
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "proj"]
print(json.dumps([[*({*sys.modules} - before)], files]))
"""


def test_programs_end_with_a_test_process_that_is_killed() -> None:
    """So does what an interrupted run of all tests has started."""
    tests = subprocess.Popen(
        [sys.executable, "-c", TESTS], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    with tests:
        assert tests.stdout
        program = psutil.Process(int(tests.stdout.readline()))
        assert program.parent() == psutil.Process(tests.pid)

        tests.send_signal(signal.SIGKILL)

    eventually("it has ended", lambda: not program.is_running())


@pytest.mark.parametrize("changed", [False, True])
def test_a_program_imports_the_project_that_it_finds(changed: bool, tmp_path: Path) -> None:
    """Nothing of the one that was preloaded, when that is a changed copy; else nothing that takes time."""
    env = dict(os.environ)
    if changed:
        shutil.copytree(PACKAGE, tmp_path / "proj")
        env["PYTHONPATH"] = str(tmp_path)
    with fork_server.popen(
        ["python", "-c", PROGRAM], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        imported, files = json.loads(program.stdout.read())

    assert {Path(file).is_relative_to(tmp_path) for file in files} == {changed}
    assert [name for name in imported if not name.startswith("proj")] == []
    assert changed or sorted(imported) == ["proj.celery", "proj.tasks"]
