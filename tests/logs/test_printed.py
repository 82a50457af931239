"""What a task writes to `sys.stdout` and `sys.stderr`, which programs take for files."""

import json
import subprocess

import pytest

from tests.lib import fork_server
from tests.lib.bundle import BIN, Bundle

pytestmark = pytest.mark.used_vhost

TASK = """
    @app.task(name="proj.tasks.writes")
    def writes() -> list:
        import os, subprocess, sys, faulthandler
        print("printed", 1)
        sys.stderr.write("on stderr\\n")
        sys.stdout.writelines(["two ", "parts\\n"])
        print("flushed", flush=True, end="")
        subprocess.run(["echo", "by echo"], stdout=sys.stdout, stderr=sys.stderr, check=True)
        subprocess.run(["sh", "-c", "echo by sh >&2"], stderr=sys.stderr, check=True)
        os.write(sys.stdout.fileno(), b"by number\\n")
        sys.stdout.buffer.write(b"by bytes \\xff\\n")
        faulthandler.dump_traceback_later(600, file=sys.stderr)
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.close()
        print("after close")
        print("no end", end="", file=sys.stderr)
        streams = sys.stdout, sys.stderr
        return [(s.fileno(), s.encoding, s.errors, s.isatty(), s.closed, s.writable()) for s in streams]
"""

LOGGED = ["printed 1", "on stderr", "two parts", "flushed", "after close", "no end"]
PASSED = ["by echo", "by sh", "by number", "by bytes \ufffd"]


@pytest.mark.parametrize(("pool", "form"), [("prefork", "json"), ("threads", "text")])
def test_streams_of_a_task_are_files(bundle: Bundle, pool: str, form: str) -> None:
    """What is written as text is in the log, with the task's id; what goes past it comes out as it is."""
    bundle.add_task(TASK)
    worker = bundle.worker("-P", pool, env={"PROJ_LOG_FORMAT": form, "PYTHONIOENCODING": "utf-8"})
    done = bundle.proj("enqueue", "task", "proj.tasks.writes", "--id", "it", "--wait", "--json")
    assert done.returncode == 0, done.stderr

    result = json.loads(done.stdout)["result"]
    assert [file[0] for file in result] == [1, 2]
    assert {tuple(file[1:2] + file[3:]) for file in result} == {("utf-8", False, False, True)}
    # Logged after the task's last line, even one that has no end.
    worker.says('"succeeded"' if form == "json" else "[it] succeeded")
    lines = worker.text().splitlines()
    if form == "json":
        objects = [json.loads(line) for line in lines if line.startswith("{")]
        logged = [
            each["message"] for each in objects if each.get("task_id") == "it" and each["event"] == "log"
        ]
    else:
        logged = [line.text for line in worker.lines() if line.id == "it" and line.text in LOGGED]
    assert logged == LOGGED
    assert sorted(line for line in lines if line in PASSED) == sorted(PASSED)


def test_worker_without_streams_prints_all_the_same(bundle: Bundle) -> None:
    """One that was started with its output closed logs what is printed to its log file."""
    bundle.add_task("""
        @app.task(name="proj.tasks.says")
        def says() -> None:
            print("said", flush=True)
    """)
    options = ["--loglevel=INFO", "--concurrency=1", "--without-mingle", "--logfile=it.log"]
    with fork_server.popen(
        [str(BIN / "celery"), "-A", "proj", "worker", *options],
        closed={1, 2},
        cwd=bundle.folder,
        env=bundle.env,
        stdin=subprocess.DEVNULL,
    ) as worker:
        try:
            done = bundle.proj("enqueue", "task", "proj.tasks.says", "--id", "it", "--wait")
        finally:
            worker.kill()

    assert done.returncode == 0, done.stderr
    assert "proj.tasks.says[it]: said" in (bundle.folder / "it.log").read_text()
