"""Forked programs leave nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.lib.waiting import eventually

#: A test process that starts a program, says which, and hangs.
TESTS = """
import signal
from tests.lib import fork_server
program = fork_server.popen(["python", "-c", "import time; time.sleep(600)"], cwd=".", env={})
print(program.pid, flush=True)
signal.pause()
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
