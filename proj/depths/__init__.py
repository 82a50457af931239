"""Lengths and message rates of the queues."""

from proj.depths.reader import Depth, Reader, Snapshot

__all__ = ["Depth", "Reader", "Snapshot"]
