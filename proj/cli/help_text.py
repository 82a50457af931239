"""What `proj --help` prints, kept ready in a file, since to import click takes longer than to print it.

A test compares the file with what click makes; `make help-text` writes it anew.
"""

import os

#: Click wraps at this many columns, or at less in a narrower terminal.
_COLUMNS = 80

# Without pathlib, whose import alone takes a third of the time that Python itself does.
_FILE = os.path.join(os.path.dirname(__file__), "help.txt")


def fits_terminal() -> bool:
    """False in a terminal that click would wrap the text for."""
    try:
        return os.get_terminal_size(1).columns >= _COLUMNS
    except OSError:  # not a terminal
        columns = os.environ.get("COLUMNS", "")
        # What is no number, click takes for nothing, as it does 0.
        return not columns.isdecimal() or not 0 < int(columns) < _COLUMNS


def read() -> str:
    with open(_FILE, encoding="utf-8") as file:
        return file.read()
