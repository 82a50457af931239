"""Runs the programs of a Procfile, and ends them in order."""

import ctypes
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

_LINE: Final = re.compile(r"^([A-Za-z0-9_-]+):\s*(.+)$", re.MULTILINE)

#: What the first, the second and the third Ctrl-C send: a worker finishes its tasks, gives them back, or is
#: killed.
_ENDS: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL)

#: Signals that ask for the end: Ctrl-C, `kill`, and a terminal that is closed.
_ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds between two looks for what the end of programs has left.
_LOOK_INTERVAL: Final = 0.2

#: Colours of names on a terminal: cyan, yellow, green, magenta, blue.
_COLOURS: Final = (36, 33, 32, 35, 34)

#: Linux's prctl(2), from <linux/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1


class Programs:
    """The programs of the Procfile in the working folder: they run until a signal, or until one of them ends.

    Each has a session of its own: the terminal's Ctrl-C reaches only us, and the broker ends after those that
    need it. A context manager that leaves none behind.
    """

    def __init__(self) -> None:
        self.commands = dict(_LINE.findall(Path("Procfile").read_text()))
        self._programs: dict[str, _Program] = {}
        self._asked = 0
        #: The exit code, once something asks for the end.
        self.code: int | None = None
        self._selector = selectors.DefaultSelector()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        self._selector.register(wake_read, selectors.EVENT_READ)
        for number in (*_ASKING, signal.SIGCHLD):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, lambda _number, _frame: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        others = [program for name, program in self._programs.items() if name != "broker"]
        self._end(others, _ENDS)
        self._end([self._programs[name] for name in self._programs if name == "broker"], _ENDS[:1])

    def start(self, name: str) -> None:
        colour = _COLOURS[len(self._programs) % len(_COLOURS)] if sys.stdout.isatty() else 0
        self._programs[name] = program = _Program(
            name.ljust(max(map(len, self.commands))), self.commands[name], colour
        )
        self._selector.register(program.output, selectors.EVENT_READ, program)

    def run(self, timeout: float | None = None) -> bool:
        """Print what the programs write, for so many seconds at most. False once all shall end."""
        self._print(timeout)
        for program in self._programs.values():
            if self.code is None and (code := program.process.poll()) is not None:
                program.say(f"ended with exit code {code}, so all end")
                self.code = code if code >= 0 else 128 - code
        return self.code is None

    def _print(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            data = os.read(key.fd, 65536)
            if key.data is None:
                self._note(number for number in data if number in _ASKING)
            elif not key.data.print(data):
                self._selector.unregister(key.fd)

    def _note(self, signals: Iterable[int]) -> None:
        for number in signals:
            self._asked += 1
            if self.code is None:
                self.code = 128 + number
            if self._asked == 1 and number == signal.SIGINT:
                _write("\nEnding. Ctrl-C again gives running tasks back to the queue.")

    def _end(self, programs: "list[_Program]", hows: tuple[signal.Signals, ...]) -> None:
        sent = 0
        while programs := [program for program in programs if not program.has_ended()]:
            while sent < len(hows) and sent < max(1, self._asked):
                for program in programs:
                    program.send(hows[sent])
                sent += 1
            self._print(_LOOK_INTERVAL)
        self._print(0)


class _Program:
    """A program in a session of its own, whose output is printed with its name."""

    def __init__(self, name: str, command: str, colour: int) -> None:
        self._prefix = f"\033[{colour}m{name} |\033[0m " if colour else f"{name} | "
        self._rest = b""
        self._was_cleared = False
        self.process: subprocess.Popen[Any] = subprocess.Popen(
            ["bash", "-c", command],  # it lets the command take its place, so that the command gets signals
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()

    def print(self, data: bytes) -> bool:
        """Print the lines that are complete. False at the end of the output."""
        *lines, self._rest = (self._rest + (data or b"\n" * bool(self._rest))).split(b"\n")
        for line in lines:
            self.say(line.decode(errors="replace"))
        return bool(data)

    def say(self, line: str) -> None:
        _write(self._prefix + line)

    def send(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            # A worker lets its processes end their tasks, which must not get the signal too.
            (os.killpg if how == signal.SIGKILL else os.kill)(self.process.pid, how)

    def has_ended(self) -> bool:
        """Whether it has, and all that it started; what it has left is asked to end, once."""
        if self.process.poll() is None:
            return False
        try:
            os.killpg(self.process.pid, 0 if self._was_cleared else signal.SIGTERM)
        except OSError:
            return True
        self._was_cleared = True
        return False


def _write(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        os.write(sys.stdout.fileno(), f"{line}\n".encode(errors="replace"))


def _end_with_parent() -> Any:
    """What a child calls so that it is asked to end when we are killed; only Linux has it."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return end_with_parent
