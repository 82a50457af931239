"""Where photos are kept, and under which names."""

import io
import os
import time
from pathlib import Path

import pytest

from photos.album import ABANDONED, Album, shown


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return Album(tmp_path)


def test_the_same_bytes_are_the_same_photo(album: Album) -> None:
    """Under whatever name; the first one stays."""
    first = album.store(io.BytesIO(b"bytes"))
    album.accept(first, "one.jpg")
    assert album.store(io.BytesIO(b"bytes")) == first
    album.accept(first, "two.jpg")

    assert album.store(io.BytesIO(b"others")) != first
    assert [(each.id, each.name) for each in album.photos()] == [(first, "one.jpg")]
    assert album.original(first).read_bytes() == b"bytes"


def test_the_newest_comes_first(album: Album) -> None:
    ids = [album.store(io.BytesIO(bytes([number]))) for number in range(3)]
    for photo in ids:
        album.accept(photo, "a.jpg")
    assert [each.id for each in album.photos()] == ids[::-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("holiday.jpg", "holiday.jpg"),
        ("../../etc/passwd.jpg", "passwd.jpg"),
        ("C:\\Windows\\a.jpg", "a.jpg"),
        ("a\x1b[31m\nb.jpg", "a[31mb.jpg"),
        ("<b>.jpg", "<b>.jpg"),
        ("", "a photo"),
        ("..", ".."),
        ("x" * 300 + ".jpg", "x" * 80),
    ],
)
def test_names_are_only_shown(album: Album, tmp_path: Path, name: str, words: str) -> None:
    """No file is called as an upload is: its name cannot leave the folder."""
    assert shown(name) == words
    photo = album.store(io.BytesIO(b"bytes"))
    album.accept(photo, name)

    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {photo, f"{photo}.json"}
    assert [each.name for each in album.photos()] == [words]


def test_an_upload_that_ends_early_leaves_nothing(album: Album, tmp_path: Path) -> None:
    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        album.store(Cut())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_killed_programs_are_deleted(album: Album) -> None:
    """Once they are a day old; what is complete stays."""
    photo = album.store(io.BytesIO(b"bytes"))
    old, new = album.thumbnails / ".old-x", album.thumbnails / ".new-x"
    for folder in (old, new, album.folder(photo)):
        folder.mkdir(parents=True)
    (old / "large.jpg").touch()
    upload = album.incoming / "upload"
    upload.touch()
    for path in (old, upload, album.folder(photo)):
        os.utime(path, (time.time() - ABANDONED - 1,) * 2)

    album.tidy()

    assert {path.name for path in album.thumbnails.iterdir()} == {photo, ".new-x"}
    assert not upload.exists()
    assert album.original(photo).exists()
