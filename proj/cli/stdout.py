"""What becomes of stdout when nobody reads it any more."""

import os


def discard() -> None:
    """Let all that is printed from now on, and what is left in the buffer, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
