"""Dead letters: listing, redriving and dropping the messages that are not retried by themselves."""

from proj.dead_letters.letter import Wanted
from proj.dead_letters.reader import CHUNK, Busy, Report, drop, is_empty, listing, redrive, survey

__all__ = ["CHUNK", "Busy", "Report", "Wanted", "drop", "is_empty", "listing", "redrive", "survey"]
