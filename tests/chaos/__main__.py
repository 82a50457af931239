"""Inject faults under load, and check what became of each message: python -m tests.chaos [--write]."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from proj.errors import ExitCode, ProjError
from tests.chaos import brokers, faults, harness, report
from tests.chaos.brokers import Broker
from tests.chaos.faults import Plan
from tests.chaos.row import Row
from tests.chaos.stage import ROOT

#: Messages of one fault, unless its plan has another share.
MESSAGES: Final = 4500

#: What every run writes.
FILE: Final = ROOT / "build/evidence.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description="Inject faults under load.")
    plans = {fault.name.lower(): plan for fault, plan in faults.load().items()}
    parser.add_argument("--faults", metavar="NAMES", help=f"only these, of {', '.join(plans)}")
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"of a fault, {MESSAGES} by default")
    parser.add_argument("--broker", metavar="URL", help="one of your own; faults of the broker are left out")
    given = parser.parse_args(arguments)
    given.plans = list(plans.values())
    if given.faults is not None:
        wanted = [name for name in given.faults.split(",") if name]
        if unknown := set(wanted) - set(plans):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(plans)}")
        given.plans = [plans[name] for name in wanted]
    return given


class Brokers:
    """Nodes that faults share, as far as they can."""

    def __init__(self, elsewhere: str | None) -> None:
        self._elsewhere = elsewhere

    def groups(self, plans: Sequence[Plan]) -> Iterator[tuple[Broker, list[Plan]]]:
        """Plans that can share a broker, with it; the broker ends with the next group."""
        keys = dict.fromkeys((plan.nodes, plan.config) for plan in plans)
        for nodes, config in keys:
            with self._broker(nodes, config) as broker:
                yield broker, [plan for plan in plans if (plan.nodes, plan.config) == (nodes, config)]

    @contextmanager
    def _broker(self, nodes: int, config: str) -> Iterator[Broker]:
        if self._elsewhere:
            yield brokers.elsewhere(self._elsewhere)
        else:
            with brokers.started(nodes, config) as broker:
                yield broker


def run(given: argparse.Namespace, folder: Path, done: Callable[[Row], None]) -> Iterator[Row]:
    for broker, plans in Brokers(given.broker).groups(given.plans):
        for plan in plans:
            place = folder / f"{plan.fault.name.lower()}-{time.time_ns()}"
            yield harness.run(plan, broker, place, int(given.messages * plan.share))


def main() -> None:
    given = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all programs are ended
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    rows: list[Row] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
            Progress(*columns, console=console) as progress,
        ):
            task = progress.add_task("", total=len(given.plans))
            for row in run(given, Path(folder), rows.append):
                rows.append(row)
                progress.console.print(
                    f"{row.fault}: {row.verdict or row.skipped or row.bit} ({row.seconds:.0f} s)"
                )
                if row.details:
                    progress.console.print(row.details, markup=False, highlight=False)
                progress.update(task, advance=1, description=row.fault)
    except ProjError as error:
        console.print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("Error: interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    Console(width=None if sys.stdout.isatty() else 180).print(report.table(rows, []))
    report.write(FILE, report.as_json({}, rows, []))
    sys.exit(1 if any(row.verdict for row in rows) else 0)


if __name__ == "__main__":
    main()
