"""The page of the documentation: a run writes what stands between two marks, all else is written by hand."""

import re
from collections.abc import Sequence
from typing import Any, Final

from tests.chaos import picture, report
from tests.chaos.row import Row
from tests.chaos.stage import ROOT

PAGE: Final = ROOT / "docs/evidence.md"
PICTURE: Final = ROOT / "docs/evidence.svg"
JSON: Final = ROOT / "docs/evidence.json"

#: What stands before and after what a program of that name writes.
BEGIN: Final = "<!-- Written by `make {}`: -->"
END: Final = "<!-- End of what `make {}` writes. -->"


def between_marks(text: str, written: str, program: str = "chaos") -> str:
    """The text with this between the program's marks. Raises `ValueError` for a text without them."""
    begin, end = BEGIN.format(program), END.format(program)
    parts = re.split(f"({re.escape(begin)}|{re.escape(end)})", text)
    if parts[1::2] != [begin, end]:
        raise ValueError(f"expected {begin} and {end}, once each and in this order")
    return f"{parts[0]}{begin}\n{written}\n{end}{parts[4]}"


_FIGURES: Final = """\
| fault | confirmed | executed | dead | lost | unexpected | duplicates (bound) | recovered | pause |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""

_PROOFS: Final = """
![Tasks executed over time through each fault; the fault is shaded](evidence.svg)

### What proved each fault, and why there may be duplicates

| fault | it happened: | duplicates |
| --- | --- | --- |"""

_CONTROLS: Final = """
### Controls

Each of these must lose messages, by the same ledgers and the same checker; or else the run fails as blind.

| control | confirmed | executed | lost | it happened: |
| --- | ---: | ---: | ---: | --- |"""


def written(facts: dict[str, Any], faults: Sequence[Row], controls: Sequence[Row]) -> str:
    """What a run says."""
    totals = {name: f"{number:,}" for name, number in report.totals(faults).items()}
    on = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    minutes = facts["seconds"] / 60
    return "\n".join(
        [
            f"**{totals['confirmed']} messages confirmed, {totals['lost']} lost, {totals['unexpected']}"
            " unexpected.**",
            f"{totals['executed']} messages were executed, with {totals['duplicated']} repetitions;"
            f" {totals['dead']} are dead letters. The outcome of some publishes was unknown:"
            f" {totals['recovered']} of these messages had arrived.",
            "",
            f"{len(faults)} faults and {len(controls)} controls in {minutes:.0f} minutes, on {facts['date']}."
            f" Machine: {facts['machine']}. Versions: {on}.",
            "",
            _FIGURES,
            *map(_figures, faults),
            _PROOFS,
            *(f"| {row.sentence} | {row.skipped or row.bit} | {row.bound.why} |" for row in faults),
            _CONTROLS,
            *map(_control, controls),
        ]
    )


def _figures(row: Row) -> str:
    if row.counts is None:
        return f"| {row.sentence} | | | | | | | | not run |"
    counts = row.counts
    figures = (counts.confirmed, counts.executed, counts.dead, counts.lost, counts.unexpected)
    shown = " | ".join(f"{figure:,}" for figure in figures)
    duplicates = f"{counts.duplicated} ({row.bound.most})"
    return f"| {row.sentence} | {shown} | {duplicates} | {counts.recovered} | {row.pause_s:.1f} s |"


def _control(row: Row) -> str:
    if row.counts is None:
        return f"| {row.sentence} | | | | {row.skipped or row.problem} |"
    counts = row.counts
    return f"| {row.sentence} | {counts.confirmed} | {counts.executed} | **{counts.lost}** | {row.bit} |"


def write(facts: dict[str, Any], faults: Sequence[Row], controls: Sequence[Row]) -> None:
    PAGE.write_text(between_marks(PAGE.read_text(), written(facts, faults, controls)))
    PICTURE.write_text(picture.svg(faults))
