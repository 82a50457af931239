"""What a run says of a fault: its verdict, its pause, and the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import faults, page, picture, report
from tests.chaos.checker import Counts
from tests.chaos.faults import Bound, Fault
from tests.chaos.ledger import Fact, Kind
from tests.chaos.row import Row, Timeline, longest_pause
from tests.chaos.soak import Sample, drawn, written

CLEAN = Counts(
    attempted=3,
    confirmed=3,
    refused=0,
    cut=0,
    ok=2,
    executed=2,
    dead=1,
    lost=0,
    unexpected=0,
    duplicated=1,
    recovered=0,
    contradictory=0,
)

ROW = Row("worker_killed", "SIGKILL of a worker", CLEAN, bit="it is gone", bound=Bound(1, "one a slot"))

FACTS = {"date": "2026-11-29", "seconds": 90, "machine": "2 CPUs", "versions": {"Python": "3.11"}}


def _executed(*times: float) -> dict[str, list[Fact]]:
    return {"tasks": [Fact(Kind.EXECUTED, str(at), at, 1, 1) for at in times]}


def test_every_fault_can_be_injected() -> None:
    """The enum and what is registered are the same; each has a sentence, and says why it may duplicate."""
    plans = faults.load()

    assert list(plans) == list(Fault)
    assert all(plan.duplicates.why for plan in plans.values())
    assert len({fault.value for fault in Fault}) == len(Fault) >= 20


def test_clean_row_has_no_verdict() -> None:
    """As long as its duplicates are within their bound."""
    assert ROW.verdict == ""
    assert replace(ROW, bound=Bound(0, "none")).verdict == "too many duplicates: 1"


@pytest.mark.parametrize("what", ["lost", "unexpected", "contradictory"])
def test_each_of_what_must_be_zero_is_a_verdict(what: str) -> None:
    assert replace(ROW, counts=replace(CLEAN, **{what: 2})).verdict == f"{what}: 2"


def test_control_that_loses_nothing_is_blind() -> None:
    """And one that loses is as it should be."""
    control = replace(ROW, control=True)

    assert "blind" in control.verdict
    assert replace(control, counts=replace(CLEAN, lost=1)).verdict == ""


def test_fault_that_did_not_bite_is_a_verdict() -> None:
    """A row without counts is no success, unless it was skipped."""
    assert Row("x", "X").verdict
    assert Row("x", "X", CLEAN, problem="AssertionError: it did not bite").verdict
    assert Row("x", "X", skipped="no RabbitMQ").verdict == ""


def test_pause_is_the_longest_time_without_an_execution() -> None:
    """From the fault on; what came before it does not count."""
    assert longest_pause(_executed(1, 9, 10, 12.5, 13), 9.5) == 2.5
    assert longest_pause(_executed(1, 2), 9.5) == 0


def test_timeline_counts_by_step() -> None:
    """From the first execution on."""
    assert Timeline.of(_executed(10, 10.1, 10.9, 12), 10.5, 11) == Timeline([2, 1, 0, 0, 1], 0.5, 1)


def test_page_keeps_what_is_written_by_hand() -> None:
    """A run writes between its marks."""
    row = replace(ROW, timeline=Timeline([2, 1], 0.5, 1))
    lost = replace(ROW, control=True, counts=replace(CLEAN, lost=1))
    begin, end = page.BEGIN.format("chaos"), page.END.format("chaos")
    text = page.between_marks(f"before\n{begin}\nold\n{end}\nafter", page.written(FACTS, [row], [lost]))

    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "old" not in text
    assert "**3 messages confirmed, 0 lost, 0 unexpected.**" in text
    assert picture.svg([row]).count("<polyline") == 1
    with pytest.raises(ValueError, match="once each"):
        page.between_marks("no marks", "")
    for program in ("chaos", "soak"):
        assert page.between_marks(page.PAGE.read_text(), "new", program).count("\nnew\n") == 1


def test_evidence_as_json_has_a_flat_row_for_each(tmp_path: Path) -> None:
    """With what a reader asks for first."""
    report.write(tmp_path / "evidence.json", report.as_json(FACTS, [ROW], [replace(ROW, control=True)]))

    evidence = json.loads((tmp_path / "evidence.json").read_text())
    wanted = {"fault", "confirmed", "executed", "dead", "lost", "unexpected", "duplicated", "recovered"}
    assert wanted | {"pause_s", "bit"} <= evidence["faults"][0].keys()
    assert evidence["controls"][0]["verdict"]


def test_seed_of_a_soak_decides_its_faults() -> None:
    """The same seed draws the same ones, another one others."""
    first, again, other = ([next(source) for _ in range(20)] for source in map(drawn, (1, 1, 2)))

    assert first == again != other


def test_soak_writes_memory_and_files_over_time() -> None:
    """A line for each time, with the figures of each program."""
    samples = [Sample(at, name, 91.4, 26) for at in (60, 120) for name in ("worker", "broker")]
    text = written(replace(ROW, sentence="faults, seed 7"), [(1.0, "poison", "3 are dead")], samples)

    assert "Faults, seed 7: **3 messages confirmed, 0 lost" in text
    assert text.endswith("| 1 | 91 | 26 | 91 | 26 |\n| 2 | 91 | 26 | 91 | 26 |")
