"""How a program is measured: what it says and hears, and how it fails."""

import io
from pathlib import Path

import pytest

from benchmarks import protocol
from benchmarks.program import OURS, Process, Program, ProgramFailed


def test_program_answers_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It measures as often as it is asked, and ends with its input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("go 3\ngo 4\n"))

    protocol.serve(lambda count: {"squared": count * count})

    assert capsys.readouterr().out.splitlines() == [
        "ready",
        'result {"squared": 9}',
        'result {"squared": 16}',
    ]


def test_program_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its own last words are in the error, and nothing of it is left."""
    program = Program(OURS, "peers.nobody", tmp_path, {})

    with pytest.raises(
        ProgramFailed, match=r"did not say ready(.|\n)*No module named benchmarks\.peers\.nobody"
    ):
        program.__enter__()

    assert program.popen.returncode


def test_settings_of_others_do_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a broker in the environment does not measure that one."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://elsewhere")
    code = "import os; print([name for name in os.environ if name.startswith('CELERY')])"

    with Process([OURS, "-c", code], tmp_path, {"CELERY_RESULT_BACKEND": "ours"}) as process:
        process.popen.wait()

    assert process.log.read_text() == "['CELERY_RESULT_BACKEND']\n"
