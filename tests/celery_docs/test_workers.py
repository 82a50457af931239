"""What Celery's pages about workers and monitoring show: remote control, programs and their options."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.lib import dead, fork_server
from tests.lib.bundle import BIN, GATED_TASK, Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

TASKS = """
    import os
    from celery.worker.control import inspect_command

    @app.task(name="test.pid")
    def pid():
        return os.getpid()

    @inspect_command()
    def answer(state):
        return 42
"""

#: Each verb, its arguments, and what the answer of the worker has among others. The worker executes the task
#: `running` meanwhile.
EXAMPLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Workers: inspect active": ("active", {}, "'id': 'running'"),
    "Workers: inspect active_queues": ("active_queues", {}, "'name': 'proj.tasks'"),
    "Workers: inspect clock": ("clock", {}, "'clock': "),
    "Workers: inspect conf": ("conf", {}, "'task_default_queue': 'proj.tasks'"),
    "Workers: inspect memsample": ("memsample", {}, "MB"),
    "Workers: inspect memdump": ("memdump", {}, "rss (end): "),
    "Workers: inspect objgraph": ("objgraph", {}, "Requires the objgraph library"),
    "Workers: inspect ping": ("ping", {}, "'ok': 'pong'"),
    "Workers: inspect query_task": ("query_task", {"ids": ["running"]}, "'running': ['active', "),
    "Workers: inspect registered": ("registered", {}, "'proj.tasks.add'"),
    "Workers: inspect report": ("report", {}, "software -> celery:5"),
    "Workers: inspect reserved": ("reserved", {}, "[]"),
    "Workers: inspect revoked": ("revoked", {}, "'unwanted'"),
    "Workers: inspect scheduled": ("scheduled", {}, "[]"),
    "Workers: inspect stats": ("stats", {}, "'max-concurrency': 1"),
    "Workers: inspect_command, control_command": ("answer", {}, "42"),
    "Workers: control enable_events, disable_events": ("disable_events", {}, "task events "),
    "Workers: control heartbeat": ("heartbeat", {}, "None"),
    "Workers: control pool_restart": ("pool_restart", {}, "Pool restarts not enabled"),
    "Workers: control election": ("election", {"id": 1, "topic": 2, "action": 3}, "workers elect none"),
    "Workers: control revoke_by_stamped_headers": (
        "revoke_by_stamped_headers",
        {"headers": {"customer": ["4711"]}},
        "flagged as revoked",
    ),
}

_PROGRAM = """
import json
from proj import app
from proj.tasks import add
def ask(command, arguments):
    ((answer,),) = [each.values() for each in app.control.broadcast(
        command, arguments=arguments, destination=[{worker!r}], reply=True, limit=1, timeout={patience}
    )]
    return repr(answer)
app.control.revoke("unwanted", destination=[{worker!r}], reply=True, limit=1, timeout={patience})
answers = [ask(command, arguments) for command, arguments in {commands!r}]
stamped = add.s(1, 2)
stamped.stamp(customer="4711")
stamped.apply_async(task_id="stamped")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("workers")) as bundle:
        bundle.add_task(GATED_TASK)
        bundle.add_task(TASKS)
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    options = ("-n", "w1@%h", "--statedb=revoked", "--max-tasks-per-child=2", "--pidfile=%n.pid")
    return shared.worker(*options, env={"CELERY_TASK_TIME_LIMIT": "60"}).ready()


@pytest.fixture(scope="module")
def answers(shared: Bundle, worker: Worker) -> dict[str, str]:
    """The worker's answers, each by its row; then the task that it executes is terminated."""
    _run_gated(shared, worker, "running")
    commands = [(command, arguments) for command, arguments, _ in EXAMPLES.values()]
    code = _PROGRAM.format(worker=worker.name, patience=PATIENCE, commands=commands)
    found = dict(zip(EXAMPLES, shared.python(code), strict=True))
    assert "OK" in shared.control(worker, "terminate", "SIGTERM", "running")
    return found


def _run_gated(bundle: Bundle, worker: Worker, task_id: str) -> None:
    bundle.enqueue("task", "proj.tasks.gated", json.dumps(str(bundle.folder / "gate")), "--id", task_id)
    worker.started(task_id)


@pytest.mark.parametrize("row", EXAMPLES)
def test_verb(answers: dict[str, str], row: str) -> None:
    """The worker answers as the row of the documentation says."""
    assert EXAMPLES[row][2] in answers[row]


@pytest.mark.celery_docs("Workers: names such as CELERY_TASK_TIME_LIMIT")
def test_name_that_nothing_reads_is_logged(worker: Worker) -> None:
    """Once, as the worker starts."""
    assert worker.text().count("Nothing reads CELERY_TASK_TIME_LIMIT (instead: PROJ_TASK_TIME_LIMIT)") == 1


@pytest.mark.celery_docs("Workers: control terminate, revoke(terminate=True)")
def test_terminated_task(shared: Bundle, answers: dict[str, str], worker: Worker) -> None:
    """Its end is REVOKED, and its message is gone."""
    eventually("it ends", lambda: "REVOKED" in shared.proj("result", "running").stdout)
    assert "Terminating running" in worker.text()
    assert shared.depth("proj.dead") == 0


def test_stamp_that_was_revoked(shared: Bundle, answers: dict[str, str], worker: Worker) -> None:
    """Messages that have it are not executed."""
    worker.says("[stamped] received")
    eventually("it ends", lambda: "REVOKED" in shared.proj("result", "stamped").stdout)
    assert "[stamped] succeeded" not in worker.text()


@pytest.mark.celery_docs("Workers: --max-tasks-per-child")
def test_process_that_has_executed_its_tasks(shared: Bundle, answers: dict[str, str]) -> None:
    """Another takes its place."""
    pids = shared.python(f"""
import json
from proj.tasks import pid
print(json.dumps([pid.delay().get(timeout={PATIENCE}) for _ in range(3)]))
""")
    assert len(set(pids)) == 2


@pytest.mark.celery_docs(
    "Workers: --statedb", "Workers: --max-memory-per-child", "Workers: --purge", "Workers: --pidfile, -n"
)
def test_worker_that_follows(shared: Bundle, worker: Worker, answers: dict[str, str]) -> None:
    """It knows what was revoked, deletes what waits if it has to, and replaces processes that are too big."""
    again = shared.celery("worker", "--pidfile=w1.pid")
    assert (again.returncode, "Pidfile (w1.pid) already exists" in again.stderr) == (73, True)
    assert worker.terminate() == 0
    assert not (shared.folder / "w1.pid").exists()
    shared.enqueue("add", "1", "2", "--id", "purged")

    options = ("--statedb=revoked", "--max-memory-per-child=1", "--purge")
    follower = shared.worker(*options, log="follower.log").ready()
    follower.says("Erased 1 message")
    revoked = shared.celery("inspect", f"--timeout={PATIENCE}", f"--destination={follower.name}", "revoked")
    assert "unwanted" in revoked.stdout
    pids = shared.python(f"""
import json
from proj.tasks import pid
print(json.dumps([pid.delay().get(timeout={PATIENCE}) for _ in range(2)]))
""")
    assert len(set(pids)) == 2
    assert follower.terminate() == 0
    assert "[purged]" not in follower.text()


@pytest.mark.celery_docs("Next Steps: multi", "Workers: -D, --logfile", "Workers: HUP")
def test_workers_in_the_background(shared: Bundle) -> None:
    """`multi` starts and stops detached workers, with their files; SIGHUP starts one anew."""
    files = ("--pidfile=%n.pid", "--logfile=%n.log", "--loglevel=INFO")
    started = shared.celery("multi", "start", "m1", "-A", "proj", "-c1", "--without-mingle", *files)
    assert started.returncode == 0, started.stderr
    file, log = shared.folder / "m1.pid", shared.folder / "m1.log"

    def ready(times: int) -> bool:
        return log.exists() and log.read_text().count(" ready.") == times

    try:
        eventually("it is ready", lambda: ready(1) and file.exists())
        psutil.Process(int(file.read_text())).send_signal(signal.SIGHUP)
        eventually("it is ready again", lambda: ready(2) and file.exists(), seen=log.read_text)
        assert shared.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60").stdout == "3\n"
    finally:
        stopped = shared.celery("multi", "stopwait", "m1", *files)
    assert (stopped.returncode, file.exists()) == (0, False), stopped.stdout


def test_worker_in_the_background_that_is_refused(shared: Bundle) -> None:
    """Nobody sees its stderr: its log file has the line."""
    log = shared.folder / "refused.log"
    _ended(shared, "worker", "-D", "-B", "--logfile=refused.log")
    eventually("it is refused", lambda: log.exists() and "cannot embed a beat" in log.read_text())
    assert log.read_text().count("\n") == 1


def _ended(bundle: Bundle, *command: str) -> str:
    done = bundle.celery(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pool_whose_package_is_missing(shared: Bundle) -> None:
    """Celery looks for it before it loads the application, which would refuse the pool."""
    done = shared.celery("worker", "--pool=eventlet")
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'eventlet'\n")


@pytest.mark.celery_docs("Monitoring: result, report")
def test_commands_about_this_machine(shared: Bundle) -> None:
    """The end of a task, and a report of the configuration without passwords."""
    shared.python("""
from proj import app
app.backend.store_result("stored", 5, "SUCCESS")
app.backend.store_result("failed", ValueError("wrong"), "FAILURE")
print(1)
""")
    assert _ended(shared, "result", "stored") == "5\n"
    failed = shared.celery("result", "failed")
    assert (failed.returncode, "Traceback (most recent call last)" in failed.stderr) == (1, True)
    report = _ended(shared, "report")
    assert "task_default_queue: 'proj.tasks'" in report
    assert "guest:guest" not in report


@pytest.mark.celery_docs("Monitoring: shell")
def test_shell(shared: Bundle) -> None:
    """It has the application and its tasks."""
    typed = shared.folder / "typed"
    typed.write_text("print(add.name, app.main)\n")
    with typed.open() as stdin:
        done = shared.celery("shell", "--python", stdin=stdin)
    assert "proj.tasks.add proj" in done.stdout, done.stderr


@pytest.mark.celery_docs("Monitoring: list bindings")
def test_list_of_bindings(shared: Bundle) -> None:
    """It needs a package that is not maintained, and says what to use instead."""
    done = shared.celery("list", "bindings")
    words = "`celery list` needs the package pyrabbit, which is not maintained"
    assert (done.returncode, done.stderr) == (2, f"Error: {words} (use: rabbitmqctl list_bindings)\n")


def test_purge_without_a_broker(shared: Bundle) -> None:
    """One line, as of `proj`."""
    done = shared.celery("purge", "-f", env={"CELERY_BROKER_URL": shared.url_at(1)})
    assert (done.returncode, done.stdout) == (69, "")
    assert re.fullmatch(r"Error: the broker cannot be used: .*refused \(check AMQP_HOST, .*\)\n", done.stderr)


@pytest.mark.parametrize("command", ["purge -f", "list bindings", "amqp queue.declare x", "events --dump"])
@pytest.mark.parametrize(
    ("changed", "to", "words"),
    [
        ("guest@", "wrong@", "ACCESS_REFUSED - Login was refused"),
        ("/{vhost}", "/none", "vhost none not found"),
    ],
    ids=["password", "vhost"],
)
def test_command_that_the_broker_refuses(
    shared: Bundle, command: str, changed: str, to: str, words: str
) -> None:
    """One line. Celery's purge takes a refused login for a missing queue; its events would try for ever."""
    url = shared.url.replace(changed.format(vhost=shared.vhost), to)
    done = shared.celery(*command.split(), env={"CELERY_BROKER_URL": url})
    assert (done.returncode, done.stdout.count("purged")) == (69, 0)
    *_, last = done.stderr.splitlines()
    if command != "events --dump":  # whose errors Celery words, after a warning of its own
        assert re.fullmatch(r"Error: the broker refuses: .* \(check AMQP_USER, .*\)\n", done.stderr)
    assert last.startswith("Error: ")
    assert words in last


@pytest.mark.used_vhost  # of its own: a worker of the other tests would take what waits
@pytest.mark.celery_docs("Monitoring: events --dump", "Monitoring: status", "Monitoring: purge")
def test_commands_about_workers_and_queues(bundle: Bundle) -> None:
    """Events are printed as they come, workers answer, and a purge asks before it empties work queues."""
    watcher = bundle.folder / "events.log"
    with watcher.open("wb") as output:
        events = fork_server.popen(
            [str(BIN / "celery"), "-A", "proj", "events", "--dump"],
            cwd=bundle.folder,
            env=bundle.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        worker = bundle.worker(log="watched.log").watched()
        assert f"{worker.name}: OK" in _ended(bundle, "status", f"--timeout={PATIENCE}", f"-d{worker.name}")
        bundle.enqueue("add", "1", "2", "--id", "shown")
        eventually(
            "its end is printed", lambda: "task succeeded: proj.tasks.add(shown)" in watcher.read_text()
        )
    finally:
        events.kill()
        events.wait()
    worker.terminate()
    bundle.enqueue("add", "1", "2", "--id", "waiting")
    asked = bundle.celery("purge")
    assert (asked.returncode, "Are you sure" in asked.stdout, bundle.depth("proj.tasks")) == (1, True, 1)
    assert "Purged 1 message from 1 known task queue" in _ended(bundle, "purge", "-f")
    dead.expire(bundle, 1)
    _ended(bundle, "purge", "-f", "-Q", "proj.dead")
    assert bundle.depth("proj.dead") == 0
