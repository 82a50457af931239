"""The house stays one that a stranger finds the way in: a small application at the door, rooms behind it."""

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "proj"


def test_the_door_is_small() -> None:
    """Who adds a task sees a dozen files, and an application that fits a screen."""
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 12
    assert len((PACKAGE / "celery.py").read_text().splitlines()) <= 25


def test_no_file_is_long() -> None:
    """A file of more than 400 lines has more than one noun."""
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > 400] == []
