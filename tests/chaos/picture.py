"""The picture of the documentation: tasks executed over time through each fault, as SVG."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from tests.chaos.row import Row, Timeline

#: Pixels: of a row with its title, of its line alone, of the line's length, and of the whole picture.
_ROW: Final = 64
_HEIGHT: Final = 36
_LENGTH: Final = 620
_LEFT: Final = 8
_WIDTH: Final = 760

#: Colours that can be read on white and on black.
_STYLE: Final = (
    "text { font: 12px sans-serif; fill: #777 } .title { font-weight: bold } .line { fill: none;"
    " stroke: #2a7de1; stroke-width: 1.5 } .fault { fill: #d9534f; opacity: .25 }"
    " .base { stroke: #999; stroke-width: .5 }"
)


def svg(rows: Sequence[Row]) -> str:
    """A line for each fault, from zero to its own highest figure; the time of the fault is shaded."""
    body: list[str] = []
    top = 0
    for row in rows:
        if row.timeline is not None:
            body += _row(row.sentence, row.timeline, top)
            top += _ROW
    size = f'width="{_WIDTH}" height="{top + 8}" viewBox="0 0 {_WIDTH} {top + 8}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{_STYLE}</style>", *body, "</svg>", ""]
    )


def _row(title: str, timeline: Timeline, top: int) -> Iterator[str]:
    most = max(timeline.executed, default=0) or 1
    seconds = len(timeline.executed) * timeline.step or 1
    across, base = _LENGTH / seconds, top + 20 + _HEIGHT
    width = max(2.0, (timeline.healed - timeline.began) * across)
    points = " ".join(
        f"{_LEFT + (number + 0.5) * timeline.step * across:.1f},{base - count / most * _HEIGHT:.1f}"
        for number, count in enumerate(timeline.executed)
    )
    began = _LEFT + timeline.began * across
    yield f'<text class="title" x="{_LEFT}" y="{top + 14}">{escape(title)}</text>'
    yield f'<rect class="fault" x="{began:.1f}" y="{base - _HEIGHT}" width="{width:.1f}" height="{_HEIGHT}"/>'
    yield f'<path class="base" d="M{_LEFT} {base}H{_LEFT + _LENGTH}"/>'
    yield f'<polyline class="line" points="{points}"/>'
    for number, words in enumerate((f"{most / timeline.step:,.0f}/s", f"{seconds:.0f} s")):
        yield f'<text x="{_LEFT + _LENGTH + 8}" y="{base - _HEIGHT + 10 + number * 20}">{words}</text>'
