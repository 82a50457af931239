"""What `proj` answers by itself: its version, the nearest command, and what completes in a shell."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.lib import fork_server
from tests.lib.bundle import COMMAND_TIMEOUT

PROJ = Path(sys.executable).with_name("proj")


def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run([str(PROJ), *args], cwd=".", env=os.environ | env, timeout=COMMAND_TIMEOUT)


def test_version() -> None:
    """That of the installed package, whose program is executed."""
    done = subprocess.run([PROJ, "--version"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"proj, version {version('proj')}\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["quues"], "No such command 'quues'. Did you mean 'queues'? (see: proj --help)"),
        (["dead", "lst"], "No such command 'lst'. Did you mean 'list'? (see: proj dead --help)"),
        (["queues", "--jsn"], "No such option '--jsn'. Did you mean '--json'? (see: proj queues --help)"),
        (["--debgu", "queues"], "No such option '--debgu'. Did you mean '--debug'? (see: proj --help)"),
        (["xyzzy"], "No such command 'xyzzy' (see: proj --help)"),
    ],
)
def test_slip_names_the_nearest(args: list[str], words: str) -> None:
    """An unknown command or option, and what was perhaps meant."""
    done = _run(*args)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {words}\n")


@pytest.mark.parametrize("args", [[], ["dead"]])
def test_group_without_a_command_prints_its_help(args: list[str]) -> None:
    """As it is laid out, not as an error of one line."""
    done = _run(*args)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", _run(*args, "--help").stdout)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("proj q", ["queues"]),
        ("proj d", ["dead", "doctor"]),
        ("proj dead ", ["drop", "list", "redrive", "show"]),
        ("proj queues --j", ["--json"]),
        ("proj enqueue add --count", ["--count", "--countdown"]),
    ],
)
def test_shell_completes_commands_and_options(words: str, completed: list[str]) -> None:
    """What is typed is completed, also of a command that is loaded only when it is asked for."""
    done = _run(_PROJ_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))

    assert done.returncode == 0, done.stderr
    found = [line.removeprefix("plain,") for line in done.stdout.splitlines()]
    assert sorted(found) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script(shell: str) -> None:
    """The line of the documentation prints what the shell is to execute, and no help."""
    done = _run(_PROJ_COMPLETE=f"{shell}_source")

    assert done.returncode == 0, done.stderr
    assert "_PROJ_COMPLETE" in done.stdout
    assert "_proj_completion" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is missing")
def test_bash_completes_with_the_script() -> None:
    """A bash that has executed the script completes the first word."""
    script = f"""
        PATH={PROJ.parent}:$PATH
        eval "$(_PROJ_COMPLETE=bash_source proj)"
        COMP_WORDS=(proj que) COMP_CWORD=1
        _proj_completion proj
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("queues\n", "")
