"""The file that says how far a batch has come is of one batch, whatever it is called."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proj.enqueue.progress_file import ProgressFile


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_file_of_a_complete_batch_is_new_under_all_its_names(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """Else the same input sent again would have the old ids."""
    file, name = tmp_path / "file", tmp_path / "name"
    file.touch()
    link(file, name)
    with ProgressFile(name) as first:
        first.save(2, b"d" * 16, 3)
    with ProgressFile(name) as same:
        assert (same.key, same.done, same.sent) == (first.key, 2, 3)
        same.remove()
    assert not name.exists()

    link(file, name)
    with ProgressFile(name) as other:
        assert (other.done, other.sent) == (0, 0)
        assert other.key != first.key


def test_file_of_a_complete_batch_that_cannot_be_deleted_is_new(tmp_path: Path) -> None:
    """As in a folder that is not writable, or when it is mounted by itself; nobody may delete these links."""
    file = tmp_path / "file"
    with ProgressFile(file) as first:
        first.save(2, b"d" * 16, 3)
    with file.open() as held, ProgressFile(Path(f"/proc/self/fd/{held.fileno()}")) as same:
        assert (same.key, same.done) == (first.key, 2)
        same.remove()
    with ProgressFile(file) as other:
        assert (other.done, other.sent) == (0, 0)
        assert other.key != first.key
