"""Run the benchmarks: python -m benchmarks [--rows delay,get] [--rounds 5] [--short] [--write]."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import environment, page, picture, report, rows
from benchmarks.broker import Broker
from benchmarks.program import PEERS, ROOT, ProgramFailed
from benchmarks.record import Record
from benchmarks.rounds import Results, Sample
from benchmarks.stage import Bench, Stage
from proj.private_node.node import BrokerNode

#: Rounds of a full run.
ROUNDS: Final = 5

FILE: Final = ROOT / "build/bench.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure the project and its peers.")
    names = ", ".join(bench.name for bench in rows.BENCHES)
    parser.add_argument("--rows", metavar="NAMES", help=f"only these, separated by commas, of {names}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each, {ROUNDS} by default")
    parser.add_argument("--short", action="store_true", help="one round of little, to see that all works")
    parser.add_argument("--write", action="store_true", help="write docs/speed.md and its picture")
    given = parser.parse_args(arguments)
    known = {bench.name: bench for bench in rows.BENCHES}
    given.benches = list(known.values())
    if given.rows:
        if unknown := set(given.rows.split(",")) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {names}")
        given.benches = [known[name] for name in known if name in given.rows.split(",")]
    if given.short:
        given.rounds = 1
    if not PEERS.exists():
        parser.error("the peers' environment is missing: run scripts/peers")
    return given


def measure(
    broker: Broker, benches: list[Bench], rounds: int, short: bool, console: Console
) -> Iterator[Sample]:
    """All benchmarks in each round, so that what disturbs one of them for a while disturbs few rounds."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        takes = {bench.name: min(rounds, bench.most_rounds or rounds) for bench in benches}
        task = progress.add_task("", total=sum(len(bench.runners) * takes[bench.name] for bench in benches))
        for number in range(rounds):
            for bench in benches:
                if number >= takes[bench.name]:
                    continue
                for runner in bench.turns(number):
                    progress.update(
                        task, description=f"{bench.name}, round {number + 1} of {takes[bench.name]}"
                    )
                    yield from runner(Stage(broker, number, short))
                    progress.advance(task)


def main() -> None:
    given = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all programs are ended
    console = Console(stderr=True)
    found: dict[str, str] = {}
    measured = {row.key: Results(row) for bench in given.benches for row in bench.rows}
    interrupted = False
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            node = BrokerNode(Path(folder) / "rabbitmq")
            node.start()
            try:
                broker = Broker(node, Path(folder))
                found = environment.versions(broker)
                for sample in measure(broker, given.benches, given.rounds, given.short, console):
                    measured[sample.row].add(sample.contender, sample.value)
            except KeyboardInterrupt:
                interrupted = True  # what was measured until now is shown and kept
            finally:
                node.kill()
    except ProgramFailed as error:
        sys.exit(f"Error: {error}")
    results = [each for each in measured.values() if each.values]
    Console(width=None if sys.stdout.isatty() else 130).print(report.table(results))
    if not results:
        sys.exit(130)
    record = Record(found, results)
    if not given.short:
        record = Record.read(FILE).joined(record) if FILE.exists() else record
        record.write(FILE)
    if interrupted:
        sys.exit(130)
    if given.write:
        page.write(record)
        measured_keys = {each.row.key for each in record.results}
        if all(row.key in measured_keys for bench in rows.BENCHES for row in bench.rows if row.targets):
            picture.write(record.results)  # else it would lack what the page still has


if __name__ == "__main__":
    main()
