"""The page of the documentation: a run writes what stands between two marks, all else is written by hand."""

import re
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.program import ROOT
from benchmarks.record import Record

PAGE: Final = ROOT / "docs/speed.md"

BEGIN: Final = "<!-- Written by `make bench`: -->"
END: Final = "<!-- End of what `make bench` writes. -->"


def between_marks(text: str, written: str) -> str:
    """The text with this between its marks. Raises `ValueError` for a text without them."""
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if parts[1::2] != [BEGIN, END]:
        raise ValueError(f"expected {BEGIN} and {END}, once each and in this order")
    return f"{parts[0]}{BEGIN}\n{written}\n{END}{parts[4]}"


def written(record: Record) -> str:
    """What a run says."""
    on = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    notes = [f"- {each.row.title}: {each.row.note}" for each in record.results if each.row.note]
    most = max(len(values) for each in record.results for values in each.values.values())
    return "\n".join(
        [
            "![Each contender's median beside ours](speed.svg)",
            "",
            f"Measured in up to {most} rounds, on: {on}.",
            "",
            report.markdown(record.results),
            "",
            *notes,
        ]
    )


def write(record: Record, path: Path = PAGE) -> None:
    path.write_text(between_marks(path.read_text(), written(record)))
