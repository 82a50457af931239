"""The picture of the documentation: for each row a bar for each contender, as SVG."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.program import ROOT
from benchmarks.rounds import Results

PICTURE: Final = ROOT / "docs/speed.svg"

#: Pixels: of a line, of the names on the left, of the longest bar, and of the whole picture.
_LINE: Final = 18
_NAMES: Final = 210
_LONGEST: Final = 400
_WIDTH: Final = 760

#: Colours that can be read on white and on black.
_STYLE: Final = (
    "text { font: 12px sans-serif; fill: #777 } .title { font-weight: bold } .name { text-anchor: end }"
    " .ours { fill: #2a7de1 } .other { fill: #b0b0b0 } .spread { stroke: #555; stroke-width: 1.5 }"
)


def svg(results: list[Results]) -> str:
    """Of the rows that have something to reach. Each has a scale of its own, from zero to its highest figure.

    A line over a bar is the spread.
    """
    body = []
    top = 0
    for each in (each for each in results if each.row.targets):
        top += _LINE + 6
        better = "more" if each.row.more_is_better else "less"
        title = f"{each.row.title.replace('`', '')}, {each.row.unit} ({better} is better)"
        body.append(f'<text class="title" x="8" y="{top}">{escape(title)}</text>')
        bars = list(_bars(each, top))
        body += bars
        top += _LINE * len(each.summaries)
    height = top + 12
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{_STYLE}</style>", *body, "</svg>", ""]
    )


def _bars(results: Results, top: int) -> Iterator[str]:
    summaries = results.summaries
    scale = _LONGEST / (max(summary.highest for summary in summaries.values()) or 1)
    for number, (name, summary) in enumerate(summaries.items(), 1):
        y = top + number * _LINE
        middle = y - 4
        length = max(1.0, summary.median * scale)
        kind = "ours" if name == results.row.contenders[0] else "other"
        yield f'<text class="name" x="{_NAMES - 6}" y="{y}">{escape(name)}</text>'
        yield f'<rect class="{kind}" x="{_NAMES}" y="{y - 11}" width="{length:.1f}" height="14"/>'
        if summary.lowest != summary.highest:
            ends = [_NAMES + value * scale for value in (summary.lowest, summary.highest)]
            yield f'<path class="spread" d="M{ends[0]:.1f} {middle}H{ends[1]:.1f}"/>'
        shown = f"{report.number(summary.median)}"
        yield f'<text x="{_NAMES + max(length, summary.highest * scale) + 6:.1f}" y="{y}">{shown}</text>'


def write(results: list[Results], path: Path = PICTURE) -> None:
    path.write_text(svg(results))
