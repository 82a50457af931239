"""Heartbeat files: a worker's event loop or a beat writes one, and `proj health` judges it.

Each beat holds the time when the next one is due, since the loop knows best what it is about to do. Times
are those of `time.monotonic`, which all processes of one boot share on Linux and macOS. Nobody can set that
clock, and it stops while the machine sleeps, so neither a new date nor a suspended machine makes a worker
look dead. Imports only the standard library, and little of it.
"""

import errno
import json
import os
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

#: What writes heartbeats. The state folder has a folder for each kind, with an `s` at its end.
WORKER: Final = "worker"
BEAT: Final = "beat"
INGEST: Final = "ingest"

#: States of a worker, with the words for people.
STARTING: Final = "starting"
CONNECTING: Final = "connecting"
READY: Final = "ready"
NOT_CONSUMING: Final = "not-consuming"
STOPPING: Final = "stopping"
#: Of a beat while another one leads.
STANDBY: Final = "standby"
_WORDS: Final = {
    STARTING: "starts",
    CONNECTING: "connects to the broker",
    NOT_CONSUMING: "consumes no queue",
    STOPPING: "is stopping",
    STANDBY: "stands by",
}

#: Age in seconds at which a file is deleted, even from another boot or container. A live worker writes its
#: file every second.
_OLD: Final = 24 * 60 * 60


class Heartbeat(NamedTuple):
    """The last heartbeat of one worker."""

    worker: str
    pid: int
    #: Tells this process from others that have had the same pid; from `identity`.
    process: str
    #: The boot and the container that the pid belongs to; from `machine`.
    machine: str
    state: str
    #: Seconds of `time.monotonic`.
    beat: float
    #: Latest time of the next beat, on the same clock.
    due: float
    #: The task that blocks the loop until it ends, as with `-P solo`.
    task: str | None = None


class Verdict(NamedTuple):
    """The result of the probe, with the reason in one line."""

    healthy: bool
    why: str


def file_of(state_dir: str, worker: str, pid: int, kind: str = WORKER) -> str:
    """The path of a worker's file; the pid keeps two workers with one name apart."""
    return os.path.join(state_dir, f"{kind}s", f"{worker.replace(os.sep, '%')}.{pid}.json")


def write(path: str, heartbeat: Heartbeat) -> None:
    """Replace the file atomically; creates the folder. Raises `OSError`.

    On a full disk, which has no room for a second file, the existing one is overwritten in place.
    """
    data = json.dumps(heartbeat._asdict()).encode()
    temporary = f"{path}.tmp"
    try:
        _write_file(temporary, data)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write_file(temporary, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with suppress(OSError):
            os.unlink(temporary)
        _write_over(path, data)
        return
    os.rename(temporary, path)


def _write_file(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(file, data)
    finally:
        os.close(file)


def _write_over(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        # In one call, padded with blanks to the old length, so that a reader finds the old or the new beat.
        _write_all(file, data.ljust(os.fstat(file).st_size))
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(path: str) -> Heartbeat | None:
    """The heartbeat in the file; None when the file is missing or invalid. Raises other `OSError`s."""
    try:
        with open(path, "rb") as file:
            heartbeat = Heartbeat(**json.loads(file.read()))
            # Invalid values must fail here, not where they are compared.
            beat, due = float(heartbeat.beat), float(heartbeat.due)
            return heartbeat._replace(
                worker=str(heartbeat.worker), pid=int(heartbeat.pid), beat=beat, due=due
            )
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_all(state_dir: str, kind: str = WORKER) -> list[Heartbeat]:
    """All heartbeats in the state folder, also of ended workers. Raises `OSError`."""
    folder = os.path.join(state_dir, f"{kind}s")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    found = [read(os.path.join(folder, name)) for name in names if name.endswith(".json")]
    return [heartbeat for heartbeat in found if heartbeat is not None]


def clear_leftovers(state_dir: str, kind: str = WORKER) -> None:
    """Delete the files of workers that were killed, and old files."""
    folder = os.path.join(state_dir, f"{kind}s")
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(folder)
    for name in names:
        path = os.path.join(folder, name)
        with suppress(OSError):  # another worker may delete it at the same time
            heartbeat = read(path)
            gone = heartbeat is not None and heartbeat.machine == machine() and not runs(heartbeat)
            if gone or time.time() - os.stat(path).st_mtime > _OLD:
                os.unlink(path)


def identity(pid: int) -> str | None:
    """The start time of a process, which tells it from others with the same pid; None when it does not run.

    In a container, the first process has the same pid at every start. A zombie counts as not running.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The fields after the program's name, which may contain anything; see proc(5).
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
        return _identity_without_proc(pid)
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _identity_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def machine() -> str:
    """Identifies the boot and the container: the scope of pids and of the monotonic clock."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def runs(heartbeat: Heartbeat) -> bool:
    """Whether the process that wrote it is still running on this machine, even if it hangs."""
    # A beat in the future comes from an earlier boot, on systems without a boot id.
    return heartbeat.beat <= time.monotonic() and identity(heartbeat.pid) == heartbeat.process


def lives(heartbeat: Heartbeat, now: float) -> bool:
    """Whether its next beat is not overdue."""
    return now <= heartbeat.due


def is_ready(heartbeat: Heartbeat, now: float) -> bool:
    """Whether it is live and consumes its queue."""
    return lives(heartbeat, now) and heartbeat.state == READY


def select(heartbeats: list[Heartbeat], worker: str | None) -> list[Heartbeat]:
    """Heartbeats of this machine; `worker` selects by name, or by its part before the `@`."""
    here = machine()
    return [
        heartbeat
        for heartbeat in heartbeats
        if heartbeat.machine == here
        and (worker is None or worker in (heartbeat.worker, heartbeat.worker.partition("@")[0]))
    ]


def judge(
    heartbeats: list[Heartbeat], *, ready: bool, worker: str | None, state_dir: str, kind: str = WORKER
) -> Verdict:
    """Whether every running worker is live, or ready; unhealthy when none runs.

    `worker` selects by name. Files of ended workers are ignored while another one runs.
    """
    now = time.monotonic()
    chosen = select(heartbeats, worker)
    running = [heartbeat for heartbeat in chosen if runs(heartbeat)]
    what = "ready" if ready else "live"
    if not running:
        return Verdict(False, f"not {what}: {_nobody(chosen, worker, state_dir, kind)}")
    bad = [beat for beat in running if not (is_ready(beat, now) if ready else lives(beat, now))]
    if bad:
        some = f" ({len(bad)} of {len(running)} {kind}s)" if len(running) > 1 else ""
        return Verdict(False, f"not {what}: {_trouble(bad[0], now, kind)}{some}")
    if len(running) > 1:
        oldest = now - min(heartbeat.beat for heartbeat in running)
        return Verdict(True, f"{what}: {len(running)} {kind}s, the oldest beat {oldest:.1f} s ago")
    (only,) = running
    return Verdict(True, f"{what}: {kind} {only.worker} beat {now - only.beat:.1f} s ago{_doing(only)}")


def describe(heartbeats: list[Heartbeat], worker: str | None) -> list[dict[str, Any]]:
    """The state of each worker of this machine, for `--json`."""
    now = time.monotonic()
    return [
        {
            "worker": heartbeat.worker,
            "pid": heartbeat.pid,
            "runs": runs(heartbeat),
            "live": runs(heartbeat) and lives(heartbeat, now),
            "ready": runs(heartbeat) and is_ready(heartbeat, now),
            "state": heartbeat.state,
            "task": heartbeat.task,
            "beat": heartbeat.beat,
            "due": heartbeat.due,
            "beat_ago": round(now - heartbeat.beat, 3),
            "due_in": round(heartbeat.due - now, 3),
        }
        for heartbeat in select(heartbeats, worker)
    ]


def _nobody(chosen: list[Heartbeat], worker: str | None, state_dir: str, kind: str) -> str:
    if chosen:
        last = max(chosen, key=lambda heartbeat: heartbeat.beat)
        return f"{kind} {last.worker} was killed or crashed: its process {last.pid} is gone"
    return f"no {kind} {f'{worker} ' if worker else ''}runs with the state folder {state_dir}"


def _trouble(heartbeat: Heartbeat, now: float, kind: str) -> str:
    if lives(heartbeat, now):
        return f"{kind} {heartbeat.worker} {_WORDS.get(heartbeat.state, heartbeat.state)}"
    return (
        f"{kind} {heartbeat.worker} beat {now - heartbeat.beat:.1f} s ago, "
        f"but was due to beat again within {heartbeat.due - heartbeat.beat:.1f} s{_doing(heartbeat)}"
    )


def _doing(heartbeat: Heartbeat) -> str:
    if heartbeat.task:
        return f", then began {heartbeat.task}"
    return f", it {_WORDS[heartbeat.state]}" if heartbeat.state in _WORDS else ""
