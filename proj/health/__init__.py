"""Heartbeats of workers, for `proj health`. Imports little besides the standard library, to start fast."""
