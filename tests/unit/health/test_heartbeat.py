"""What the probe makes of heartbeats: whose they are, and whether they are in time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proj import config, state_dir
from proj.errors import ConfigError
from proj.health import heartbeat
from proj.health.heartbeat import READY, Heartbeat


def _beat(**changes: object) -> Heartbeat:
    """One of this process, which beat just now."""
    pid, now = os.getpid(), time.monotonic()
    beat = Heartbeat(
        "w1@host", pid, heartbeat.identity(pid) or "", heartbeat.machine(), READY, now, now + 600
    )
    return beat._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time, which does not go on between a beat and its judgement."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    return now


def _judge(*beats: Heartbeat, ready: bool = False, worker: str | None = None) -> heartbeat.Verdict:
    return heartbeat.judge(list(beats), ready=ready, worker=worker, state_dir="/state")


def test_promise_decides(standing_clock: float) -> None:
    """A worker is live until its next beat is overdue."""
    late = _beat(beat=standing_clock - 9, due=standing_clock - 4)

    assert _judge(_beat()) == (True, "live: worker w1@host beat 0.0 s ago")
    assert _judge(late) == (
        False,
        "not live: worker w1@host beat 9.0 s ago, but was due to beat again within 5.0 s",
    )


@pytest.mark.usefixtures("standing_clock")
@pytest.mark.parametrize(
    ("state", "words"),
    [
        (heartbeat.STARTING, "starts"),
        (heartbeat.CONNECTING, "connects to the broker"),
        (heartbeat.NOT_CONSUMING, "consumes no queue"),
        (heartbeat.STOPPING, "is stopping"),
    ],
)
def test_only_a_worker_that_consumes_is_ready(state: str, words: str) -> None:
    """All others are live, and the line says what they do instead."""
    beat = _beat(state=state)

    assert _judge(beat) == (True, f"live: worker w1@host beat 0.0 s ago, it {words}")
    assert _judge(beat, ready=True) == (False, f"not ready: worker w1@host {words}")


def test_late_worker_is_not_ready_either() -> None:
    """Whatever it wrote last."""
    assert not _judge(_beat(due=time.monotonic() - 1), ready=True).healthy


def test_number_of_a_process_is_not_the_process() -> None:
    """Each start of a container has process 1: what an earlier one left is not taken for the worker."""
    verdict = _judge(_beat(process="1"))

    assert verdict == (
        False,
        f"not live: worker w1@host was killed or crashed: its process {os.getpid()} is gone",
    )


def test_process_that_nobody_waited_for_is_gone() -> None:
    """In a container often nobody does."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert heartbeat.identity(child.pid)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert heartbeat.identity(child.pid) is None

    child.communicate()
    assert heartbeat.identity(child.pid) is None


@pytest.mark.parametrize(
    "elsewhere", [{"machine": "another"}, {"beat": time.monotonic() + 10**9}], ids=["machine", "boot"]
)
def test_workers_of_other_machines_and_boots_do_not_count(elsewhere: dict[str, object]) -> None:
    """Containers may share a state folder; neither numbers of processes nor clocks can be compared."""
    assert not _judge(_beat(**elsewhere)).healthy
    assert _judge(_beat(**elsewhere), _beat()).healthy


def test_what_is_gone_does_not_count_beside_a_worker_that_runs() -> None:
    """What a killed worker leaves behind is not judged for ever."""
    assert _judge(_beat(process="1", worker="w2@host"), _beat()).healthy


def test_one_of_many_is_enough_to_be_unhealthy() -> None:
    """The line names it, unless others are asked for."""
    beats = [_beat(), _beat(worker="w2@host", due=time.monotonic() - 1)]

    verdict = _judge(*beats)
    assert not verdict.healthy
    assert "worker w2@host beat" in verdict.why
    assert verdict.why.endswith("(1 of 2 workers)")
    assert _judge(*beats, worker="w1@host").healthy
    assert _judge(*beats, worker="w1").healthy
    assert not _judge(*beats, worker="w2").healthy
    assert _judge(*beats, worker="w3") == (
        False,
        "not live: no worker w3 runs with the state folder /state",
    )


def test_all_that_are_well_are_told_in_one_line(standing_clock: float) -> None:
    """With the oldest beat of them."""
    beats = _beat(), _beat(beat=standing_clock - 2)
    assert _judge(*beats).why == "live: 2 workers, the oldest beat 2.0 s ago"


def test_beat_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Whatever the name of the worker is; the folder is made."""
    beat = _beat(worker="w/1@host", task="proj.tasks.add[1]")
    path = heartbeat.file_of(str(tmp_path / "state"), beat.worker, beat.pid)

    heartbeat.write(path, beat)

    assert heartbeat.read_all(str(tmp_path / "state")) == [beat]
    assert os.listdir(tmp_path / "state" / "workers") == [Path(path).name]


@pytest.mark.parametrize(
    "text",
    ["", "{", "\xff", "[]", "null", "{}", '{"worker": "w"}', json.dumps(_beat(pid="x")._asdict())],
)
def test_file_that_is_no_heartbeat_is_passed_over(tmp_path: Path, text: str) -> None:
    """A crash of the machine leaves such; a worker that lives writes anew within a second."""
    folder = tmp_path / "workers"
    folder.mkdir()
    (folder / "broken.json").write_text(text, "latin-1")
    heartbeat.write(heartbeat.file_of(str(tmp_path), "w1@host", os.getpid()), _beat())

    assert [beat.worker for beat in heartbeat.read_all(str(tmp_path))] == ["w1@host"]


def test_leftovers_are_cleared_away(tmp_path: Path) -> None:
    """Of processes that are gone, and whatever is a day old; nothing of a worker that may live."""
    beats = {
        "gone": _beat(process="1"),
        "old": _beat(machine="another"),
        "elsewhere": _beat(machine="another"),
        "here": _beat(),
    }
    paths = {name: tmp_path / "workers" / f"{name}.json" for name in beats}
    for name, beat in beats.items():
        heartbeat.write(str(paths[name]), beat)
    os.utime(paths["old"], (0, 0))

    heartbeat.clear_leftovers(str(tmp_path))

    assert {name for name, path in paths.items() if path.exists()} == {"elsewhere", "here"}


def test_leftover_that_cannot_be_cleared_away_hinders_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that another worker has cleared away in the same moment."""
    leftover = tmp_path / "workers" / "gone.json"
    heartbeat.write(str(leftover), _beat(process="1"))
    monkeypatch.setattr("os.listdir", lambda _: ["cleared-away.json", "gone.json"])

    heartbeat.clear_leftovers(str(tmp_path))

    assert not leftover.exists()


ENV_FILE = "export PROJ_STATE_DIR='file folder' # and more\nAMQP_HOST=h\n"


@pytest.mark.parametrize(
    ("environment", "env_file"),
    [
        ({}, None),
        ({"PROJ_STATE_DIR": "/a/b"}, None),
        ({"PROJ_STATE_DIR": "relative/../folder"}, ENV_FILE),
        ({"PROJ_STATE_DIR": "~/folder"}, None),
        ({"PROJ_STATE_DIR": ""}, None),
        ({"PROJ_STATE_DIR": ""}, ENV_FILE),
        ({"proj_state_dir": "/lower"}, ENV_FILE),
        ({}, ENV_FILE),
        ({}, "proj_state_dir=lower\n"),
        ({"HERE": "/in"}, "PROJ_STATE_DIR=${HERE}/side\n"),
        ({}, "PROJ_STATE_DIR=\n"),
        ({}, "AMQP_HOST=h\n"),
        ({"XDG_STATE_HOME": "/xdg"}, "# PROJ_STATE_DIR=/a\n"),
        ({}, "PROJ_STATE_DIR=first\nPROJ_STATE_DIR=second\n"),
    ],
)
def test_state_folder_is_that_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], env_file: str | None
) -> None:
    """The probe and the worker look into the same folder, wherever its name comes from."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if env_file is not None:
        Path(".env").write_text(env_file)

    assert Path(state_dir.find()) == config.load.__wrapped__().state_dir


def test_env_file_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the words of the settings."""
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(b"\xff")

    with pytest.raises(ConfigError, match="cannot be read: it is not UTF-8 text"):
        state_dir.find()
