"""Messages that are not tried again by themselves: each with its reason, to be sent back or dropped."""

from proj.dead_letters.letter import Wanted
from proj.dead_letters.reader import CHUNK, Busy, Report, drop, listing, redrive, survey

__all__ = ["CHUNK", "Busy", "Report", "Wanted", "drop", "listing", "redrive", "survey"]
