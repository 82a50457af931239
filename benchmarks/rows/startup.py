"""Whole processes: `proj enqueue` and others, beside the mere imports that they need."""

import os
import subprocess
import time
from collections.abc import Iterator
from statistics import median

from benchmarks.broker import Place
from benchmarks.program import OURS as PYTHON
from benchmarks.program import clean_environment
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Stage
from proj.health import heartbeat
from proj.health.heartbeat import Heartbeat

IMPORTS, CELERY = "import what it needs", "import celery"

#: Imports what a process that publishes with Celery needs before it connects.
CODE = "from celery import Celery; Celery().amqp"

#: What `proj enqueue` needs besides. A mere `import pydantic` imports next to nothing of it.
NEEDED = (
    "import celery.app.task, kombu.transport.pyamqp, click;"
    " from pydantic import BaseModel, Field, SecretStr, validate_call"
)

PROJ = str(PYTHON.parent / "proj")

#: By contender, in the order of the row.
COMMANDS: dict[str, list[str]] = {
    OURS: [PROJ, "enqueue", "add", "1", "2"],
    IMPORTS: [str(PYTHON), "-c", f"{CODE}; {NEEDED}"],
    CELERY: [str(PYTHON), "-c", CODE],
    "proj --help": [PROJ, "--help"],
    "proj health --live": [PROJ, "health", "--live"],
    "python -c pass": [str(PYTHON), "-c", "pass"],
}

ROW = Row(
    key="startup",
    title="`proj enqueue add 1 2`, whole process",
    unit="ms",
    contenders=tuple(COMMANDS),
    targets=(Target(IMPORTS, 1.5),),
    note=f"`import celery` is `{CODE}`. What `proj` needs besides is Celery's tasks and transport,"
    " pydantic and click.",
)


def beat(folder: str) -> None:
    """Write a heartbeat for `proj health`, as if this process were a worker."""
    pid, now = os.getpid(), time.monotonic()
    process = heartbeat.identity(pid) or ""
    beat = Heartbeat("w1@host", pid, process, heartbeat.machine(), heartbeat.READY, now, now + 3600)
    heartbeat.write(heartbeat.file_of(folder, beat.worker, pid), beat)


def measure(command: list[str], place: Place) -> float:
    """Milliseconds of a command, from its start to its end."""
    env = clean_environment() | place.env
    start = time.perf_counter()
    subprocess.run(command, env=env, cwd=place.folder, check=True, capture_output=True)
    return 1000 * (time.perf_counter() - start)


def run(stage: Stage) -> Iterator[Sample]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with stage.broker.place("proj") as place:
        state = place.folder / "state"
        state.mkdir()
        beat(str(state))
        for _ in range(stage.size(7, 1)):
            for name, command in COMMANDS.items():
                times[name].append(measure(command, place))
    for name, taken in times.items():
        yield Sample(ROW.key, name, median(taken))


BENCH = Bench("startup", (ROW,), (run,))
