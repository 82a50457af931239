"""The heartbeat of a worker: a small file that its event loop writes, and what `proj health` makes of it.

With each beat the worker promises the next: the file says when that is due, since the loop knows best what it
is about to do. Times are those of `time.monotonic`: on Linux and macOS all processes of one boot share that
clock, nobody can set it, and it stands still with the machine. A process that is frozen, or whose machine
was given a new date, is judged rightly. Nothing but the standard library is imported, and little of it.
"""

import errno
import json
import os
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

#: Folder of the heartbeats in the state folder.
FOLDER: Final = "workers"

#: What a worker is doing, and how that is told.
STARTING: Final = "starting"
CONNECTING: Final = "connecting"
READY: Final = "ready"
NOT_CONSUMING: Final = "not-consuming"
STOPPING: Final = "stopping"
_WORDS: Final = {
    STARTING: "starts",
    CONNECTING: "connects to the broker",
    NOT_CONSUMING: "consumes no queue",
    STOPPING: "is stopping",
}

#: Seconds after which a file that nobody writes is cleared away, wherever it comes from: an earlier boot,
#: another container. A worker that lives writes its file every second.
_OLD: Final = 24 * 60 * 60


class Heartbeat(NamedTuple):
    """The last beat of one worker."""

    worker: str
    pid: int
    #: Which of all the processes that ever had this number; `identity` makes it.
    process: str
    #: The boot and the container that the number counts in; `machine` makes it.
    machine: str
    state: str
    #: Seconds of `time.monotonic`.
    beat: float
    #: When the next beat is to be there at the latest, likewise.
    due: float
    #: The task that keeps the loop until its end, as in `-P solo`.
    task: str | None = None


class Verdict(NamedTuple):
    """Whether all is well, and why, in one line."""

    healthy: bool
    why: str


def file_of(state_dir: str, worker: str, pid: int) -> str:
    """Two workers never share a file, not even those that were given one name by mistake."""
    return os.path.join(state_dir, FOLDER, f"{worker.replace(os.sep, '%')}.{pid}.json")


def write(path: str, heartbeat: Heartbeat) -> None:
    """Replace the file, so that no reader sees half of it. Makes the folder. Raises `OSError`.

    Where there is no room for another file, on a disk that is full, the one that is there is written over.
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
        # In one call, with blanks over what was longer, so that a reader finds the one beat or the other.
        _write_all(file, data.ljust(os.fstat(file).st_size))
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(path: str) -> Heartbeat | None:
    """The beat in the file; None when there is none in it, or no file any more. Raises other `OSError`s."""
    try:
        with open(path, "rb") as file:
            heartbeat = Heartbeat(**json.loads(file.read()))
            # What is compared must be comparable.
            beat, due = float(heartbeat.beat), float(heartbeat.due)
            return heartbeat._replace(
                worker=str(heartbeat.worker), pid=int(heartbeat.pid), beat=beat, due=due
            )
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_all(state_dir: str) -> list[Heartbeat]:
    """The heartbeats in the state folder, of workers that run and of workers that did. Raises `OSError`."""
    folder = os.path.join(state_dir, FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    found = [read(os.path.join(folder, name)) for name in names if name.endswith(".json")]
    return [heartbeat for heartbeat in found if heartbeat is not None]


def clear_leftovers(state_dir: str) -> None:
    """Remove what workers left behind that had no time to: of processes that are gone, and what is old."""
    folder = os.path.join(state_dir, FOLDER)
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(folder)
    for name in names:
        path = os.path.join(folder, name)
        with suppress(OSError):  # as when another worker clears it away at the same time
            heartbeat = read(path)
            gone = heartbeat is not None and heartbeat.machine == machine() and not runs(heartbeat)
            if gone or time.time() - os.stat(path).st_mtime > _OLD:
                os.unlink(path)


def identity(pid: int) -> str | None:
    """What tells a process from later ones with its number: when it began. None when it does not run.

    In a container every start has the same number. A process that ended and was not waited for is gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # From the state on, past the name of the program, which may hold anything; see proc(5).
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
    """The boot of the machine, and the container in it: where process numbers and the clock belong to."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def runs(heartbeat: Heartbeat) -> bool:
    """Whether the process of this machine that wrote it is still there, well or not."""
    # A beat in the future is one of an earlier boot, where nothing else tells.
    return heartbeat.beat <= time.monotonic() and identity(heartbeat.pid) == heartbeat.process


def lives(heartbeat: Heartbeat, now: float) -> bool:
    """Whether its loop turns, as far as it promised to."""
    return now <= heartbeat.due


def is_ready(heartbeat: Heartbeat, now: float) -> bool:
    """Whether it consumes its queue."""
    return lives(heartbeat, now) and heartbeat.state == READY


def select(heartbeats: list[Heartbeat], worker: str | None) -> list[Heartbeat]:
    """Those of this machine with the name, or the part of a name before its `@`; all, for no name."""
    here = machine()
    return [
        heartbeat
        for heartbeat in heartbeats
        if heartbeat.machine == here
        and (worker is None or worker in (heartbeat.worker, heartbeat.worker.partition("@")[0]))
    ]


def judge(heartbeats: list[Heartbeat], *, ready: bool, worker: str | None, state_dir: str) -> Verdict:
    """Whether every worker that runs is live, or ready; of those with a name, when one is given.

    What workers left behind that are gone does not count beside one that runs. No worker is not healthy.
    """
    now = time.monotonic()
    chosen = select(heartbeats, worker)
    running = [heartbeat for heartbeat in chosen if runs(heartbeat)]
    what = "ready" if ready else "live"
    if not running:
        return Verdict(False, f"not {what}: {_nobody(chosen, worker, state_dir)}")
    bad = [beat for beat in running if not (is_ready(beat, now) if ready else lives(beat, now))]
    if bad:
        some = f" ({len(bad)} of {len(running)} workers)" if len(running) > 1 else ""
        return Verdict(False, f"not {what}: {_trouble(bad[0], now)}{some}")
    if len(running) > 1:
        oldest = now - min(heartbeat.beat for heartbeat in running)
        return Verdict(True, f"{what}: {len(running)} workers, the oldest beat {oldest:.1f} s ago")
    (only,) = running
    return Verdict(True, f"{what}: worker {only.worker} beat {now - only.beat:.1f} s ago{_doing(only)}")


def describe(heartbeats: list[Heartbeat], worker: str | None) -> list[dict[str, Any]]:
    """What is known of each worker of this machine, for programs; `beat` and `due` as in the file."""
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


def _nobody(chosen: list[Heartbeat], worker: str | None, state_dir: str) -> str:
    if chosen:
        last = max(chosen, key=lambda heartbeat: heartbeat.beat)
        return f"worker {last.worker} is gone, its process {last.pid} ended without a word"
    return f"no worker {f'{worker} ' if worker else ''}runs with the state folder {state_dir}"


def _trouble(heartbeat: Heartbeat, now: float) -> str:
    if lives(heartbeat, now):
        return f"worker {heartbeat.worker} {_WORDS.get(heartbeat.state, heartbeat.state)}"
    return (
        f"worker {heartbeat.worker} beat {now - heartbeat.beat:.1f} s ago, "
        f"and was to beat again within {heartbeat.due - heartbeat.beat:.1f} s{_doing(heartbeat)}"
    )


def _doing(heartbeat: Heartbeat) -> str:
    if heartbeat.task:
        return f", then began {heartbeat.task}"
    return f", it {_WORDS[heartbeat.state]}" if heartbeat.state in _WORDS else ""
