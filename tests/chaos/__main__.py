"""Inject faults under load, and check what became of each message: python -m tests.chaos [--write]."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import environment, faults, page, program, report, run
from tests.chaos.controls import Control
from tests.chaos.faults import Fault
from tests.chaos.row import Row
from tests.chaos.stage import ROOT

T = TypeVar("T")

#: Messages of one fault, unless its plan has another share.
MESSAGES: Final = 4000

#: What a short run consists of: a worker, a broker, a network, a store; and what must lose.
SHORT: Final = (
    Fault.WORKER_KILLED,
    Fault.BROKER_KILLED,
    Fault.BLACK_HOLE,
    Fault.STORE_GONE,
    Fault.LEADER_KILLED,
)
SHORT_CONTROLS: Final = (Control.EARLY_ACK,)
SHORT_MESSAGES: Final = 500

#: What every run writes.
FILE: Final = ROOT / "build/evidence.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description="Inject faults under load.")
    plans = {fault.name.lower(): plan for fault, plan in faults.load().items()}
    known = {control.name.lower(): control for control in Control}
    parser.add_argument("--faults", metavar="NAMES", help=f"only these, of {', '.join(plans)}")
    parser.add_argument("--controls", metavar="NAMES", help=f"only these, of {', '.join(known)}")
    parser.add_argument("--messages", type=int, help=f"of a fault, {MESSAGES} by default")
    parser.add_argument(
        "--broker", metavar="URL", help="one of your own; what needs a private node is skipped"
    )
    parser.add_argument("--short", action="store_true", help="a few faults and a control, with few messages")
    parser.add_argument("--write", action="store_true", help="write docs/evidence.md and its picture")
    given = parser.parse_args(arguments)
    short = [plan for plan in plans.values() if plan.fault in SHORT]
    given.plans = _chosen(parser, plans, given.faults, short if given.short else plans.values())
    given.controls = _chosen(parser, known, given.controls, SHORT_CONTROLS if given.short else Control)
    given.messages = given.messages or (SHORT_MESSAGES if given.short else MESSAGES)
    return given


def _chosen(
    parser: argparse.ArgumentParser, known: dict[str, T], names: str | None, usual: Iterable[T]
) -> list[T]:
    """Those of these names; the usual ones without any."""
    if names is None:
        return list(usual)
    wanted = [name for name in names.split(",") if name]
    if unknown := set(wanted) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _shown(wanted: run.Wanted, console: Console) -> list[Row]:
    """Run, with a progress bar and a line for each row."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=wanted.length)
        for row in run.rows(wanted, Path(folder)):
            rows.append(row)
            line = f"{row.fault}: {row.verdict or row.skipped or row.bit} ({row.seconds:.0f} s)"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if row.details:
                progress.console.print(row.details, markup=False, highlight=False, soft_wrap=True)
            progress.update(task, advance=1, description=row.fault)
    return rows


def main() -> None:
    given = parse()
    console = Console(stderr=True)
    began = time.monotonic()
    wanted = run.Wanted(given.plans, given.controls, given.messages, given.broker)
    with program.alone(console):
        run.check_machine()
        rows = _shown(wanted, console)
    injected, control_rows = ([row for row in rows if row.control is control] for control in (False, True))
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - began),
        "machine": environment.machine(),
        "versions": environment.versions(),
    }
    Console(width=None if sys.stdout.isatty() else 180).print(report.table(injected, control_rows))
    evidence = report.as_json(facts, injected, control_rows)
    report.write(FILE, evidence)
    console.print(f"wrote {FILE.relative_to(ROOT)}", highlight=False)
    if given.write:
        report.write(page.JSON, evidence)
        page.write(facts, injected, control_rows)
    if left := program.left_behind():
        console.print(f"Error: left behind: {', '.join(left)}", highlight=False)
    sys.exit(1 if left or any(row.verdict for row in rows) else 0)


if __name__ == "__main__":
    main()
