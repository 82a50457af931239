"""The rows of a run, on a terminal and as a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from tests.chaos.row import Row

_COLUMNS: Final = ("confirmed", "executed", "dead", "lost", "unexpected", "duplicated", "recovered")


def totals(rows: Sequence[Row]) -> dict[str, int]:
    return {name: sum(getattr(row.counts, name) for row in rows if row.counts) for name in _COLUMNS}


def cells(row: Row) -> list[str]:
    """The figures of a row, in the order of the columns."""
    return [f"{getattr(row.counts, name):,}" if row.counts else "-" for name in _COLUMNS]


def table(faults: Sequence[Row], controls: Sequence[Row]) -> Table:
    """For the terminal."""
    shown = Table("", *_COLUMNS, "pause", "", title="Faults under load, and controls that must lose")
    for column in shown.columns[1:-1]:
        column.justify = "right"
    for rows in filter(None, (faults, controls)):
        for row in rows:
            words = (row.skipped and f"skipped: {row.skipped}") or row.verdict or row.bit
            style = "bold red" if row.verdict else "dim" if row.skipped else None
            shown.add_row(row.fault, *cells(row), f"{row.pause_s:.1f} s", words, style=style)
        shown.add_section()
    shown.add_row("all faults", *(f"{number:,}" for number in totals(faults).values()), "", "", style="bold")
    return shown


def as_json(facts: dict[str, Any], faults: Sequence[Row], controls: Sequence[Row]) -> dict[str, Any]:
    return facts | {
        "faults": [row.as_json() for row in faults],
        "controls": [row.as_json() for row in controls],
        "totals": totals(faults),
    }


def write(path: Path, evidence: dict[str, Any]) -> None:
    """As JSON, a line for each row."""
    path.parent.mkdir(exist_ok=True)
    parts = []
    for name, value in evidence.items():
        rows = isinstance(value, list) and value
        text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if rows else json.dumps(value)
        parts.append(f"{json.dumps(name)}: {text}")
    path.write_text("{" + ",\n".join(parts) + "}\n")
