"""How full the queues are."""

from proj.depths.reader import Depth, Reader, Snapshot

__all__ = ["Depth", "Reader", "Snapshot"]
