"""Memory: of `proj enqueue batch` by the length of its file, and of a worker by what it has executed."""

import os
import subprocess
import time
from collections.abc import Iterator

from benchmarks import worker
from benchmarks.program import OURS as PYTHON
from benchmarks.program import clean_environment
from benchmarks.rounds import Row, Sample, Target
from benchmarks.stage import Bench, Stage
from proj.worker import ageing

FEW_LINES, MANY_LINES = "1,000 lines", "100,000 lines"
FEW_TASKS, MANY_TASKS = "after 10,000 tasks", "after 100,000 tasks"

BATCH = Row(
    key="memory-batch",
    title="memory of `proj enqueue batch`",
    unit="MB",
    contenders=(MANY_LINES, FEW_LINES),
    targets=(Target(FEW_LINES, 20, difference=True),),
    note="The most that the process had at any time.",
)
WORKER = Row(
    key="memory-worker",
    title="memory of a worker with two processes",
    unit="MB",
    contenders=(MANY_TASKS, FEW_TASKS),
    targets=(Target(FEW_TASKS, 1.05),),
    note="The main process and both that execute tasks: what they share counts once.",
)


def batch(stage: Stage) -> Iterator[Sample]:
    for name, count in ((FEW_LINES, 1000), (MANY_LINES, stage.size(100_000, 2000))):
        with stage.broker.place("proj") as place:
            file = place.folder / "lines.jsonl"
            file.write_text('{"task": "proj.tasks.add", "args": [2, 3]}\n' * count)
            process = subprocess.Popen(
                [PYTHON.parent / "proj", "enqueue", "batch", file],
                cwd=place.folder,
                env=clean_environment() | place.env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, f"proj enqueue batch ended with {process.returncode}"
            yield Sample(BATCH.key, name, used.ru_maxrss / 1024)


def tasks(stage: Stage) -> Iterator[Sample]:
    kind = worker.OURS
    few, many = stage.size(10_000, 200), stage.size(100_000, 400)
    with stage.broker.place("proj") as place:
        file = place.folder / "marks"
        mark = worker.message("bench.mark", str(file))

        def fill(count: int) -> None:
            # Each with an id of its own: a worker remembers some.
            worker.fill(place, kind, (worker.message("bench.add", 2, 3) for _ in range(count)))
            worker.fill(place, kind, [mark])

        fill(few)
        with worker.worker(place, kind) as process:
            # The first look for old results imports what it needs, once, and whatever the number of tasks is.
            has_looked = time.monotonic() + stage.size(int(ageing.INTERVAL) + 5, 0)
            worker.marks(file, 1, process)
            time.sleep(max(0, has_looked - time.monotonic()))
            yield Sample(WORKER.key, FEW_TASKS, worker.memory(process))
            fill(many - few)
            worker.marks(file, 2, process)
            yield Sample(WORKER.key, MANY_TASKS, worker.memory(process))


BENCH = Bench("memory", (WORKER, BATCH), (tasks, batch), most_rounds=1)
