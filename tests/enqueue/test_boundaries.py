"""What can pass at the edges of a program: arguments, streams, folders, and what the environment says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib import dead, fork_server
from tests.lib.bundle import BIN, Bundle
from tests.lib.waiting import PATIENCE

pytestmark = pytest.mark.used_vhost

#: What takes nothing that is written to it.
FULL = Path("/dev/full")

#: Runs command lines in one process, and prints of each its arguments, its exit code and the lines of stderr.
_RUN_ALL = """
import contextlib, io, itertools, json, sys
from proj.cli.main import proj
from proj.celery import app

odd = [
    "", " ", "-", "--", "é", "\\udcff", "\\n", "a\\nb", "\\x1b[31m", "%s", "{}", "x" * 100_000, "../..",
    "/dev/null", "~nobody-has-this-name/x", "nan", "-inf", "-1", "1e400", "9" * 5000, "null", "[]", '"' * 9,
    "[" * 5000,
    '"\\\\ud800"', "NaN", "9999-12-31", "0001-01-01", "2030-01-31T12:00:00+23:59", "٣", "⁵", "0x10", "1_0",
]
commands = [
    ["enqueue", "add", None, "x"], ["enqueue", "task", None], ["enqueue", "task", "proj.tasks.add", None],
    ["enqueue", "task", "proj.tasks.add", "--kwargs", None], ["enqueue", "add", "x", "--id", None],
    ["enqueue", "add", "x", "--countdown", None], ["enqueue", "add", "x", "--eta", None],
    ["enqueue", "add", "x", "--expires", None], ["enqueue", "add", "x", "--count", None],
    ["enqueue", "add", "x", "--wait", "--timeout", None], ["result", None], ["result", None, "--json"],
    ["dead", "show", None], ["dead", "drop", None], ["dead", "drop", None, "--yes"],
    ["dead", "redrive", None],
    ["dead", "list", "--task", None], ["dead", "list", "--reason", None], ["dead", "list", "--limit", None],
    ["queues", None], ["health", "--live", "--worker", None], ["broker", "status", "--dir", None],
    ["broker", "stop", "--dir", None], [None], ["enqueue", None], ["dead", None], ["health", None],
]
for text, command in itertools.product(odd, commands):
    sys.argv = ["proj", *(text if part is None else part for part in command)]
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            proj(prog_name="proj")
        except SystemExit as end:
            code = end.code
    err.flush()
    said = err.buffer.getvalue().decode()
    print(json.dumps([[part[:40] for part in sys.argv], code, said]))
"""


def test_any_argument_is_taken_or_refused_in_one_line(bundle: Bundle) -> None:
    """Every command, with texts that no one expects: a code of the contract, and one line to be read."""
    bundle.declare()
    done = bundle.run_python(_RUN_ALL)
    assert done.returncode == 0, done.stderr

    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) > 800
    for argv, code, said in ended:
        assert code in {0, 1, 2, 65, 69, 75}, (argv, said)
        if said.startswith("Error: "):
            assert said.removesuffix("\n").isprintable(), (argv, said)
            assert len(said) < 2100, argv
            assert "unexpected " not in said.replace("unexpected extra argument", ""), (argv, said)
        else:
            assert code == 0 or "--help" in said or said == "", (argv, code, said)


def test_drop_without_yes_of_what_is_not_there(bundle: Bundle) -> None:
    """It is told at once, not that none would be gone."""
    done = bundle.proj("dead", "drop", "nobody")

    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == "Error: no such dead letter: nobody (list them with: proj dead list)\n"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "enqueue add 1 2 --count 3",
        "result nobody",
        "queues",
        "dead list",
        "doctor",
        "health --live",
    ],
)
def test_stdout_that_is_full(bundle: Bundle, command: str) -> None:
    """A disk that is full is told as what it is; of messages, how many are enqueued."""
    dead.expire(bundle, 1)
    with FULL.open("w") as full:
        done = bundle.proj(*command.split(), stdout=full)

    assert done.returncode == 74
    *before, last = done.stderr.splitlines()
    assert last == "Error: stdout cannot be written: No space left on device"
    assert not before if "count" not in command else before[-1].startswith("1 of 3 messages are enqueued")


@pytest.mark.parametrize(
    "command", ["enqueue add 1 2 --count 3", "dead show nobody", "health --live", "--nope"]
)
def test_stderr_that_is_full_or_closed(bundle: Bundle, command: str) -> None:
    """Words that nobody can read change neither what is done nor the exit code."""
    expected = bundle.proj(*command.split()).returncode
    with FULL.open("w") as full:
        assert bundle.proj(*command.split(), stderr=full).returncode == expected
    assert bundle.proj(*command.split(), closed={2}).returncode == expected


@pytest.mark.parametrize("closed", [(2,), (), (0, 1, 2)])
def test_worker_whose_streams_take_nothing(bundle: Bundle, closed: tuple[int, ...]) -> None:
    """It works: what it has to say is for people, and what it has to do is not."""
    with FULL.open("w") as full:
        process = fork_server.popen(
            [str(BIN / "celery"), "-A", "proj", "worker", "-c", "1", "--without-mingle"],
            closed=closed,
            cwd=bundle.folder,
            env=bundle.env,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
        )
    with process:
        try:
            done = bundle.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60")
            assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("columns", ["many", "0", "-5", "9" * 30])
def test_columns_that_are_no_number(bundle: Bundle, columns: str) -> None:
    """They are those of a terminal that says nothing."""
    done = bundle.proj("--help", env={"COLUMNS": columns})

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: proj")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_state_folder_of_any_name(bundle: Bundle) -> None:
    """A worker and a reader find the same results, heartbeats and folder, whatever characters that has."""
    state = bundle.folder / "a%20b?c#d e\nf[\udce9"
    bundle.env["PROJ_STATE_DIR"] = str(state)
    bundle.worker().ready()

    done = bundle.proj("enqueue", "add", "1", "2", "--id", "it", "--wait", "--timeout", "60")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert bundle.proj("result", "it").returncode == 0
    assert bundle.proj("health", "--live").returncode == 0
    assert (state / "results.sqlite3").is_file()
    assert [path for path in bundle.folder.iterdir() if path.name.startswith("a")] == [state]


def test_working_folder_that_is_gone(bundle: Bundle) -> None:
    """No program needs it, where the state folder is named from / on."""
    program = """
import os, sys
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
sys.argv = ["proj", "queues", "--json"]
from proj.__main__ import main
main()
"""
    done = bundle.run_python(program)
    assert done.returncode == 0, done.stderr

    bundle.env["PROJ_STATE_DIR"] = "state"
    done = bundle.run_python(program)
    assert done.returncode == 2
    assert "the working folder is not known" in done.stderr


def test_working_folder_that_may_not_be_read(bundle: Bundle, tmp_path: Path) -> None:
    """Whether it holds settings cannot be known: that is told, and no broker is taken by default."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    code = f"""
import json, os
from proj import config, errors
os.chdir({str(hidden)!r})
os.chmod(".", 0)
if os.getuid() == 0:  # which may read all
    os.setuid(65534)
try:
    config.load()
except errors.ConfigError as error:
    print(json.dumps(str(error)))
"""
    said = bundle.python(code)
    assert said.startswith(f"the settings file {hidden}/.env cannot be read: Permission denied (")


def test_home_that_is_not_known(bundle: Bundle) -> None:
    """A folder of somebody who is not there is refused; no folder named ~ is made."""
    done = bundle.proj("broker", "status", "--dir", "~nobody-has-this-name/x")
    assert done.returncode == 2
    assert "the home folder ~nobody-has-this-name is not known" in done.stderr
    assert not (bundle.folder / "~nobody-has-this-name").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--logfile=/dev/null/x.log",), "Error: '/dev/null/x.log' cannot be used: Not a directory"),
        (("--pidfile=/dev/null/x.pid",), "] '/dev/null/x.pid' cannot be used: Not a directory"),
        (("-n", "z" * 300), "Error: a worker cannot be named 'celery@zzz"),
    ],
)
def test_worker_with_an_option_that_cannot_be(bundle: Bundle, options: tuple[str, ...], said: str) -> None:
    """It ends with one line, and no traceback."""
    worker = bundle.worker(*options)

    assert worker.ends() == 2
    assert said in worker.text()
    assert "Traceback" not in worker.text()


def test_beat_whose_pidfile_cannot_be_written(bundle: Bundle) -> None:
    """It ends with one line, and no traceback."""
    done = bundle.celery("beat", "--pidfile=/dev/null/x.pid")

    assert done.returncode == 2
    assert done.stderr == "Error: '/dev/null/x.pid' cannot be used: Not a directory\n"


@pytest.mark.parametrize("url", ["file:///dev/null/x", "mongodb://x"])
def test_result_backend_that_refuses_its_url(bundle: Bundle, url: str) -> None:
    """Whatever Celery's class for it lacks, the line says which setting it is."""
    done = bundle.proj("result", "it", env={"CELERY_RESULT_BACKEND": url})

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: CELERY_RESULT_BACKEND cannot be used: ")
