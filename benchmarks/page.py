"""The page of the documentation: a run writes what stands between two marks, all else is written by hand."""

import re
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.program import ROOT
from benchmarks.record import Record
from benchmarks.rows import BENCHES

PAGE: Final = ROOT / "docs/speed.md"

BEGIN: Final = "<!-- Written by `make bench`: -->"
END: Final = "<!-- End of what `make bench` writes. -->"


def between_marks(text: str, written: str) -> str:
    """The text with this between its marks. Raises `ValueError` for a text without them."""
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if parts[1::2] != [BEGIN, END]:
        raise ValueError(f"expected {BEGIN} and {END}, once each and in this order")
    return f"{parts[0]}{BEGIN}\n{written}\n{END}{parts[4]}"


def written(record: Record, before: str = "") -> str:
    """What a run says. Rows that it has not measured stay as they were `before`, with the same versions."""
    on = ", on: " + ", ".join(f"{name} {version}" for name, version in record.versions.items())
    rounds = [len(values) for each in record.results for values in each.values.values()]
    if on in before:
        rounds += map(int, re.findall(r"in up to (\d+) rounds, on: ", before))
    else:
        before = ""
    measured = {each.row.title: each for each in record.results}
    known = [row.title for bench in BENCHES for row in bench.rows]
    table, notes = report.markdown([]).splitlines(), []
    head = len(table)
    for title in dict.fromkeys([*known, *measured]):
        if result := measured.get(title):
            table += report.markdown([result]).splitlines()[head:]
            notes += [f"- {title}: {result.row.note}"] if result.row.note else []
        else:
            begin = re.escape(title)
            table += _lines(rf"\| \*\*{begin}\*\*, .*\n(?:\|  \|.*\n)*", before)
            notes += _lines(rf"- {begin}: .*\n", before)
    return "\n".join(
        [
            "![Each contender's median beside ours](speed.svg)",
            "",
            f"Measured in up to {max(rounds)} rounds{on}.",
            "",
            *table,
            "",
            *notes,
        ]
    )


def _lines(pattern: str, text: str) -> list[str]:
    """The lines of the text that the pattern matches from the beginning of one."""
    found = re.search(rf"^{pattern}", text, re.MULTILINE)
    return found[0].splitlines() if found else []


def write(record: Record, path: Path = PAGE) -> None:
    text = path.read_text()
    path.write_text(between_marks(text, written(record, text)))
