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

#: Prints what a program imports itself, where the project is from, and which of its modules are changed.
PROGRAM = """
import json, sys
before = {*sys.modules}
import proj.tasks, proj.cli.main, proj.worker
modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "proj"}
changed = [name for name, module in modules.items() if hasattr(module, "CHANGED")]
print(json.dumps([[*({*sys.modules} - before)], [module.__file__ for module in modules.values()], changed]))
"""

#: Says to a file which of its streams are there, and what it was told by number.
STREAMS = """
import json, os, sys
found = [stream and stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]
file = os.open("found", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(file, json.dumps([*found, file]).encode())
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


@pytest.mark.parametrize(
    ("changed", "imports_all"),
    [(None, False), ("tasks.py", False), ("queues.py", True), ("rabbitmq/decoding.py", True)],
)
def test_a_program_imports_the_project_that_it_finds(
    changed: str | None, imports_all: bool, tmp_path: Path
) -> None:
    """Nothing of the one that was preloaded, when that is a changed copy; else nothing that takes time."""
    env = dict(os.environ)
    if changed:
        shutil.copytree(PACKAGE, tmp_path / "proj")
        path = tmp_path / "proj" / changed
        path.write_text(path.read_text() + "CHANGED = True\n")
        env["PYTHONPATH"] = str(tmp_path)
    with fork_server.popen(
        ["python", "-c", PROGRAM], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        imported, files, changes = json.loads(program.stdout.read())

    assert changes == (["proj." + changed.removesuffix(".py").replace("/", ".")] if changed else [])
    assert [name for name in imported if not name.startswith("proj")] == []
    if imports_all:
        assert [file for file in files if not file.startswith(f"{tmp_path}/")] == []
    else:
        assert sorted(imported) == ["proj.celery", "proj.tasks"]


@pytest.mark.parametrize("closed", [(), (1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed(closed: tuple[int, ...], tmp_path: Path) -> None:
    """They are not there, and the next file has the number of one, as in a program that a shell starts."""
    command = [sys.executable, "-c", STREAMS]

    def found(program: subprocess.Popen[bytes]) -> list[int | None]:
        assert program.wait() == 0
        numbers: list[int | None] = json.loads((tmp_path / "found").read_text())
        return numbers

    executed = found(subprocess.Popen(fork_server.executed(command, closed), cwd=tmp_path))
    forked = found(fork_server.popen(command, closed=closed, cwd=tmp_path, env=dict(os.environ)))

    assert forked == executed
    assert [number for number in range(3) if forked[number] is None] == [*closed]
