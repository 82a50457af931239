"""An hour of faults drawn at random under load: python -m tests.chaos.soak [--minutes N] [--seed N].

One broker, its workers, an ingest and publishers live through all of them. The seed decides the order of the
faults, so that a run can be replayed. Memory and open files are noted over time.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos import brokers, faults, harness, page, program, run
from tests.chaos.faults import Bound, Fault, Plan
from tests.chaos.ledger import Kind
from tests.chaos.row import Row
from tests.chaos.stage import ROOT, WORKERS, Stage
from tests.lib import foreign

#: What one long-lived stage can live through: its programs are ended by none, or come back.
_FAULTS: Final = (
    Fault.CHILD_KILLED,
    Fault.WORKER_KILLED,
    Fault.WORKERS_KILLED,
    Fault.WORKER_STOPPED,
    Fault.ROLLING_DEPLOY,
    Fault.BROKER_KILLED,
    Fault.BROKER_RESTARTED,
    Fault.BROKER_STOPPED,
    Fault.MEMORY_ALARM,
    Fault.DISK_ALARM,
    Fault.CONNECTIONS_CLOSED,
    Fault.QUEUE_KILLED,
    Fault.PUBLISHER_KILLED,
    Fault.POISON,
)

MINUTES: Final = 60.0

#: Messages that are released with each fault, and seconds until the next one.
_MESSAGES: Final = 1000
_QUIET: Final = 20.0

FILE: Final = ROOT / "build/soak.json"

#: About so many lines of the table in the documentation.
_LINES: Final = 12

#: The queue of the foreign messages, and its route.
_QUEUE: Final = "chaos_soak"
_ROUTE: Final = f'[[route]]\nqueue = "{_QUEUE}"\ndecoder = "text"\ntask = "chaos.mark"\n'
_FOREIGN: Final = 50


@dataclass(frozen=True)
class Sample:
    """What the programs of one kind need at one time: MiB of memory, and open files."""

    at: float
    program: str
    memory: float
    files: int


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos.soak", description="Inject faults at random.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long, {MINUTES:g} by default")
    parser.add_argument("--write", action="store_true", help="write what was found into docs/evidence.md")
    parser.add_argument("--seed", type=int, help="that of a run that is to be replayed; else a new one")
    given = parser.parse_args(arguments)
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    return given


def drawn(seed: int) -> Iterator[Fault]:
    """The faults of this seed, without end."""
    source = random.Random(seed)
    while True:
        yield source.choice(_FAULTS)


class Soak:
    """The stage of a run, and what is noted of it."""

    def __init__(self, stage: Stage, seed: int, seconds: float, console: Console) -> None:
        self._stage = stage
        self._seed = seed
        self._began = time.monotonic()
        self._seconds = seconds
        self._console = console
        self.injected: list[tuple[float, str, str]] = []
        self.samples: list[Sample] = []
        self._ingest: foreign.Ingest | None = None

    def live(self) -> Bound:
        """Live through faults until the time is over; how many duplicates they may have caused."""
        stage, plans, most = self._stage, faults.load(), 0
        for _ in range(WORKERS):
            stage.start_worker()
        self._ingest = self._start_ingest()
        for way in ("bulk", "single"):
            stage.load.start(way)
        stage.await_workers()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("", total=self._seconds)
            for fault in drawn(self._seed):
                if (now := time.monotonic() - self._began) > self._seconds:
                    break
                progress.update(bar, completed=now, description=fault.name.lower())
                bit = self._one(plans[fault])
                most += plans[fault].duplicates.most
                self.injected.append((round(now), fault.name.lower(), bit))
                progress.console.print(
                    f"{now:.0f} s: {fault.name.lower()}: {bit}", markup=False, soft_wrap=True
                )
        stage.load.finish()
        assert self._ingest.terminate() == 0, self._ingest.text()[-4000:]
        return Bound(most, "the sum of those of the faults")

    def _one(self, plan: Plan) -> str:
        stage = self._stage
        stage.load.release(_MESSAGES)
        self._publish_foreign()
        with plan.inject(stage) as bit:
            pass
        stage.await_workers()
        stage.workers[:] = [worker for worker in stage.workers if worker.process.poll() is None]
        until = time.monotonic() + _QUIET
        stage.eventually("it is quiet for a while", lambda: time.monotonic() > until)
        stage.progress("the queue is short", lambda: stage.ready() < _MESSAGES)
        self._sample()
        return bit

    def _start_ingest(self) -> foreign.Ingest:
        routes = self._stage.bundle.folder / "routes.toml"
        routes.write_text(_ROUTE)
        self._stage.further_queues.append(_QUEUE)
        with self._stage.channel() as channel:
            channel.queue_declare(_QUEUE, durable=True, auto_delete=False)
        return foreign.start(self._stage.bundle, env={"PROJ_INGEST_ROUTES": str(routes)})

    def _publish_foreign(self) -> None:
        tokens = self._stage.attempt(_FOREIGN)
        foreign.publish(self._stage.bundle, tokens, _QUEUE, delivery_mode=2)
        for token in tokens:
            self._stage.write(Kind.CONFIRMED, token)

    def _sample(self) -> None:
        assert self._ingest is not None
        programs = {
            "worker": [worker.process.pid for worker in self._stage.workers],
            "ingest": [self._ingest.process.pid],
            "broker": [self._stage.node.pid],
        }
        at = round(time.monotonic() - self._began)
        for name, pids in programs.items():
            found = [psutil.Process(pid) for pid in pids]
            memory = max(each.memory_info().rss for each in found) / 2**20
            files = max(each.num_fds() for each in found)
            self.samples.append(Sample(at, name, round(memory, 1), files))


def _table(row: Row, samples: Sequence[Sample]) -> Table:
    shown = Table(
        "", "first", "middle", "last", title="Memory (MiB) and open files, the largest of each program"
    )
    for name in _programs(samples):
        own = [sample for sample in samples if sample.program == name]
        chosen = (own[0], own[len(own) // 2], own[-1])
        shown.add_row(name, *(f"{each.memory:.0f} MiB, {each.files} files" for each in chosen))
    if row.counts:
        shown.add_section()
        for what, number in asdict(row.counts).items():
            shown.add_row(what, "", "", f"{number:,}")
    return shown


def written(row: Row, injected: Sequence[tuple[float, str, str]], samples: Sequence[Sample]) -> str:
    """What a run says in the documentation."""
    kinds = Counter(fault for _, fault, _ in injected)
    counts = row.counts
    found = row.verdict or (
        f"{counts.confirmed:,} messages confirmed, {counts.lost} lost, {counts.unexpected} unexpected,"
        f" {counts.duplicated} executed once more, {counts.recovered} recovered"
        if counts
        else ""
    )
    faults_of_it = ", ".join(f"{fault} {count}" for fault, count in sorted(kinds.items()))
    lines = [
        f"{row.sentence.capitalize()}: **{found}.**",
        "",
        f"{len(injected)} faults: {faults_of_it}.",
        "",
        "| minute | " + " | ".join(f"{name}, MiB | {name}, files" for name in _programs(samples)) + " |",
        "| ---: |" + " ---: |" * 2 * len(_programs(samples)),
    ]
    times = list(dict.fromkeys(sample.at for sample in samples))
    for at in times[:: max(1, len(times) // _LINES)]:
        own = [sample for sample in samples if sample.at == at]
        figures = " | ".join(f"{sample.memory:.0f} | {sample.files}" for sample in own)
        lines.append(f"| {at / 60:.0f} | {figures} |")
    return "\n".join(lines)


def _programs(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.program for sample in samples))


def main() -> None:
    given = parse()
    console = Console(stderr=True)
    console.print(
        f"seed {given.seed}: replay with --seed {given.seed} --minutes {given.minutes:g}", highlight=False
    )
    row = Row("soak", f"faults at random for {given.minutes:g} minutes, with the seed {given.seed}")
    soaks: list[Soak] = []
    with program.alone(console):
        run.check_machine()
        with (
            tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
            brokers.started() as broker,
        ):
            harness.on_stage(row, lambda: broker, Path(folder), partial(_act, given, console, soaks, row))
    samples, injected = (soaks[0].samples, soaks[0].injected) if soaks else ([], [])
    report: dict[str, Any] = row.as_json() | {
        "seed": given.seed,
        "injected": injected,
        "samples": [asdict(sample) for sample in samples],
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(report, indent=1) + "\n")
    Console().print(_table(row, samples))
    if given.write:
        text = page.between_marks(page.PAGE.read_text(), written(row, injected, samples), "soak")
        page.PAGE.write_text(text)
    left = program.left_behind()
    verdict = row.verdict or (left and f"left behind: {', '.join(left)}") or ""
    words = f"Error: {verdict}\n{row.details}" if verdict else f"{len(injected)} faults, nothing lost"
    console.print(f"seed {given.seed}: {words}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(1 if verdict else 0)


def _act(given: argparse.Namespace, console: Console, soaks: list[Soak], row: Row, stage: Stage) -> None:
    began = time.time()
    soak = Soak(stage, given.seed, given.minutes * 60, console)
    soaks.append(soak)
    row.bound = soak.live()
    row.bit = f"{len(soak.injected)} faults"
    harness.settle(stage, row, began, time.time())


if __name__ == "__main__":
    main()
