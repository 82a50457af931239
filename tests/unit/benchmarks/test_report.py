"""How the results of a benchmark are shown and kept."""

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks import page, picture, report
from benchmarks.page import BEGIN, END
from benchmarks.record import Record
from benchmarks.rounds import Results, Row, Target
from benchmarks.rows import BENCHES

ROW = Row(
    "delay",
    "`.delay()` <confirmed>",
    "messages/s",
    ("proj", "pika", "celery"),
    (Target("pika", 0.85, at_least=True), Target("pika", 0.4, at_least=True, goal=True)),
    note="A loop.",
)
RESULTS = Results(
    ROW, {"proj": [500.0, 1000.0, 1500.0], "pika": [2000.0, 2000.0, 2000.0], "celery": [250.0, 250.0, 250.0]}
)


def test_row_that_is_not_reached_is_named() -> None:
    """By how much, too."""
    cells = list(report.lines(RESULTS))

    assert cells[0] == ("proj", "1,000", "500–1,500", "")  # noqa: RUF001  from to
    assert cells[1] == (
        "pika",
        "2,000",
        "",
        "0.50 × (to reach: at least 0.85; NOT REACHED); 0.50 × (goal: at least 0.4)",  # noqa: RUF001
    )
    assert cells[2] == ("celery", "250", "", "4.00 ×")  # noqa: RUF001


def test_terminal_and_page_have_the_same_figures() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(report.table([RESULTS]))
    shown = console.export_text()

    for figure in ("1,000", "500–1,500", "0.50 ×"):  # noqa: RUF001
        assert figure in shown
        assert figure in report.markdown([RESULTS])


def test_run_writes_between_the_marks_only(tmp_path: Path) -> None:
    """What people have written around them stays."""
    path = tmp_path / "speed.md"
    path.write_text(f"# Speed\n\nBy hand.\n\n{BEGIN}\nold\n{END}\n\nBy hand, too.\n")

    page.write(Record({"Python": "3.11"}, [RESULTS]), path)

    text = path.read_text()
    assert text.startswith(f"# Speed\n\nBy hand.\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nBy hand, too.\n")
    assert "old" not in text
    assert "Python 3.11" in text
    assert "A loop." in text


def test_rows_that_were_not_measured_stay_on_the_page(tmp_path: Path) -> None:
    """In the order of all rows, with their notes, and only beside figures of the same releases."""
    first, second = next(bench.rows[0] for bench in BENCHES if bench.rows[0].note), BENCHES[-1].rows[0]
    path = tmp_path / "page.md"
    path.write_text(f"{BEGIN}\n{END}\n")
    old = Results(first, {name: [1.0, 2.0] for name in first.contenders})
    page.write(Record({"Python": "3.11"}, [old]), path)
    before = path.read_text().splitlines()

    page.write(Record({"Python": "3.11"}, [Results(second, {second.contenders[0]: [4.0]})]), path)
    text = path.read_text()
    kept = [line for line in before if line.startswith(("| **", "|  |", "- "))]
    assert len(kept) == len(first.contenders) + 1
    assert [line for line in text.splitlines() if line in kept] == kept
    assert text.index(first.title) < text.index(second.title)
    assert "in up to 2 rounds" in text

    again = Record({"Python": "3.11"}, [Results(second, {second.contenders[0]: [5.0]})])
    page.write(again, path)
    assert path.read_text().count(f"**{second.title}**") == 1

    page.write(Record({"Python": "3.12"}, again.results), path)
    assert first.title not in path.read_text()


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_page_without_its_marks_is_refused(text: str) -> None:
    """Nothing that was written by hand is overwritten."""
    with pytest.raises(ValueError, match="once each and in this order"):
        page.between_marks(text, "new")


def test_documentation_has_the_marks() -> None:
    """Else a long run would end without its page."""
    page.between_marks(page.PAGE.read_text(), "")


def test_picture_is_a_picture() -> None:
    """With a bar for each contender, ours in its own colour; what XML would take for markup is escaped."""
    found = ElementTree.fromstring(picture.svg([RESULTS]))

    bars = [each.get("class") for each in found.iter() if each.tag.endswith("rect")]
    assert bars == ["ours", "other", "other"]
    assert ".delay() <confirmed>" in "".join(found.itertext())


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Rows that no longer exist are left out."""
    row = BENCHES[0].rows[0]
    kept, gone = Results(row, {"proj": [1.0]}), Results(Row("gone", "", "", ("proj",)), {"proj": [1.0]})

    Record({"Python": "3.11"}, [kept, gone]).write(tmp_path / "bench.json")

    assert Record.read(tmp_path / "bench.json") == Record({"Python": "3.11"}, [kept])


def test_rows_of_other_versions_are_not_kept() -> None:
    """Figures stand side by side only if they were measured with the same releases."""
    row, other = BENCHES[0].rows[0], BENCHES[1].rows[0]
    old = Record({"Python": "3.11"}, [Results(other, {"proj": [1.0]})])
    new = Record({"Python": "3.11"}, [Results(row, {"proj": [2.0]})])

    assert [each.row.key for each in old.joined(new).results] == [row.key, other.key]
    newest = Record({"Python": "3.12"}, new.results)
    assert old.joined(newest) == newest


def test_keys_and_targets_of_all_rows_are_right() -> None:
    """A target that names nobody would never be missed."""
    rows = [row for bench in BENCHES for row in bench.rows]

    assert len({row.key for row in rows}) == len(rows)
    assert {target.against for row in rows for target in row.targets} <= {
        contender for row in rows for contender in row.contenders
    }
