"""What runs past its deadline is cut, by one thread for all."""

import _thread
import os
import threading
from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from proj import deadline
from proj.deadline import CutAfter, NoThread, within

#: Seconds for what must happen soon, on a busy machine too.
PATIENCE = 60


class Cuts:
    """Counts its calls."""

    def __init__(self) -> None:
        self.number = 0
        self._happened = threading.Condition()

    def __call__(self) -> None:
        with self._happened:
            self.number += 1
            self._happened.notify_all()

    def wait(self, number: int) -> None:
        with self._happened:
            assert self._happened.wait_for(lambda: self.number >= number, PATIENCE)


def test_cut_again_until_the_block_ends() -> None:
    """Not once only; and not after the end of the block, nor before its time."""
    late, later, in_time = Cuts(), Cuts(), Cuts()
    with CutAfter(PATIENCE, in_time):
        with CutAfter(0, late):
            late.wait(2)
        number = late.number
        with CutAfter(-1, later):
            later.wait(2)
    assert late.number == number
    assert in_time.number == 0


def test_error_in_a_block() -> None:
    """The block has ended, too."""
    late, later = Cuts(), Cuts()
    with pytest.raises(LookupError), CutAfter(0, late):
        raise LookupError
    with CutAfter(0, later):
        later.wait(2)
    assert late.number <= 1


def test_signal_at_the_begin_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its handler raises ends the block before its code runs, and nothing is cut afterwards."""
    cuts, later = Cuts(), Cuts()
    watch = deadline._watcher.watch

    def interrupted(*args: Any) -> None:
        watch(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deadline._Watcher, "watch", lambda _, *args: interrupted(*args))
        with pytest.raises(KeyboardInterrupt), CutAfter(PATIENCE, cuts):
            pytest.fail("the block has begun")
    assert not any(cut is cuts for _, cut in deadline._watcher.blocks.values())
    with CutAfter(0, later):
        later.wait(2)


def test_cut_that_fails() -> None:
    """Other blocks are cut all the same."""

    def fail() -> None:
        raise OSError

    cuts = Cuts()
    with CutAfter(0, fail), CutAfter(0, cuts):
        cuts.wait(2)


def test_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block does not begin, and later ones are cut again."""
    monkeypatch.setattr(deadline, "_watcher", deadline._Watcher())
    cuts = Cuts()
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(NoThread), CutAfter(0, cuts):
            raise AssertionError
        with pytest.raises(NoThread):
            within(PATIENCE, cuts)
    assert cuts.number == 0
    with CutAfter(0, cuts):
        cuts.wait(1)


def test_many_blocks_have_one_thread() -> None:
    """To start a thread takes longer than most blocks do."""
    with CutAfter(PATIENCE, lambda: None):
        before = psutil.Process().num_threads()
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(CutAfter(PATIENCE, lambda: None))
            assert psutil.Process().num_threads() <= before


def test_thread_that_was_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes up for the next block."""
    monkeypatch.setattr(deadline, "_LINGER", 0)
    monkeypatch.setattr(deadline, "_AGAIN", 0.001)
    monkeypatch.setattr(deadline, "_watcher", deadline._Watcher())
    for _ in range(100):
        cuts = Cuts()
        with CutAfter(0, cuts):
            cuts.wait(1)


def test_child_of_a_process_that_waits() -> None:
    """Its blocks are cut, and those of its parent are not its own to cut."""
    read, write = os.pipe()
    of_parent = Cuts()
    with CutAfter(PATIENCE, of_parent):
        if not os.fork():
            cuts = Cuts()
            with CutAfter(0, cuts):
                cuts.wait(1)
            os.write(write, bytes([len(deadline._watcher.blocks)]))
            os._exit(0)
        os.wait()
    assert os.read(read, 1) == b"\0"
